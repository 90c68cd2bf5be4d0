r"""Starts a command as several hosts on this machine: a pod to try things on.

  python -m experiments.launch.local_pod --hosts=2 --devices=2 -- \
      experiments.train --config=configs/digits.py --workdir=runs/pod

Each host is a process of its own with simulated devices of the CPU, and they speak through the
runtime that a real pod uses. Ctrl-C or SIGTERM is handed on to all of them: they save at the same
step and end, however long it takes; a second Ctrl-C kills them. A terminal that goes away ends
nothing. Where a host dies the others are ended, and with --restarts the command is begun anew,
which goes on from the newest checkpoint. Exit code: that of the first host that failed, or 0.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags

HOSTS = flags.DEFINE_integer('hosts', 2, 'Processes.', lower_bound=1)
DEVICES = flags.DEFINE_integer('devices', 1, 'Simulated devices of each.', lower_bound=1)
RESTARTS = flags.DEFINE_integer('restarts', 0, 'Times to begin anew after a death.', lower_bound=0)
GRACE = flags.DEFINE_float('grace', 30.0, 'Seconds that hosts have to end before SIGKILL.')


class Pod:
  """The hosts' processes.

  Attributes:
    asked: whether they have been asked to end.
  """

  def __init__(self) -> None:
    self.asked = False
    self._processes: list[subprocess.Popen] = []

  def hear(self, signum: int, frame: Any) -> None:
    """The handler of Ctrl-C and SIGTERM; a scheduler may send the latter twice."""
    del frame
    again = self.asked and signum == signal.SIGINT
    self.asked = True
    self.end(signal.SIGKILL if again else signal.SIGTERM)

  def start(self, command: Sequence[str], hosts: int, devices: int) -> None:
    """Starts `python -m command…` once for each host; a port for them is found."""
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
    meet = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={hosts}'] if hosts > 1 else []
    self._processes = []
    for host in range(hosts):
      words = [*command, *meet, *([f'--process_id={host}'] if meet else [])]
      self._processes.append(
        # A session of its own: Ctrl-C reaches it through us alone.
        subprocess.Popen([sys.executable, '-m', *words], env=env, start_new_session=True)
      )
    if self.asked:
      self.end(signal.SIGTERM)  # asked meanwhile, when not all of them were there

  def wait(self, grace: float) -> int:
    """Waits for all. Where one fails unasked the others get `grace` s. The first failure's code."""
    deadline, failed = None, 0
    while self._running():
      failed = failed or self._failed()
      if failed and not self.asked:
        deadline = deadline or time.monotonic() + grace
        if time.monotonic() > deadline:
          self.end(signal.SIGKILL)
      time.sleep(0.05)
    return failed or self._failed()

  def end(self, signum: int) -> None:
    """Sends a signal to those that are still running."""
    for process in self._running():
      process.send_signal(signum)

  def _running(self) -> list[subprocess.Popen]:
    return [process for process in self._processes if process.poll() is None]

  def _failed(self) -> int:
    return next((process.returncode for process in self._processes if process.returncode), 0)


def run(command: Sequence[str], hosts: int, devices: int, restarts: int, grace: float) -> int:
  """Starts a pod, and again after a death as often as is given; its exit code."""
  pod = Pod()
  signal.signal(signal.SIGINT, pod.hear)
  signal.signal(signal.SIGTERM, pod.hear)
  signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    for left in reversed(range(restarts + 1)):
      pod.start(command, hosts, devices)
      code = pod.wait(grace)
      if code in (0, 2) or pod.asked or not left:
        break
      with contextlib.suppress(OSError):  # the terminal may have gone
        print(f'local_pod: a host ended with {code}; beginning anew', file=sys.stderr, flush=True)
  finally:
    pod.end(signal.SIGKILL)
  return code if code >= 0 else 128 - code


def main(argv: Sequence[str]) -> None:
  """The launcher."""
  if not argv[1:]:
    raise app.UsageError('after -- comes the module to run and its flags')
  sys.exit(run(argv[1:], HOSTS.value, DEVICES.value, RESTARTS.value, GRACE.value))


if __name__ == '__main__':
  app.run(main)
