"""The step of a job, compiled for all devices, for one batch or several at a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from ddpm_jax.data.dataset import Batch
from ddpm_jax.errors import InputError
from ddpm_jax.training.ema import decays
from ddpm_jax.training.job import Job
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import Step, make_train_step, several

Advance = Callable[[TrainState, Iterator[Batch], int], tuple[TrainState, Any]]


def make_step(job: Job) -> Step:
  """The job's training step, not yet compiled."""
  config, parallel = job.config, job.parallel
  microbatches = config.parallel.microbatches
  return make_train_step(
    job.task,
    decays=decays(config),
    ema_warmup=config.ema.warmup,
    seed=config.seed,
    mean=parallel.mean,
    gather=parallel.gather if microbatches == 1 else refuse_gather,
    microbatches=microbatches,
  )


def refuse_gather(values: Array) -> Array:
  """Stands for the `gather` of a loss where the whole batch is never there at once."""
  del values
  raise InputError(
    'config.parallel.microbatches: this loss couples all examples of a batch, which come in parts; '
    'set it to 1'
  )


def make_advance(job: Job, frozen: Any) -> Advance:
  """Makes advance(state, batches, count) -> (state, metrics): so many steps at one call."""
  step, parallel = make_step(job), job.parallel
  one, many = parallel.compile(step), parallel.compile(several(step))

  def advance(state: TrainState, batches: Iterator[Batch], count: int) -> tuple[TrainState, Any]:
    if count == 1:
      return one(state, frozen, parallel.place_batch(next(batches)))
    taken = [next(batches) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *taken)
    return many(state, frozen, parallel.place_batch(stacked, axis=1))

  return advance
