"""A real Slurm of one node, of one's own: pretended CPUs and GPUs, ports of its own, in a folder.

`Slurm.missing()` says what of it is not installed (on Debian: apt install slurm-wlm munge).
"""

import contextlib
import getpass
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'scancel', 'scontrol')
GPUS = 8

# A job that is preempted in `graceful` has a minute to end by itself; one in `abrupt` is ended and
# requeued by Slurm. cred_expire: a requeued job waits no longer than so many seconds.
CONFIG = """
ClusterName=one
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=64 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=graceful Nodes=localhost Default=YES PriorityTier=1 GraceTime=60
PartitionName=abrupt Nodes=localhost PriorityTier=1
PartitionName=urgent Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""


def missing():
  """The programs of Slurm that are not installed."""
  return [name for name in PROGRAMS if not shutil.which(name, path=path())]


def path():
  """Where programs are, those of administrators included."""
  return os.pathsep.join([os.environ['PATH'], '/usr/sbin', '/sbin'])


class Slurm:
  """The daemons; a context manager that leaves none behind.

  Args:
    folder: for all of their files; not deep, since the path of a socket is short.
  """

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)
    self.environment = {**os.environ, 'PATH': path(), 'SLURM_CONF': f'{folder}/slurm.conf'}
    self._ends = contextlib.ExitStack()

  def __enter__(self):
    for name in ('state', 'spool'):
      (self.folder / name).mkdir()
    (self.folder / 'key').write_bytes(secrets.token_bytes(1024))
    (self.folder / 'key').chmod(0o600)
    for gpu in range(GPUS):
      (self.folder / f'gpu{gpu}').touch()
    (self.folder / 'gres.conf').write_text(f'Name=gpu File={self.folder}/gpu[0-{GPUS - 1}]\n')
    names = {'folder': self.folder, 'user': getpass.getuser(), 'gpus': GPUS, 'ports': free_ports(2)}
    (self.folder / 'slurm.conf').write_text(CONFIG.format(host=socket.gethostname(), **names))
    with contextlib.ExitStack() as ends:
      self._ends = ends
      files = [f'--{name}={self.folder}/{file}' for name, file in MUNGE.items()]
      self._start('munged', '--foreground', '--force', *files)
      self._until(lambda: (self.folder / 'munge.sock').exists())
      self._start('slurmctld', '-D')
      self._start('slurmd', '-D', '-N', 'localhost')
      self._until(lambda: self('sinfo', '-h', '-o', '%T', check=False).startswith('idle'))
      self._ends = ends.pop_all()
    return self

  def __exit__(self, *exception):
    with self._ends:
      user = ('--user', getpass.getuser())
      self('scancel', '--full', '--signal=KILL', *user, check=False)
      self('scancel', *user, check=False)
      self._until(lambda: not self('squeue', '--noheader', check=False))

  def _start(self, name, *words):
    with (self.folder / f'{name}.log').open('w') as log:
      daemon = subprocess.Popen(
        [shutil.which(name, path=path()), *words], env=self.environment, stdout=log, stderr=log
      )
    self._ends.callback(end, daemon)

  def _until(self, sign, seconds=30):
    deadline = time.monotonic() + seconds
    while not sign():
      assert time.monotonic() < deadline, [log.read_text() for log in self.folder.glob('*.log')]
      time.sleep(0.1)

  def __call__(self, *words, check=True, **variables):
    """What one of Slurm's commands says."""
    done = subprocess.run(
      words, env=self.environment | variables, capture_output=True, text=True, timeout=60
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()

  def job(self, number):
    """What `scontrol` knows of a job: {'JobState': 'RUNNING', …}."""
    words = self('scontrol', '--oneliner', 'show', 'job', number).split()
    return dict(word.split('=', 1) for word in words if '=' in word)


MUNGE = {
  'key-file': 'key',
  'socket': 'munge.sock',
  'pid-file': 'munged.pid',
  'log-file': 'munged.log',
  'seed-file': 'seed',
}


def end(daemon):
  """Ends a daemon."""
  daemon.terminate()
  try:
    daemon.wait(15)
  except subprocess.TimeoutExpired:
    daemon.kill()
    daemon.wait()


def free_ports(count):
  """Ports that nothing listens on."""
  with contextlib.ExitStack() as stack:
    taken = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in taken:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in taken]
