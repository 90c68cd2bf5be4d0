"""A file is there whole or not at all."""

import ast
import contextlib
import errno
import json
import math
import os
import pathlib
import resource

import numpy as np
import pytest

from ddpm_jax.ablation.figures import Panel
from ddpm_jax.ablation.figures import write_png as write_panels
from ddpm_jax.ablation.page import write_page
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.sampling import Samples, save_samples
from ddpm_jax.files import check_writable, read_json, refusal, whole, write_json
from ddpm_jax.training.pictures import write_gif, write_png

ROOT = pathlib.Path(__file__).resolve().parents[1]
NOISE = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
WRITERS = {
  'a.json': lambda path: write_json(path, list(range(1000))),
  'a.png': lambda path: write_png(path, NOISE[0]),
  'a.gif': lambda path: write_gif(path, NOISE),
  'a.npz': lambda path: save_samples(path, Samples(NOISE, None, {})),
  'a.html': lambda path: write_page(path, 1000 * 'page '),
  'bars.png': lambda path: write_panels(path, [Panel('a', 'a', lambda axes, _: axes.plot([1]))]),
}


@contextlib.contextmanager
def no_room(size=1000):
  """No file may grow beyond so many bytes: a write fails as on a full disk, with EFBIG."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_appears_when_it_is_whole(tmp_path):
  target = tmp_path / 'new' / 'a.json'
  with whole(target) as part:
    assert part.suffix == '.json'
    part.write_text('all of it')
    assert not target.exists()
  assert target.read_text() == 'all of it'
  assert [path.name for path in target.parent.iterdir()] == ['a.json']


def test_a_failed_write_leaves_what_was_there(tmp_path):
  target = tmp_path / 'a.json'
  target.write_text('before')

  def fail():
    with whole(target) as part:
      part.write_text('half')
      raise OSError('disk full')

  with pytest.raises(OSError, match='full'):
    fail()
  assert target.read_text() == 'before'
  assert [path.name for path in tmp_path.iterdir()] == ['a.json']


@pytest.mark.parametrize('name', WRITERS)
def test_a_full_disk_leaves_what_was_there_and_is_named(tmp_path, name):
  target = tmp_path / name
  target.write_bytes(b'before')
  with no_room(), pytest.raises(OSError, match=name) as caught:
    WRITERS[name](target)
  assert caught.value.filename == str(target)
  line = refusal(caught.value)
  assert line.startswith(str(target)) and 'make room' in line
  assert target.read_bytes() == b'before'
  assert list(tmp_path.iterdir()) == [target]
  WRITERS[name](target)
  assert target.read_bytes() != b'before'


# What writes otherwise, and how that is whole.
APART = {
  ('ablation/figures.py', 'savefig'),  # into memory
  ('ablation/cell.py', 'open'),  # a lock
  ('ablation/runners.py', 'open'),  # a log, to which lines are added
  ('training/metrics.py', 'open'),  # likewise
  ('ddpm_jax/logs.py', 'open'),  # likewise
  ('ddpm_jax/stores.py', 'write_bytes'),  # an object, which is whole by itself
  ('training/checksums.py', 'write_text'),  # in a checkpoint, which Orbax moves when it is whole
}
WRITES = {'write_text', 'write_bytes', 'savefig', 'savez', 'savez_compressed', 'imsave', 'dump'}


def writes(tree, inside=False):
  """The names of the calls that write a file, outside of `with whole(…) as part`."""
  for node in ast.iter_child_nodes(tree):
    opened = isinstance(node, ast.With) and any('whole(' in ast.unparse(i) for i in node.items)
    yield from writes(node, inside or opened)
    if inside or not isinstance(node, ast.Call):
      continue
    name = getattr(node.func, 'attr', getattr(node.func, 'id', ''))
    modes = [part.value for part in node.args if isinstance(part, ast.Constant)]
    opens = name == 'open' and any(set(str(mode)) & set('wax') for mode in modes[-1:])
    if name in WRITES or opens:
      yield name


def test_every_file_is_written_whole():
  files = [path for room in ('ddpm_jax', 'experiments') for path in (ROOT / room).rglob('*.py')]
  found = {
    ('/'.join(path.parts[-2:]), name)
    for path in files
    for name in writes(ast.parse(path.read_text()))
  }
  assert len(files) > 100
  assert found - APART == set()


def test_json_has_null_for_what_is_not_finite(tmp_path):
  write_json(tmp_path / 'a.json', {'a': [math.nan, (1.5, -math.inf)], 'b': np.float64('nan')})

  def strict(word):
    raise AssertionError(f'{word} is no JSON')

  found = json.loads((tmp_path / 'a.json').read_text(), parse_constant=strict)
  assert found == {'a': [None, [1.5, None]], 'b': None}
  assert read_json(tmp_path / 'a.json') == found


@pytest.mark.parametrize('content', [None, b'{"a": 1', b'\xff\xfe', b'[' * 100_000])
def test_a_torn_file_is_named(tmp_path, content):
  if content is not None:
    (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(InputError, match='a.json: cannot be read'):
    read_json(tmp_path / 'a.json')


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
  check_writable(tmp_path / 'new', '--out')
  assert list((tmp_path / 'new').iterdir()) == []
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='^--out: .*file/below cannot be written'):
    check_writable(tmp_path / 'file' / 'below', '--out')
  with pytest.raises(InputError, match='^--out: .* cannot be written .File name too long'):
    check_writable(tmp_path, '--out', 300 * 'a' + '.npz')
  with no_room(), pytest.raises(InputError, match='^--out: .* cannot be written'):
    check_writable(tmp_path / 'new', '--out')


def test_a_disk_is_blamed_for_what_it_refuses_alone():
  read_only = OSError(errno.EROFS, os.strerror(errno.EROFS), 'a.json')
  assert refusal(read_only) == 'a.json: Read-only file system; name a folder that can be written'
  assert refusal(FileNotFoundError(errno.ENOENT, 'no such file', 'a.json')) is None
  assert refusal(OSError('encoder error')) is None
