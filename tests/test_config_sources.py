"""When a plug-in's code counts as changed."""

import importlib
import sys

import pytest

from ddpm_jax.config.sources import sources

FILES = {
  'mine_a.py': (
    'import math, numpy as np, mine_b\n'
    'from mine_pkg.part import scale\n'
    'def loss(x):\n  from mine_pkg import late\n  return mine_b.twice(x) * scale\n'
  ),
  'mine_b.py': 'def twice(x):\n  """Doubles."""\n  return 2 * x  # of course\n',
  'mine_c.py': 'nobody = "imports this"\n',
  'mine_pkg/__init__.py': '',
  'mine_pkg/part.py': 'from . import deep\nfrom .deep import scale\n',
  'mine_pkg/deep.py': 'scale = 3.0\n',
  'mine_pkg/late.py': 'raise RuntimeError("imported only if it is called")\n',
  'mine_pkg/apart.py': '',
}
MODULES = {'mine_a', 'mine_b', 'mine_pkg', 'mine_pkg.part', 'mine_pkg.deep', 'mine_pkg.late'}


@pytest.fixture
def folder(tmp_path, monkeypatch):
  (tmp_path / 'mine_pkg').mkdir()
  for name, code in FILES.items():
    (tmp_path / name).write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  yield tmp_path
  for name in [name for name in sys.modules if name.startswith('mine_')]:
    del sys.modules[name]


def test_all_local_modules_are_seen_and_no_others_and_none_is_imported(folder):
  found = sources(['mine_a'])
  assert set(found) == MODULES
  assert all(len(digest) == 32 for digest in found.values())
  assert not [name for name in sys.modules if name.startswith('mine_')]


@pytest.mark.parametrize(
  ('file', 'before', 'after', 'changed'),
  [
    ('mine_a.py', '* scale', '/ scale', {'mine_a'}),
    ('mine_b.py', '2 *', '3 *', {'mine_b'}),
    ('mine_pkg/deep.py', '3.0', '3.5', {'mine_pkg.deep'}),
    ('mine_pkg/late.py', 'RuntimeError', 'ValueError', {'mine_pkg.late'}),
    ('mine_pkg/late.py', '("', '(((', {'mine_pkg.late'}),
    ('mine_pkg/__init__.py', '', 'import mine_c', {'mine_pkg', 'mine_c'}),
    ('mine_b.py', '# of course', '# as it says', set()),
    ('mine_b.py', 'Doubles.', 'Gives twice as much.', set()),
    ('mine_b.py', '  return 2 * x', '\n\n  return (2*x)', set()),
    ('mine_c.py', 'this', 'that', set()),
  ],
)
def test_what_changes_the_code_changes_its_hash(folder, file, before, after, changed):
  old = sources(['mine_a'])
  text = (folder / file).read_text()
  assert before in text
  (folder / file).write_text(text.replace(before, after, 1))
  new = sources(['mine_a'])
  assert {name for name in new if new[name] != old.get(name)} == changed


def test_a_process_goes_on_with_the_code_that_it_imported(folder):
  module = importlib.import_module('mine_b')
  old = sources(['mine_b'])
  (folder / 'mine_b.py').write_text('def twice(x):\n  return x + x\n')
  assert sources(['mine_b']) == old
  importlib.invalidate_caches()
  importlib.reload(module)
  assert sources(['mine_b']) != old


def test_of_other_peoples_modules_there_is_the_version(folder):
  found = sources(['math', 'optax', 'ddpm_jax.losses', 'nowhere_at_all', 'mine_pkg.nowhere'])
  assert found.pop('mine_pkg')
  versions = {name: version and version.split(' ')[0] for name, version in found.items()}
  assert versions == {
    'math': 'python',
    'optax': 'optax',
    'ddpm_jax.losses': 'ddpm_jax',
    'nowhere_at_all': None,
    'mine_pkg.nowhere': None,
  }
