"""Starts the training command as several hosts with simulated devices; see test_pods.py."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


class Pod:
  """Processes of one pod; a context manager that leaves none behind.

  Args:
    workdir: the run's folder, which also gets a log of each host.
    flags: of all hosts.
    devices: of each host.
    own: flags of each host alone.
    timeout: --host_timeout, in seconds.
    command: the module that they run.
  """

  def __init__(
    self, workdir, *flags, devices=(1,), own=None, timeout=30, command='experiments.train'
  ):
    with socket.socket() as free:
      free.bind(('127.0.0.1', 0))
      port = free.getsockname()[1]
    self.logs, self.hosts = [], []
    hosts = len(devices)
    own = own or [()] * hosts
    self.folder = pathlib.Path(workdir).parent
    for host, count in enumerate(devices):
      words = [sys.executable, '-m', command, *flags, *own[host]]
      if not any(flag.startswith('--workdir') for flag in words):
        words.append(f'--workdir={workdir}')
      if hosts > 1:
        words += [f'--coordinator=127.0.0.1:{port}', f'--num_processes={hosts}']
        words += [f'--process_id={host}', f'--host_timeout={timeout}']
      log = self.folder / f'{pathlib.Path(workdir).name}-host-{host}.log'
      self.logs.append(log)
      path = os.pathsep.join([str(HERE), str(ROOT)])
      environment = {
        **os.environ,
        'JAX_NUM_CPU_DEVICES': str(count),
        'JAX_PLATFORMS': 'cpu',
        'PYTHONPATH': path,
      }
      with log.open('w') as file:
        process = subprocess.Popen(
          words, env=environment, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT
        )
      self.hosts.append(process)

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    for process in self.hosts:
      process.kill()
      process.wait()

  def wait(self, seconds=120):
    """The exit codes of all hosts."""
    deadline = time.monotonic() + seconds
    return [process.wait(max(1, deadline - time.monotonic())) for process in self.hosts]

  def outputs(self):
    """What each host has said."""
    return [log.read_text() for log in self.logs]

  def when(self, sign, seconds=90):
    """Waits until sign() is true."""
    deadline = time.monotonic() + seconds
    while not sign():
      assert time.monotonic() < deadline, self.outputs()
      assert all(process.poll() is None for process in self.hosts), self.outputs()
      time.sleep(0.01)

  def signal(self, host, signum=signal.SIGTERM):
    self.hosts[host].send_signal(signum)
