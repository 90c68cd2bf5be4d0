"""What is timed of training: the program of a step, the whole loop, and the input alone."""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import time
from typing import Any, NamedTuple

import jax
from etils import epath

from ddpm_jax.config import Config
from ddpm_jax.evaluation.pace import Bare
from ddpm_jax.tasks import train
from ddpm_jax.training.job import Job
from ddpm_jax.training.loop import read_stream
from experiments.benchmarks.flops import count_flops

NEVER = sys.maxsize


class Program(NamedTuple):
  """What the compiler says of the step.

  Attributes:
    compile_seconds: tracing left out.
    flops: of one step on all devices, counted by `count_flops`.
    xla_flops: XLA's own count, on one device; None where it has none.
    bytes: of state, batch and temporaries on one device; None where XLA does not say.
  """

  compile_seconds: float
  flops: int
  xla_flops: float | None
  bytes: int | None


def compile_step(bare: Bare) -> Program:
  """Compiles the step; the call after it takes the program from the cache."""
  lowered = bare.step.lower(*bare.arguments)
  start = time.perf_counter()
  compiled = lowered.compile()
  seconds = time.perf_counter() - start
  cost, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
  return Program(
    compile_seconds=seconds,
    flops=count_flops(bare.step, *bare.arguments),
    xla_flops=cost.get('flops'),
    bytes=memory and _total(memory),
  )


def _total(memory: Any) -> int:
  """Arguments, results and temporaries; a donated argument shares its bytes with a result."""
  return (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
    + memory.temp_size_in_bytes
  )


class Loop:
  """The training loop itself, `tasks.train`, in a folder of its own.

  It goes by pairs of blocks: one without a checkpoint, and one with a checkpoint in its middle,
  which ends when its steps are done and the checkpoint is whole. So a checkpoint's full cost is
  known, and can be shared out over as many steps as it serves. Each block logs at least once;
  held-out losses and previews, which are work of their own, are left out.
  """

  def __init__(self, config: Config, workdir: epath.Path, steps: int, blocks: int):
    """Starts the loop; `steps` is a block's length, at least 2."""
    self._steps, self._done = steps, 0
    self._every = config.checkpoint.every_steps
    self._checkpoints = workdir / 'checkpoints'
    self._stream = train.steps(loop_config(config, steps, 2 * steps * (blocks + 1)), workdir)
    # Half a block compiles and warms up, which puts the checkpoints, every second block's length,
    # in the middle of the blocks that hold one.
    self._advance(-(-steps // 2))

  def __call__(self) -> float:
    """Seconds for a block, with its share of a checkpoint."""
    plain = self._block()
    return plain + (self._block(saves=True) - plain) * self._steps / self._every

  def close(self) -> None:
    """Stops the loop."""
    self._stream.close()

  def _block(self, saves: bool = False) -> float:
    start = time.perf_counter()
    self._advance(self._steps)
    if saves:
      self._await_checkpoint(self._done - self._done % (2 * self._steps))
    return time.perf_counter() - start

  def _advance(self, steps: int) -> None:
    for _ in range(steps):
      self._done, self._state = next(self._stream)
    jax.block_until_ready(self._state)

  def _await_checkpoint(self, step: int, seconds: float = 300.0) -> None:
    """A checkpoint has its name only when all of it is written."""
    whole = self._checkpoints / str(step)
    deadline = time.monotonic() + seconds
    while not whole.exists():
      if time.monotonic() > deadline:
        raise TimeoutError(f'{whole} has not appeared in {seconds:.0f} s')
      time.sleep(0.001)


def loop_config(config: Config, steps: int, total: int) -> Config:
  """The config of a loop that saves in every other block and outlasts `total` steps."""
  change = dataclasses.replace
  return change(
    config,
    training=change(config.training, num_steps=max(config.training.num_steps, total + 1)),
    checkpoint=change(config.checkpoint, every_steps=2 * steps),
    evaluation=change(config.evaluation, every_steps=NEVER),
    logging=change(
      config.logging,
      every_steps=min(config.logging.every_steps, steps),
      preview_every_steps=NEVER,
    ),
  )


class InputRates(NamedTuple):
  """Images per second from the data set to the devices, with nothing else to do.

  Attributes:
    first: where they are read for the first time.
    again: the same ones once more: from memory where the split fits into it.
  """

  first: float
  again: float


def input_rates(job: Job, seconds: float = 3.0) -> InputRates:
  """Reads for so long, or one epoch, and the same again."""
  stream: Any = read_stream(job)
  beginning = stream.get_state()
  size = job.config.dataset.batch_size
  epoch = max(1, len(job.dataset.train) // size)

  def read(most: int, seconds: float) -> tuple[int, float]:
    start, number, elapsed = time.perf_counter(), 0, 0.0
    while number < most and elapsed < seconds:
      jax.block_until_ready(job.parallel.place_batch(next(stream)))
      number, elapsed = number + 1, time.perf_counter() - start
    return number, elapsed

  number, first = read(epoch, seconds)
  stream.set_state(beginning)
  _, again = read(number, math.inf)
  stream.close()
  return InputRates(number * size / first, number * size / again)


def peak_memory() -> tuple[int, str]:
  """Bytes, and what they are: the most on one device, or the process's where devices don't say."""
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  peak = max(row.get('peak_bytes_in_use', 0) for row in stats)
  if peak:
    return peak, 'of a device'
  unit = 1 if sys.platform == 'darwin' else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, 'of the process'
