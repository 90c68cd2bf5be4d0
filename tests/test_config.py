"""The config: what files and flags may write, and what is refused in which words."""

import json
import logging
import math
import pathlib
import runpy
import sys
import types
from typing import Literal

import pytest

from ddpm_jax import config as config_lib
from ddpm_jax.config import Group, Tables
from ddpm_jax.config.signatures import fit
from ddpm_jax.config.tree import leaves, upgraded
from ddpm_jax.errors import InputError
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.table import make_task

CONFIGS = sorted(pathlib.Path(__file__).parents[1].glob('configs/[!_]*.py'))


def line(num_steps: int = 10, slope: float = 0.5):
  return ('line', num_steps, slope)


def curve(num_steps: int = 10, bend: float | None = None, sizes: tuple[int, ...] = (1, 2)):
  if num_steps > 100:
    raise ValueError('num_steps is above 100')
  return ('curve', num_steps, bend, sizes)


def listed(values: tuple[float, ...], kind: Literal['a', 'b'] = 'a'):
  return ('listed', values, kind)


def anything():
  return 'anything'


def remote(folder: str | None = None):
  return folder


def net(spec: dict, width: int = 4):
  return (spec, width)


def tables() -> Tables:
  simple = Group({'only': anything})
  groups = dict.fromkeys(('parameterization', 'loss', 'optimizer', 'sampler'), simple)
  groups['task'] = Group({'denoising': anything, 'coding': anything})
  groups['codec'] = Group({'pixels': anything, 'blocks': line})
  groups['schedule'] = Group({'line': line, 'curve': curve, 'listed': listed})
  groups['dataset'] = Group({'only': anything}, fallback=lambda name: remote)
  groups['model'] = Group({'net': net}, supplied=frozenset({'spec'}))
  unread = {'coding': frozenset({'schedule', 'sampler'})}
  grids = {'sampler.grid': {'trailing': anything, 'leading': anything}}
  return Tables(groups, grids, {}, unread)


def filled():
  tree = config_lib.base_config(tables())
  for group in ('dataset', 'parameterization', 'loss', 'optimizer', 'sampler'):
    tree[group].name = 'only'
  tree.model.name = 'net'
  tree.schedule.name = 'line'
  return tree


def read(tree, **overrides):
  """The config after flags are typed, given as group__setting=value."""
  typed = {key.replace('__', '.'): value for key, value in overrides.items()}
  tree.update_from_flattened_dict(typed)
  return config_lib.from_config_dict(tree, typed, tables())


@pytest.fixture
def plugin(monkeypatch):
  """An importable module `own` with a model `wide` and a task `sort`."""

  def wide(spec: dict, width: int, depth: int = 1):
    return (spec, width, depth)

  def sort(passes: int = 1):
    return passes

  module = types.ModuleType('own')
  module.wide, wide.__module__ = wide, 'own'
  module.sort, sort.__module__ = sort, 'own'
  monkeypatch.setitem(sys.modules, 'own', module)


def refused(match: str, tree, **overrides):
  with pytest.raises(InputError) as error:
    read(tree, **overrides)
  assert match in str(error.value)
  assert '\n' not in str(error.value)


def test_arguments_of_every_choice_are_typed_and_unset():
  tree = config_lib.base_config(tables())
  assert tree.schedule.get_type('slope') is float and tree.schedule.slope is None
  assert tree.schedule.get_type('bend') is float
  assert tree.schedule.get_type('sizes') is tuple
  assert tree.dataset.get_type('folder') is str
  assert 'spec' not in tree.model  # the data's to say


def test_a_misspelled_setting_cannot_be_assigned():
  tree = config_lib.base_config(tables())
  with pytest.raises(AttributeError, match='slope'):
    tree.schedule.slop = 1.0


def test_only_what_is_set_is_passed():
  tree = filled()
  tree.schedule.slope = 2
  schedule = read(tree).schedule
  assert schedule.arguments == {'slope': 2.0}
  assert schedule.build(tables().groups['schedule'].table) == ('line', 10, 2.0)


def test_the_program_supplies_its_own_arguments():
  model = read(filled(), model__width=8).model
  assert model.build(tables().groups['model'].table, spec={}) == ({}, 8)


def test_a_refused_value_names_the_group():
  schedule = read(filled(), schedule__name='curve', schedule__num_steps=101).schedule
  with pytest.raises(InputError, match='config.schedule: num_steps is above 100'):
    schedule.build(tables().groups['schedule'].table)


def test_a_name_of_no_table_goes_to_the_fallback():
  dataset = read(filled(), dataset__name='mnist:3.0.1', dataset__folder='here').dataset
  assert dataset.build({}, tables().groups['dataset'].fallback) == 'here'


@pytest.mark.parametrize(
  ('setting', 'value', 'message'),
  [
    ('dataset__batch_size', 0, 'config.dataset.batch_size: 0 is outside [1, 1000000]'),
    ('ema__decay', 1.0, 'config.ema.decay: 1.0 is outside [0, 1)'),
    ('ema__decay', -0.1, 'config.ema.decay: -0.1 is'),
    ('optimizer__learning_rate', 0.0, 'config.optimizer.learning_rate: 0.0 is outside (0, 100]'),
    ('optimizer__learning_rate', math.nan, 'config.optimizer.learning_rate: nan'),
    ('optimizer__learning_rate', math.inf, 'config.optimizer.learning_rate: inf'),
    ('optimizer__clip_norm', 0.0, 'config.optimizer.clip_norm: 0.0 is outside (0, 1e+09]'),
    ('training__num_steps', -5, 'config.training.num_steps: -5 is outside [1, 2147483647]'),
    ('training__num_steps', True, 'config.training.num_steps: True is not of type int'),
    ('training__num_steps', None, 'config.training.num_steps: unset'),
    ('evaluation__likelihoods', (), 'config.evaluation.likelihoods: () is empty'),
    ('seed', -1, 'config.seed: -1 is outside [0, 4294967296)'),
    ('seed', 2**32, 'config.seed: 4294967296 is'),
    ('sampler__grid', 'trailling', "did you mean 'trailing'?"),
    ('loss__name', None, 'config.loss.name: unset; choose one of only'),
    ('loss__name', 'onyl', "config.loss.name: 'onyl' is not one of only; did you mean 'only'?"),
    ('schedule__num_steps', True, 'config.schedule.num_steps: True is not of type int'),
    ('schedule__bend', 1.0, "config.schedule.bend: 1.0 is set, but 'line' has no such argument"),
    ('model__args', {'a': 1}, 'config.model.args.a: 1 is set'),
  ],
)
def test_refused_values(setting, value, message):
  refused(message, filled(), **{setting: value})


def test_elements_of_tuples_are_checked():
  """ml_collections lets ('a', 1.5) replace (1, 2)."""
  message = "config.schedule.sizes: ('a', 1.5) is not of type tuple[int, ...]"
  refused(message, filled(), schedule__name='curve', schedule__sizes=('a', 1.5))
  arguments = read(filled(), schedule__name='curve', schedule__sizes=()).schedule.arguments
  assert arguments == {'sizes': ()}


def test_an_argument_without_default_must_be_set():
  refused(
    "config.schedule.values: unset, and 'listed' has no default", filled(), schedule__name='listed'
  )
  found = read(filled(), schedule__name='listed', schedule__values=(1, 2), schedule__kind='b')
  assert found.schedule.arguments == {'values': (1.0, 2.0), 'kind': 'b'}
  refused('is not one of a, b', filled(), schedule__name='listed', schedule__kind='c')


def test_a_setting_that_does_not_exist():
  tree = filled().to_dict()
  tree['schedule']['slop'] = 1.0
  with pytest.raises(InputError, match=r"config\.schedule\.slop: .*did you mean 'slope'\?"):
    config_lib.from_config_dict(tree, tables=tables())
  with pytest.raises(InputError, match=r"config\.scheduel: .*did you mean 'schedule'\?"):
    config_lib.from_config_dict({'scheduel': {}}, tables=tables())


def test_a_group_cannot_be_replaced_whole():
  with pytest.raises(InputError, match='config.loss: a group'):
    config_lib.from_config_dict(filled(), {'loss': {'name': 'only'}}, tables())


def test_what_json_cannot_hold_is_refused():
  tree = filled().to_dict()
  tree['schedule']['slope'] = print
  with pytest.raises(InputError, match=r'config\.schedule\.slope: .*cannot be kept'):
    config_lib.from_config_dict(tree, tables=tables())


def test_a_flag_that_changes_the_name_drops_the_files_arguments(caplog):
  tree = filled()
  tree.schedule.slope, tree.schedule.num_steps = 2.0, 7
  with caplog.at_level(logging.WARNING, logger='absl'):
    schedule = read(tree, schedule__name='curve').schedule
  assert (schedule.name, schedule.arguments) == ('curve', {'num_steps': 7})
  (record,) = caplog.records
  assert 'slope=2.0' in record.getMessage()


def test_a_typed_argument_is_never_dropped():
  refused(
    'config.schedule.slope: 2.0 is set', filled(), schedule__name='curve', schedule__slope=2.0
  )


def test_plugin_takes_its_own_arguments(plugin):
  model = read(filled(), model__name='own:wide', model__args={'width': 9}).model
  assert model.build({}, spec={}) == ({}, 9, 1)


def test_plugin_takes_flat_what_an_entry_has_too(plugin):
  """'net' has a width as well: the file's, and one that is typed."""
  tree = filled()
  tree.model.width = 7
  model = read(tree, model__name='own:wide', model__args={'depth': 2}).model
  assert model.build({}, spec={}) == ({}, 7, 2)
  both = read(filled(), model__name='own:wide', model__width=8, model__args={'width': 9}).model
  assert both.arguments == {'width': 9}


@pytest.mark.parametrize(
  ('name', 'args', 'message'),
  [
    ('own:wide', {}, "config.model.width: unset, and 'own:wide' has no default for it"),
    ('own:wide', {'width': 9, 'height': 1}, 'config.model.args.height'),
    ('own:wide', {'width': 'much'}, "config.model.args.width: 'much' is not of type int"),
    ('own:wid', {}, "did you mean 'wide'?"),
    ('nowhere_at_all:wide', {}, "config.model.name: 'nowhere_at_all:wide' cannot be imported"),
  ],
)
def test_plugins_refused(plugin, name, args, message):
  refused(message, filled(), model__name=name, model__args=args)


def test_plugin_must_take_what_the_program_supplies(plugin, monkeypatch):
  def narrow(width: int = 1):
    return width

  narrow.__module__ = 'own'
  monkeypatch.setattr(sys.modules['own'], 'narrow', narrow, raising=False)
  refused("'own:narrow' does not take spec", filled(), model__name='own:narrow')


def test_leaving_a_plugin_drops_the_files_args(plugin):
  tree = filled()
  tree.model.name, tree.model.args = 'own:wide', {'width': 9}
  assert read(tree, model__name='net').model.arguments == {}


def test_json_round_trip(plugin):
  tree = filled()
  tree.model.name, tree.model.args = 'own:wide', {'width': 9}
  tree.optimizer.learning_rate = 0.1 + 0.2  # no short decimal
  before = read(tree, schedule__name='curve', schedule__sizes=(3,), seed=2**32 - 1)
  tree = json.loads(json.dumps(config_lib.to_json(before)))
  after = config_lib.from_json(tree, tables(), plugins=('own',))
  assert after == before
  assert type(after.schedule.arguments['sizes']) is tuple


def trees(*configs):
  return [config_lib.to_json(config) for config in configs]


def test_what_differs_is_an_experiment_but_for_what_may_change_on_resuming():
  free = {'training__num_steps': 9, 'sampler__guidance': 3.0, 'checkpoint__keep': 1}
  assert config_lib.differing(*trees(read(filled()), read(filled(), **free))) == []
  other = read(
    filled(), training__init_from='x', schedule__slope=1.0, schedule__name='line', seed=1
  )
  one, other = trees(read(filled()), other)
  names = {'training.init_from', 'schedule.slope', 'seed'}
  assert set(config_lib.differing(one, other)) == names
  assert set(config_lib.differing(other, one)) == names


def test_a_setting_that_an_earlier_version_did_not_have_is_at_its_default():
  one, earlier, other = trees(read(filled()), read(filled()), read(filled(), ema__warmup=False))
  del earlier['ema']['warmup'], earlier['seed']
  assert config_lib.differing(one, json.loads(json.dumps(earlier))) == []
  assert config_lib.differing(earlier, other) == ['ema.warmup']


def test_what_is_trained_and_how_it_is_encoded_need_not_be_said(plugin):
  config = read(filled())
  assert (config.task.name, config.codec.name) == ('denoising', 'pixels')
  refused("config.task.name: 'codin' is not one of", filled(), task__name='codin')
  refused("did you mean 'coding'?", filled(), task__name='codin')
  refused("config.codec.name: 'pixel' is not one of", filled(), codec__name='pixel')
  codec = read(filled(), codec__name='blocks', codec__slope=2.0).codec
  assert codec.build(tables().groups['codec'].table) == ('line', 10, 2.0)
  refused("config.codec.slope: 2.0 is set, but 'pixels' has no", filled(), codec__slope=2.0)


def test_what_a_task_makes_no_use_of_stays_unset():
  tree = filled()
  tree.task.name = 'coding'
  refused("config.schedule.name: 'line' is set, but the task makes no use of a schedule", tree)
  tree.schedule.name = tree.sampler.name = None
  config = read(tree)
  assert config.schedule.name == config.sampler.name == ''
  assert config.schedule.build(tables().groups['schedule'].table) is None
  assert config_lib.from_json(config_lib.to_json(config), tables()) == config
  refused('config.schedule.num_steps: 5 is set, but the task makes no', tree, schedule__num_steps=5)
  refused('config.schedule.name: unset; choose one of', tree, task__name='denoising')


def test_a_task_of_ones_own_may_leave_unset_what_it_has_no_use_for(plugin):
  groups = ('schedule', 'parameterization', 'sampler', 'loss', 'model')
  tree = filled()
  for group in groups:
    tree[group].name = None
  refused('config.model.name: unset; choose one of net', tree)
  config = read(tree, task__name='own:sort', task__args={'passes': 3})
  assert config.task.build({}) == 3
  assert [getattr(config, group).name for group in groups] == [''] * 5
  trusted = config_lib.from_json(config_lib.to_json(config), tables(), plugins=('own',))
  assert trusted == config
  refused('config.model.width: 8 is set, but the task', tree, model__width=8)
  # What it does set is read as ever, and an optimizer it cannot do without.
  tree.model.width = None
  assert read(tree, model__name='net', schedule__name='line').model.name == 'net'
  tree.optimizer.name = None
  refused('config.optimizer.name: unset; choose one of only', tree)


def test_a_record_of_format_1_says_by_its_model_what_is_trained():
  coder = {'seed': 3, 'model': {'name': 'autoencoder', 'latents': 4}, 'loss': {'name': 'elbo'}}
  denoiser = {**coder, 'model': {'name': 'unet'}}
  before = json.dumps([coder, denoiser])
  assert upgraded(coder) == {**coder, 'task': {'name': 'autoencoding'}}
  assert upgraded(denoiser) == denoiser
  dotted = dict(leaves(coder))
  assert (
    upgraded(dotted) == {**dotted, 'task.name': 'autoencoding'} == dict(leaves(upgraded(coder)))
  )
  assert upgraded(dict(leaves(denoiser))) == dict(leaves(denoiser))
  # What a tree says of its task itself, it says.
  for said in ({**coder, 'task': {'name': 'own:task'}}, {**dotted, 'task.name': 'own:task'}):
    assert upgraded(said) == said
  assert upgraded(upgraded(coder)) == upgraded(coder)
  for broken in ({}, {'model': 3}, {'model': None}):
    assert upgraded(broken) == broken
  assert json.dumps([coder, denoiser]) == before, 'what is given is left as it is'


def test_an_earlier_name_of_a_setting_is_refused_by_that_of_now():
  tree = config_lib.to_json(read(filled()))
  tree['loss'] = {**tree['loss'], 'time_law': 'uniform'}
  with pytest.raises(InputError) as refusal:
    config_lib.from_json(tree, tables())
  assert str(refusal.value) == 'config.loss.time_law: it is config.loss.timestep_distribution now'


def test_a_record_has_settings_by_the_names_that_they_had():
  before = {'seed': 3, 'loss': {'name': 'simple', 'time_law': 'uniform', 'noise_law': None}}
  loss = {'name': 'simple', 'timestep_distribution': 'uniform', 'noise_distribution': None}
  assert upgraded(before) == {'seed': 3, 'loss': loss}
  assert upgraded(dict(leaves(before))) == dict(leaves({'seed': 3, 'loss': loss}))


def test_a_record_without_task_and_codec_is_of_the_usual_ones():
  now = config_lib.to_json(read(filled()))
  earlier = {group: branch for group, branch in now.items() if group not in ('task', 'codec')}
  assert config_lib.differing(now, earlier) == config_lib.differing(earlier, now) == []
  other = config_lib.to_json(read(filled(), codec__name='blocks'))
  assert config_lib.differing(other, earlier) == ['codec.name']
  assert config_lib.from_json(earlier, tables()) == read(filled())


def test_a_model_and_a_task_that_do_not_fit_name_the_mend():
  """And a schedule where an autoencoder is trained, which has none."""
  get = {path.stem: runpy.run_path(str(path))['get_config'] for path in CONFIGS}
  denoiser, coder = get['digits'](), get['digits_vae']()
  cases = (
    (
      denoiser,
      {'model.name': 'autoencoder'},
      "config.model.name: 'autoencoder' removes no noise; set config.task.name=autoencoding",
    ),
    (
      coder,
      {'model.name': 'mlp'},
      "config.model.name: 'mlp' has no encoder and decoder; take 'autoencoder', or set "
      'config.task.name=denoising',
    ),
    (
      coder,
      {'schedule.name': 'cosine'},
      "config.schedule.name: 'cosine' is set, but the task makes no use of a schedule; leave it "
      'unset',
    ),
  )
  for tree, changes, words in cases:
    tree = tree.copy_and_resolve_references()
    tree.update_from_flattened_dict(changes)
    with pytest.raises(InputError) as error:
      make_task(build(config_lib.from_config_dict(tree, changes)))
    assert words in str(error.value) and '\n' not in str(error.value)


def test_provenance_is_json():
  record = config_lib.provenance()
  assert json.loads(json.dumps(record)) == record
  assert record['devices']['count'] == 8  # conftest simulates them


@pytest.mark.parametrize(
  ('value', 'hint', 'expected'),
  [
    (1, float, 1.0),
    (1, float | int, 1),
    (None, int | None, TypeError),
    (1.0, int, TypeError),
    (1, bool, TypeError),
    ([1, 2], tuple[int, ...], (1, 2)),
    ([1, 2], tuple[int, int, int], TypeError),
    ((1, 2), list[float], (1.0, 2.0)),
    ('x', int | tuple[str, ...], TypeError),
  ],
)
def test_fit(value, hint, expected):
  if expected is TypeError:
    with pytest.raises(TypeError):
      fit(value, hint)
  else:
    assert fit(value, hint) == expected
    assert type(fit(value, hint)) is type(expected)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_the_configs_are_whole(path):
  """Each reads, names entries of the real tables, and comes back from JSON as it was."""
  config = config_lib.from_config_dict(runpy.run_path(str(path))['get_config']())
  assert config_lib.from_json(config_lib.to_json(config)) == config
