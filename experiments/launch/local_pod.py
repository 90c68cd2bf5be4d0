r"""Starts a command as several hosts on this machine: a pod to try things on.

  python -m experiments.launch.local_pod --hosts=2 --devices=2 -- \
      experiments.train --config=configs/digits.py --workdir=runs/pod

Each host is a process of its own with simulated devices of the CPU, and they speak through the
runtime that a real pod uses. Ctrl-C or SIGTERM is handed on to all of them: they save at the same
step and end. Where one dies the others are ended, and with --restarts the command is begun anew,
which goes on from the newest checkpoint. Exit code: that of the first host that failed, or 0.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

HOSTS = flags.DEFINE_integer('hosts', 2, 'Processes.', lower_bound=1)
DEVICES = flags.DEFINE_integer('devices', 1, 'Simulated devices of each.', lower_bound=1)
RESTARTS = flags.DEFINE_integer('restarts', 0, 'Times to begin anew after a death.', lower_bound=0)
GRACE = flags.DEFINE_float('grace', 30.0, 'Seconds that hosts have to end before SIGKILL.')


def start(command: Sequence[str], hosts: int, devices: int) -> list[subprocess.Popen]:
  """Starts `python -m command…` once for each host; a port for them is found."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}
  meet = [f'--coordinator=127.0.0.1:{port}', f'--num_processes={hosts}'] if hosts > 1 else []
  return [
    subprocess.Popen(
      [sys.executable, '-m', *command, *meet, *([f'--process_id={host}'] if meet else [])],
      env=env,
      start_new_session=True,  # Ctrl-C reaches them through us alone
    )
    for host in range(hosts)
  ]


def wait(processes: Sequence[subprocess.Popen], grace: float) -> int:
  """Waits for all; where one fails the others get `grace` seconds. The first failure's code."""
  failed = 0
  while any(process.poll() is None for process in processes):
    codes = [process.poll() for process in processes]
    failed = next((code for code in codes if code), 0)
    if failed:
      break
    time.sleep(0.05)
  deadline = time.monotonic() + grace
  while failed and any(process.poll() is None for process in processes):
    if time.monotonic() > deadline:
      end(processes, signal.SIGKILL)
    time.sleep(0.05)
  return failed or next((process.returncode for process in processes if process.returncode), 0)


def end(processes: Sequence[subprocess.Popen], signum: int) -> None:
  """Sends a signal to those that are still running."""
  for process in processes:
    if process.poll() is None:
      process.send_signal(signum)


def main(argv: Sequence[str]) -> None:
  """The launcher."""
  command = argv[1:]
  if not command:
    raise app.UsageError('after -- comes the module to run and its flags')
  asked = []
  for attempt in range(RESTARTS.value + 1):
    processes = start(command, HOSTS.value, DEVICES.value)

    def hand_on(signum, frame, processes=processes):
      del signum, frame
      asked.append(True)
      end(processes, signal.SIGTERM)

    signal.signal(signal.SIGINT, hand_on)
    signal.signal(signal.SIGTERM, hand_on)
    code = wait(processes, GRACE.value)
    if code == 0 or asked or code == 2 or attempt == RESTARTS.value:
      break
    print(f'local_pod: a host ended with {code}; beginning anew', file=sys.stderr, flush=True)
  sys.exit(code if code >= 0 else 128 - code)


if __name__ == '__main__':
  app.run(main)
