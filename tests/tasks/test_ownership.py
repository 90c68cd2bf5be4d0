"""Starts that are cut off at any instant, and two that want one folder."""

import contextlib
import errno
import fcntl
import functools
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import pytest
from quick import EVERY_STEP, make_quick, quick, start
from tiny import tiny

from ddpm_jax.errors import InputError
from ddpm_jax.tasks.identity import identify
from ddpm_jax.tasks.ownership import alone, locked, refuse_foreign
from ddpm_jax.tasks.train import steps
from ddpm_jax.training.checkpoint import whole_steps

__all__ = ['quick']

WRITES = ('os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.truncate', 'os.link', 'os.symlink')
TESTS = pathlib.Path(__file__).parents[1]


class Disk:
  """Counts what is written below a folder, and fails from the write of number `last` on.

  That is what a kill leaves on a disk, whatever handlers still run after it.
  """

  def __init__(self):
    self.folder, self.count, self.last = None, 0, None
    sys.addaudithook(self.hear)

  def hear(self, event, arguments):
    if self.folder is None or (event not in WRITES and event != 'open'):
      return
    path = os.fsdecode(arguments[0]) if isinstance(arguments[0], (str, bytes)) else ''
    writes = event in WRITES or arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if writes and path.startswith(self.folder):
      self.count += 1
      if self.last is not None and self.count > self.last:
        raise OSError('killed')

  @contextlib.contextmanager
  def below(self, folder, last=None):
    self.folder, self.count, self.last = str(folder), 0, last
    try:
      yield self
    finally:
      self.folder = None


@functools.cache
def disk():
  return Disk()


def cut_off_everywhere(folder, config):
  """Cuts a start off at each of its writes; returns how many there are."""
  with disk().below(folder / 'whole') as counted:
    assert start(folder / 'whole', config, 4) == [1, 2, 3, 4]
  for last in range(counted.count):
    workdir = folder / f'{last:03d}'
    with disk().below(workdir, last), contextlib.suppress(OSError, InputError):
      start(workdir, config, 4)
    begun = (whole_steps(workdir / 'checkpoints') or [0])[-1]
    lines = workdir / 'metrics.jsonl'
    owned = begun or (lines.exists() and lines.stat().st_size)
    with pytest.raises(InputError, match='another exper') if owned else contextlib.nullcontext():
      refuse_foreign(workdir, identify(tiny(seed=1)))
    assert start(workdir, config) == [begun + 1], last
  return counted.count


def test_a_start_cut_off_at_any_write_is_taken_up_by_the_same_command(quick, tmp_path):
  assert cut_off_everywhere(tmp_path, tiny(**EVERY_STEP)) > 10


@pytest.mark.slow
def test_so_is_one_cut_off_in_a_checkpoint():
  """In a process of its own: what Orbax leaves of a save that failed may wait for ever."""
  paths = [str(TESTS.parent), str(TESTS / 'training')]
  done = subprocess.run(
    [sys.executable, __file__],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert int(done.stdout.split()[-1]) > 60


def main():
  config = tiny(**EVERY_STEP, **{'checkpoint.every_steps': 2})
  make_quick(pytest.MonkeyPatch())
  with tempfile.TemporaryDirectory() as folder:
    print(cut_off_everywhere(pathlib.Path(folder), config), flush=True)


def test_a_refused_start_leaves_a_folder_to_any_other(tmp_path):
  with pytest.raises(InputError, match='training.init_from'):
    start(tmp_path, tiny(**{'training.init_from': '/typo'}))
  refuse_foreign(tmp_path, identify(tiny()))
  (tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp' / 'state').mkdir(parents=True)
  (tmp_path / 'samples').mkdir()
  (tmp_path / 'metrics.jsonl').touch()
  refuse_foreign(tmp_path, identify(tiny()))


HOLD = """
import filelock, sys
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print('held', flush=True)
input()
"""


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
  folder = tmp_path / 'run'
  folder.mkdir()
  command = [sys.executable, '-c', HOLD, str(folder / '.lock')]
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
    assert first.stdout.readline() == b'held\n'
    words = f'{folder}: another process is training in this folder; .* another --workdir'
    with pytest.raises(InputError, match=words), locked(folder):
      pass
    with locked(shutil.copytree(folder, tmp_path / 'copy')):
      pass
    first.kill()
    first.wait()
    with locked(folder):
      pass


def test_a_run_keeps_its_folder_to_itself_from_start_to_end(quick, tmp_path):
  config = tiny(**EVERY_STEP)
  first = steps(config, tmp_path)
  next(first)
  with pytest.raises(InputError, match='another process is training'):
    start(tmp_path, config)
  first.close()
  assert start(tmp_path, config) == [1]


def test_checkpoints_kept_elsewhere_are_one_run_s_too(tmp_path):
  workdirs = [tmp_path / name for name in 'ab']
  elsewhere = tmp_path / 'kept'
  for folder in (*workdirs, elsewhere):
    folder.mkdir()
  with alone(workdirs[0], elsewhere):
    second = alone(workdirs[1], elsewhere)
    with pytest.raises(InputError, match=f'{elsewhere}: another process'), second:
      pass
    with alone(workdirs[1], workdirs[1] / 'checkpoints'):
      pass


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch, capsys):
  def flock(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', flock)
  with locked(tmp_path):
    assert f'{tmp_path}: cannot be locked (' in capsys.readouterr().out


if __name__ == '__main__':
  main()
  os._exit(0)
