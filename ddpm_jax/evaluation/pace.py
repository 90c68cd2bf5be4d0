"""How long a compiled training step takes."""

from __future__ import annotations

import collections
import math
import time
from typing import Any

import jax

from ddpm_jax.training.advance import make_step
from ddpm_jax.training.job import Job
from ddpm_jax.training.loop import read_stream
from ddpm_jax.training.state import new_state

AHEAD = 2  # steps, as in metrics.Window


class Bare:
  """The compiled step alone: one batch that stays on the devices, the state carried along."""

  def __init__(self, job: Job):
    parallel = job.parallel
    self.step: Any = parallel.compile(make_step(job))
    self._state = parallel.place_state(new_state(job.task, job.config))
    self._frozen = parallel.place_state(job.frozen)
    self._batch = parallel.place_batch(next(read_stream(job)))

  @property
  def arguments(self) -> tuple[Any, Any, Any]:
    """What the step is called with next: state, frozen, batch."""
    return self._state, self._frozen, self._batch

  def __call__(self, steps: int) -> float:
    """Seconds for so many steps."""
    start = time.perf_counter()
    # The host runs no further ahead than it does in the loop.
    ahead: collections.deque[Any] = collections.deque()
    for _ in range(steps):
      self._state, metrics = self.step(*self.arguments)
      ahead.append(metrics)
      if len(ahead) > AHEAD:
        jax.block_until_ready(ahead.popleft())
    jax.block_until_ready(self._state)
    return time.perf_counter() - start


def block_length(step_seconds: float, block_seconds: float = 1.5) -> int:
  """Steps that take at least `block_seconds`, and two at least."""
  return max(2, math.ceil(block_seconds / step_seconds))
