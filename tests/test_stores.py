"""What people name: on a disk, in a bucket, or refused before a folder of that name is made."""

import ast
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

from ddpm_jax import stores
from ddpm_jax.errors import InputError
from ddpm_jax.files import check_writable, read_json, refusal, whole, write_json
from ddpm_jax.stores import is_store, on_disk, path_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
REFUSED = {
  's3://b/run': r'not served \(gs:// is\); mount it \(as by mount-s3\) and name the folder',
  'az://b/run': 'as by blobfuse2',
  'hf://b/run': 'not served',
  'foo://b/run': 'not served .*; mount it and name',
  'file:///srv/run': 'give the path alone',
  'gs:/b/run': 'names no bucket',
  'gs:///run': 'names no bucket',
  '/gs/b/run': 'takes for gs://b/run; mount the bucket elsewhere',
}


@pytest.mark.parametrize('path', REFUSED)
def test_what_nothing_serves_is_refused_in_a_line_with_its_mend(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for use in (path_of, lambda path, field: write_json(path, {})):
    with pytest.raises(InputError, match=REFUSED[path]) as caught:
      use(path, '--workdir')
    assert f"'{path}'" in str(caught.value) and '\n' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_a_path_means_what_it_says():
  assert os.fspath(path_of('runs/a', '--workdir')) == 'runs/a'
  assert os.fspath(path_of('~/a', '--workdir')) == os.path.expanduser('~/a')
  found = path_of('gs://b/run', '--workdir')
  assert os.fspath(found / 'x') == os.fspath(path_of(found / 'x', '--workdir')) == 'gs://b/run/x'
  assert is_store(found) and not is_store(path_of('C:/a', '--workdir'))
  with pytest.raises(InputError, match='--workdir: .*object store, not on a disk; mount it .*gcsf'):
    on_disk('gs://b/run', '--workdir')


def test_without_its_package_a_store_names_the_extra(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError) as caught:
    path_of('gs://b/run', '--workdir')
  assert str(caught.value) == (
    "--workdir: 'gs://b/run' needs the package gcsfs: pip install 'ddpm_jax[gcs]'"
  )


def test_an_object_is_there_whole_or_as_it_was(store, bucket):
  path = path_of(f'{bucket}/new/a.json', 'path')
  write_json(path, {'a': 1})
  assert read_json(path) == {'a': 1} and list(path.parent.iterdir()) == [path]

  def fail():
    with whole(path) as part:
      part.write_text('half')
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    fail()
  assert read_json(path) == {'a': 1}
  big = os.urandom(2**23)
  with whole(path) as part:
    part.write_bytes(big)
  assert path.read_bytes() == big


def test_a_bucket_that_is_not_there_or_not_ours_is_named(store, bucket):
  with pytest.raises(InputError, match='^--out: gs://typo/a cannot be written .no such bucket'):
    check_writable(path_of('gs://typo/a', '--out'), '--out')
  store.refuse = lambda method, name: 403
  with pytest.raises(InputError, match=f'^--out: {bucket} cannot be written .*[Ff]orbidden'):
    check_writable(path_of(bucket, '--out'), '--out')
  with pytest.raises(InputError, match=f'^--out: {bucket} cannot be reached'):
    stores.check_reached(path_of(bucket, '--out'), '--out')
  with pytest.raises(OSError, match='orbidden') as caught:
    write_json(f'{bucket}/a.json', {})
  assert refusal(caught.value).startswith(f'{bucket}/a.json: ')
  store.refuse = lambda method, name: None
  check_writable(path_of(bucket, '--out'), '--out')
  assert not any(bucket.removeprefix('gs://bucket/') in name for name in store.objects)


# Who makes a path without `path_of`: of nothing that people name, or of what has gone through it.
MADE = {
  ('config/origin.py', 'git_revision'): 'of this package',
  ('config/sources.py', '<module>'): 'of this package',
  ('config/sources.py', 'digest'): 'of a module',
  ('config/sources.py', 'is_local'): 'of a module',
  ('data/fetched.py', 'copied'): 'in the cache',
  ('data/image_folder.py', 'files_under'): 'what on_this_host gives',
  ('data/image_folder.py', 'folder'): 'what on_this_host gives',
  ('data/image_folder.py', 'walk'): 'below what on_this_host gives',
  ('experiments/cli.py', 'load'): 'of configs/',
  ('files.py', 'whole'): 'a part, on a disk',
  ('logs.py', 'log_of'): 'below what path_of gives; of a store, on a disk',
  ('stores.py', 'path_of'): 'itself',
  ('training/backend.py', 'prepare'): 'of the cache',
}
MAKERS = {'pathlib.Path', 'epath.Path', 'Path', 'os.makedirs', 'os.mkdir'}


def makers(tree, owner='<module>'):
  """The functions that make a path, or a folder by a path's words."""
  for node in ast.iter_child_nodes(tree):
    inner = node.name if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else owner
    if isinstance(node, ast.Call) and ast.unparse(node.func) in MAKERS:
      yield inner
    yield from makers(node, inner)


def test_what_people_name_becomes_a_path_in_one_place():
  files = [path for room in ('ddpm_jax', 'experiments') for path in (ROOT / room).rglob('*.py')]
  found = {
    (re.sub(r'^ddpm_jax/', '', path.relative_to(ROOT).as_posix()), owner)
    for path in files
    for owner in makers(ast.parse(path.read_text()))
  }
  assert len(files) > 100 and found == set(MADE)


FOLDERS = {
  'train': ('--config=configs/digits.py', '--workdir={}'),
  'train, checkpoints': (
    '--config=configs/digits.py',
    '--workdir=run',
    '--config.checkpoint.folder={}',
  ),
  'sample': ('--workdir={}',),
  'evaluate': ('--workdir={}',),
  'ablate': ('--workdir={}',),
  'tradeoff': ('--workdir={}',),
  'benchmarks.exactness': ('--workdir={}',),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', FOLDERS)
def test_every_command_refuses_it_and_makes_nothing(case, tmp_path):
  flags = [flag.format('s3://b/run') for flag in FOLDERS[case]]
  (tmp_path / 'configs').symlink_to(ROOT / 'configs')
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{case.partition(",")[0]}', *flags],
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
  assert flags[-1].split('=')[0].removeprefix('--config.') in done.stderr
  assert 'not served' in done.stderr
  assert [path.name for path in tmp_path.iterdir()] == ['configs']
