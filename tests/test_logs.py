import logging
import os
import pathlib
import re
import subprocess
import sys

import pytest

from ddpm_jax import logs
from ddpm_jax.errors import Interrupted

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def log(tmp_path):
  """The file of an open log."""
  path = tmp_path / 'logs' / 'host-0.txt'
  logs.open_log(path)
  yield path
  logs.close_log()


def told(path):
  """The lines of a log without their times."""
  lines = path.read_text().splitlines()
  assert all(re.match(r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}  ', line) for line in lines)
  return [line.split('  ', 1)[1] for line in lines]


def test_a_log_has_what_is_said_noted_and_warned_of_and_goes_on_where_it_was(log, capsys):
  logs.say('said')
  logs.note('noted')
  logging.getLogger('another.library').warning('warned')
  assert told(log) == ['said', 'noted', 'warned']
  assert capsys.readouterr().out == 'said\n'
  logs.close_log()
  logs.note('to nobody')
  logs.open_log(log)
  logs.note('again')
  assert told(log) == ['said', 'noted', 'warned', 'again']


def test_each_line_is_closed_with_its_file_as_a_mounted_bucket_wants(log):
  logs.note('one')
  log.rename(log.with_name('before.txt'))
  logs.note('two')  # would follow a file that is open
  assert told(log) == ['two']


def test_the_last_word_is_what_ended_the_work(tmp_path):

  @logs.kept()
  def work(name, error):
    logs.open_log(tmp_path / name)
    raise error

  with pytest.raises(Interrupted):
    work('log.txt', Interrupted(15, 'saved at\nstep 3'))
  assert told(tmp_path / 'log.txt') == ['saved at step 3']
  with pytest.raises(KeyError):
    work('other.txt', KeyError('a mistake'))
  assert (tmp_path / 'other.txt').read_text().rstrip().endswith("KeyError: 'a mistake'")
  logs.note('to nobody')
  assert told(tmp_path / 'log.txt') == ['saved at step 3']


def test_a_log_that_cannot_be_written_is_told_of_and_ends_nothing(tmp_path, capfd):
  (tmp_path / 'file').touch()
  logs.open_log(tmp_path / 'file' / 'host-0.txt')
  assert 'host-0.txt: left out, as it cannot be written' in capfd.readouterr().out
  (tmp_path / 'full').symlink_to('/dev/full')
  with logs.kept():
    logs.open_log(tmp_path / 'full')
    logs.say('said')
  assert capfd.readouterr() == ('said\n', '')


def broken_pipe():
  """A stream that nobody reads any more."""
  reader, writer = os.pipe()
  os.close(reader)
  return os.fdopen(writer, 'w')


def hung_up():
  """The terminal of a connection that is lost."""
  master, terminal = os.openpty()
  os.close(master)
  return os.fdopen(terminal, 'w')


@pytest.mark.parametrize('make', [broken_pipe, hung_up])
def test_a_terminal_that_goes_away_is_told_of_once_and_writing_goes_on(log, make):
  with make() as stream:
    terminal = logs.Terminal(stream)
    for _ in range(3):
      print('a line', file=terminal, flush=True)
    os.write(stream.fileno(), b'of a library')
    assert terminal.encoding == stream.encoding
  (line,) = told(log)
  assert 'has gone' in line


CLOSED = """
import os, signal, sys
from ddpm_jax import logs
logs.outlive_terminal()
with open(sys.argv[1], 'w') as file:
  print('nowhere', flush=True)
  print('nowhere', file=sys.stderr, flush=True)
  os.write(1, b'nowhere')
  os.write(2, b'nowhere')
  os.kill(os.getpid(), signal.SIGHUP)
  file.write('alone')
"""


def test_without_a_terminal_no_file_gets_what_is_meant_for_it(tmp_path):
  """The number of a closed stream goes to the next file that is opened."""
  path = tmp_path / 'file'
  command = f"exec '{sys.executable}' -c \"$0\" '{path}' >&- 2>&-"
  done = subprocess.run(['bash', '-c', command, CLOSED], cwd=ROOT)
  assert (done.returncode, path.read_text()) == (0, 'alone')


def test_a_log_is_in_the_folder_of_its_run_or_where_that_is_none_on_the_disk(tmp_path):
  assert logs.log_of(tmp_path, 3) == tmp_path / 'logs' / 'host-3.txt'
  path = logs.log_of('gs://bucket/a/run', 1)
  assert path.is_absolute() and path.parts[-5:] == ('bucket', 'a', 'run', 'logs', 'host-1.txt')
