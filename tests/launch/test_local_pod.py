"""The launcher of hosts on this machine, with hosts that only wait: what signals do to them."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from experiments.launch import local_pod

ROOT = pathlib.Path(__file__).parents[2]
# Ends by SIGTERM after $SAVING_<its number> seconds, and says so. It fails, the first time, where
# $FAILING is its number.
HOST = """
import os, pathlib, signal, sys, time
(number,) = [word[-1] for word in sys.argv if word.startswith('--process_id')]
def stop(*_):
  time.sleep(float(os.environ.get('SAVING_' + number, 0)))
  pathlib.Path('saved-' + number).touch()
  os._exit(143)
signal.signal(signal.SIGTERM, stop)
with open('begun-' + number, 'a') as begun:
  print(os.getpid(), file=begun, flush=True)
if os.environ.get('FAILING') == number and not os.path.exists('failed'):
  pathlib.Path('failed').touch()
  sys.exit(1)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path):
  """Starts two hosts; returns the launcher once both run."""
  (tmp_path / 'host.py').write_text(HOST)
  launchers = []

  def begin(*flags, stderr=None, **variables):
    launcher = subprocess.Popen(
      [sys.executable, '-m', 'experiments.launch.local_pod', *flags, '--', 'host'],
      cwd=tmp_path,
      env={**os.environ, 'PYTHONPATH': f'{tmp_path}{os.pathsep}{ROOT}', **variables},
      stderr=stderr,
    )
    launchers.append(launcher)
    until(lambda: all(starts(tmp_path)))
    return launcher

  yield begin
  for launcher in launchers:
    launcher.kill()
  for pid in itertools.chain(*starts(tmp_path)):
    if running(pid):
      os.kill(pid, signal.SIGKILL)


def starts(folder):
  """The process numbers of each host's starts."""
  files = [folder / f'begun-{host}' for host in (0, 1)]
  return [[int(pid) for pid in file.read_text().split()] if file.exists() else [] for file in files]


def running(pid):
  """Whether there is such a process; one that has ended and is not waited for is none."""
  stat = pathlib.Path('/proc', str(pid), 'stat')
  return stat.exists() and stat.read_text().rpartition(')')[2].split()[0] != 'Z'


def until(sign):
  deadline = time.monotonic() + 30
  while not sign():
    assert time.monotonic() < deadline
    time.sleep(0.02)


def saved(folder):
  return sorted(path.name for path in folder.glob('saved-*'))


def test_a_stop_leaves_each_host_the_time_to_save(start, tmp_path):
  launcher = start('--grace=0.1', SAVING_0='1')
  launcher.send_signal(signal.SIGINT)
  assert launcher.wait(20) == 143
  assert saved(tmp_path) == ['saved-0', 'saved-1']


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_kills(start, tmp_path):
  launcher = start(SAVING_0='60', SAVING_1='60')
  for _ in range(2):
    launcher.send_signal(signal.SIGTERM)
    time.sleep(0.2)
  assert launcher.poll() is None and all(running(pid) for (pid,) in starts(tmp_path))
  launcher.send_signal(signal.SIGINT)
  assert launcher.wait(20) == 128 + signal.SIGKILL
  assert not any(running(pid) for (pid,) in starts(tmp_path))


def test_a_terminal_that_goes_away_ends_nothing_and_keeps_no_restart_away(start, tmp_path):
  reader, writer = os.pipe()
  os.close(reader)  # what is written there is refused
  launcher = start('--restarts=1', '--grace=0.1', stderr=writer, FAILING='1')
  os.close(writer)
  launcher.send_signal(signal.SIGHUP)
  until(lambda: [len(pids) for pids in starts(tmp_path)] == [2, 2])
  launcher.send_signal(signal.SIGTERM)
  assert launcher.wait(20) == 143
  assert saved(tmp_path) == ['saved-0', 'saved-1']


def test_a_stop_while_hosts_are_started_reaches_the_last_of_them(monkeypatch):
  begun, told = [], []

  class Host:
    returncode = None

    def __init__(self, *words, **_):
      begun.append(self)
      if len(begun) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

    def poll(self):
      return self.returncode

    def send_signal(self, signum):
      told.append((begun.index(self), signum))
      self.returncode = 128 + signum

  monkeypatch.setattr(local_pod.subprocess, 'Popen', Host)
  before = {number: signal.getsignal(number) for number in (1, 2, 15)}
  try:
    assert local_pod.run(['host'], 3, 1, 5, 1.0) == 143
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  assert {host for host, signum in told if signum == signal.SIGTERM} == {0, 1, 2}
  assert len(begun) == 3
