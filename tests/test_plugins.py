"""Which plug-ins a config from a folder may bring in: those alone whose modules a person names."""

import contextlib
import json
import pathlib
import sys

import pytest

from ddpm_jax.config import all_tables, find_entry, from_config_dict, from_json, to_json
from ddpm_jax.config.plugins import plugins_of
from ddpm_jax.config.tree import leaves, modules_of
from ddpm_jax.errors import InputError
from tests.training.tiny import tiny

CODE = """
import functools, subprocess
from os import system
from flax.linen import Dense
from ddpm_jax.losses import LOSSES

open('MARK', 'w')
halved = functools.partial(LOSSES['simple'])

def weight(schedule, t, *, power: float = 1.0):
  return 1.0

def schedule():
  return 1

class Callable:
  def __call__(self):
    return 1

made = Callable()
"""


@pytest.fixture(autouse=True)
def tiny_is_found(monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parent / 'training')


@pytest.fixture
def mark(tmp_path, monkeypatch):
  """The file that an import of `payload`, or of a module in the package `payloads`, makes."""
  mark = tmp_path / 'MARK'
  code = CODE.replace('MARK', str(mark))
  (tmp_path / 'payload.py').write_text(code)
  (tmp_path / 'payloads').mkdir()
  (tmp_path / 'payloads' / '__init__.py').write_text('from payloads.inner import schedule\n')
  (tmp_path / 'payloads' / 'inner.py').write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  yield mark
  for name in [name for name in sys.modules if name.startswith('payload')]:
    del sys.modules[name]


def tree(**settings):
  """What config.json holds of the tiny run, some of its settings another."""
  found = json.loads(json.dumps(to_json(tiny())))
  for field, value in settings.items():
    group, name = field.split('__')
    found[group][name] = value
  return found


def refused(match, settings, plugins=('tiny',)):
  with pytest.raises(InputError) as error:
    from_json(tree(**settings), plugins=plugins)
  assert match in str(error.value)
  assert '\n' not in str(error.value)


PLACES = [f'{group}__name' for group in all_tables().groups]
FACTORS = [place.replace('.', '__') for place in all_tables().factors]


@pytest.mark.parametrize('place', [*PLACES, *FACTORS])
def test_nothing_is_imported_that_is_not_named_again(mark, place):
  refused(
    f"needs code from outside of the package, 'payload:weight' (config.{place.replace('__', '.')})",
    {place: 'payload:weight'},
  )
  if place in FACTORS:
    refused('--plugins=payload (in Python', {place: ' payload:weight (power=2)'})
  assert not mark.exists()


@pytest.mark.parametrize('text', ['payload:weight', 'payload:weight(power=1)'])
def test_no_text_anywhere_in_a_config_is_imported(mark, text):
  fields = [field for field, _ in leaves(tree())]
  assert len(fields) > 50
  for field in fields:
    spoiled = tree()
    *groups, name = field.split('.')
    node = spoiled
    for group in groups:
      node = node[group]
    node[name] = text
    with contextlib.suppress(InputError):
      from_json(spoiled, plugins=('tiny',))
    assert not mark.exists(), field


def test_all_that_are_needed_are_named_at_once():
  settings = {'loss__name': 'one:f', 'loss__weight': 'two.deep:g(x=1)', 'schedule__name': 'one:h'}
  refused(
    "'one:h' (config.schedule.name), 'one:f' (config.loss.name), 'two.deep:g' (config.loss.weight)"
    '; it is imported only where you name its modules: if you trust them, give '
    "--plugins=one,two.deep (in Python plugins=('one', 'two.deep'))",
    settings,
  )


def test_what_is_named_is_used_with_its_submodules(mark):
  settings = {'schedule__name': 'payloads.inner:schedule', 'schedule__num_steps': None}
  refused('--plugins=payloads.inner', settings, ('tiny', 'payload', 'payloads.other'))
  assert not mark.exists()
  for trusted in 'payloads', 'payloads.inner':
    assert from_json(tree(**settings), plugins=('tiny', trusted)).schedule.build({}) == 1
  # The package's own name for it is one of its module inside.
  settings['schedule__name'] = 'payloads:schedule'
  assert from_json(tree(**settings), plugins=('tiny', 'payloads')).schedule.build({}) == 1


@pytest.mark.parametrize(
  ('name', 'module'),
  [
    ('payload:system', 'posix'),
    ('payload:Dense', 'flax.linen.linear'),
    ('payload:halved', 'ddpm_jax.losses.products'),
    ('payload:__class__', 'builtins'),
  ],
)
def test_what_a_named_module_only_imports_is_not_its_own(mark, name, module):
  settings = {'schedule__name': name, 'schedule__num_steps': None}
  refused(f"'{name}' is a function of {module}, which payload only", settings, ('tiny', 'payload'))


def test_functions_of_functions_are_no_names(mark):
  trusted = ('tiny', 'payload')
  for name in 'payload:subprocess.run', 'payload.subprocess:run', 'payload:made.__call__':
    refused('config.schedule.name', {'schedule__name': name}, trusted)
  assert from_json(tree(schedule__name='payload:made', schedule__num_steps=None), plugins=trusted)


def test_what_a_person_names_is_used_and_trusted_further_on(mark):
  named = from_config_dict(tree(loss__name='payload:halved', loss__weight='payload:weight'))
  assert modules_of(named) == ('ddpm_jax.losses.products', 'payload', 'tiny')
  assert from_json(to_json(named), plugins=modules_of(named)) == named
  assert find_entry('payload:weight(power=2)', {}, 'field').keywords == {'power': 2.0}


def test_one_module_is_not_a_list_of_letters():
  with pytest.raises(TypeError, match=r"plugins: give a tuple of modules, as \('tiny',\)"):
    from_json(tree(), plugins='tiny')


def test_a_name_of_a_table_is_no_plug_in():
  table = all_tables()._replace(factors={'loss.weight': {'a:b': None}})
  assert plugins_of(tree(loss__weight='a:b'), table) == {'model.name': 'tiny:Net'}


@pytest.mark.parametrize('depth', [1000, 100_000])
@pytest.mark.parametrize('text', ['-', '(', '1+'])
def test_arguments_too_deep_to_be_read_are_refused(text, depth):
  settings = {'loss__weight': f'min_snr(gamma={text * depth}1)'}
  refused('is not of the form name(argument=value)', settings)
