"""Ends a run of several hosts again and again: `make soak`; its table is in docs/pods.md.

Every round starts the training command on two hosts or, in the second half, on whatever hosts and
devices come up, and strikes at a random moment (in every third round while a checkpoint is being
written, in another third while it starts): two times in three it kills one process by SIGKILL, else
it sends SIGTERM to one or to all. Then it starts anew. In the end the run must have seen the
example sequence of one that nothing disturbed, and have its parameters: bit for bit where the hosts
stayed the same, to rounding where not.
"""

import argparse
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import numpy as np
import rich
from pod import HERE, Pod
from rich.table import Table
from tiny import shapes_of, tiny

from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.metrics import read

TOPOLOGIES = {'1x1': (1,), '1x2': (2,), '1x4': (4,), '2x1': (1, 1), '2x2': (2, 2), '4x1': (1,) * 4}
MODES = ('pmap', 'jit', 'fsdp', 'hsdp')
MOMENTS = ('training', 'the start', 'a checkpoint')
FLAGS = (
  f'--config={HERE / "tiny_config.py"}',
  '--config.loss.name=tiny:counted',
  '--config.logging.every_steps=1',
  '--config.evaluation.every_steps=100000',
  '--config.logging.preview_every_steps=100000',
  '--config.checkpoint.every_steps=100',
)


def rounds(workdir, count, kept, flags, table):
  """Strikes so many times; one row of the table for each."""
  for number in range(count):
    name = '2x1' if kept else random.choice([*TOPOLOGIES])
    mode = 'pmap' if kept else random.choice(MODES)
    devices = TOPOLOGIES[name]
    begun, before = newest(workdir), inode(workdir)
    with Pod(workdir, *flags, f'--config.parallel.mode={mode}', devices=devices, timeout=15) as pod:
      during = MOMENTS[number % len(MOMENTS)]
      if during == 'the start':
        time.sleep(random.uniform(0, 8))
      else:
        # A run that goes on begins by cutting the file, which is then another one.
        pod.when(lambda old=before: inode(workdir) not in (None, old))
        pod.when(lambda start=begun: reached(workdir) > start)
      if during == 'a checkpoint':
        pod.when(lambda: any((workdir / 'checkpoints').glob('*tmp*')))
      elif during == 'training':
        time.sleep(random.uniform(0, 4))
      signum, victims = strike(number, len(devices))
      clock = time.monotonic()
      for victim in victims:
        pod.signal(victim, signum)
      codes = pod.wait()
      seconds = time.monotonic() - clock
    cut = inode(workdir) not in (None, before)  # or its last lines are of the round before
    at, left = reached(workdir) if cut else begun, newest(workdir)
    told = (signum.name, codes, at, left, pod.outputs())
    assert 0 not in codes, told
    if signum == signal.SIGKILL:
      assert codes[victims[0]] == -signal.SIGKILL, told
    elif during != 'the start':
      assert codes == [143] * len(devices) and at == left, told
    struck = victims[0] if len(victims) == 1 else 'all'
    row = [len(table.rows) + 1, name, mode, begun, at, during, signum.name, struck]
    row += [f'{seconds:.1f}', at - left]
    table.add_row(*map(str, row))
    print(*row, flush=True)


def strike(number, hosts):
  """The signal of a round and the hosts that get it: each third one SIGTERM, at every moment."""
  one = [random.randrange(hosts)]
  if (number + number // len(MOMENTS)) % 3 != 2:
    return signal.SIGKILL, one
  return signal.SIGTERM, random.choice([one, range(hosts)])


def reached(workdir):
  """The last step that metrics.jsonl tells of."""
  return max((row['step'] for row in read(workdir / 'metrics.jsonl')), default=0)


def inode(workdir):
  """Which file metrics.jsonl is; None where there is none."""
  path = workdir / 'metrics.jsonl'
  return path.stat().st_ino if path.exists() else None


def newest(workdir):
  """The step of the newest whole checkpoint."""
  folder = workdir / 'checkpoints'
  return max((int(path.name) for path in folder.glob('*') if path.name.isdigit()), default=0)


def finish(workdir, flags, devices=(1, 1)):
  """Trains to the end, undisturbed."""
  with Pod(workdir, *flags, devices=devices) as pod:
    assert pod.wait(1800) == [0] * len(devices), pod.outputs()


def examples(workdir):
  """(step, mean index, mean checksum) of every step."""
  return [
    (row['step'], row['index'], row['checksum'])
    for row in read(workdir / 'metrics.jsonl')
    if 'index' in row
  ]


def params(workdir):
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    like = shapes_of(tiny())
    return jax.tree.leaves(checkpoints.restore(checkpoints.latest_step(), like)[0].params)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=30)
  parser.add_argument('--steps', type=int, default=20_000)
  parser.add_argument('--seed', type=int, default=0)
  asked = parser.parse_args()
  random.seed(asked.seed)
  flags = (*FLAGS, f'--config.training.num_steps={asked.steps}')
  table = Table(
    *('round', 'hosts x devices', 'mode', 'from step', 'struck at', 'during', 'by', 'host'),
    *('all ended after, s', 'steps lost'),
  )
  with tempfile.TemporaryDirectory() as folder:
    whole, kept, moved = (pathlib.Path(folder, name) for name in ('whole', 'kept', 'moved'))
    finish(whole, flags)
    rounds(kept, asked.rounds // 2, True, flags, table)
    finish(kept, flags)
    rounds(moved, asked.rounds - asked.rounds // 2, False, flags, table)
    finish(moved, flags)
    rich.print(table)
    expected, sequence = params(whole), examples(whole)
    assert len(sequence) == asked.steps
    found = {
      'kept: example sequence identical': examples(kept) == sequence,
      'kept: parameters bit-identical': all(map(np.array_equal, params(kept), expected)),
      'moved: example sequence identical': examples(moved) == sequence,
    }
    apart = max(float(np.abs(a - b).max()) for a, b in zip(params(moved), expected, strict=True))
  for line, true in found.items():
    print(f'{line}: {true}')
  print(f'moved: parameters differ by at most {apart:.1e}')
  sys.exit(not all(found.values()))


if __name__ == '__main__':
  main()
