"""Where along the noise levels a denoiser errs: held-out error in bins of log-SNR.

The bins are the same for every path, so that networks trained on different schedules compare.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.data.dataset import Batch, Dataset
from ddpm_jax.diffusion.schedules import Discrete, Schedule, interpolate
from ddpm_jax.evaluation.batching import evenly
from ddpm_jax.keys import example_keys
from ddpm_jax.tasks.heldout import eps_errors
from ddpm_jax.tasks.run import Run

EDGES = tuple(range(-10, 11, 2))
LEVELS = 8  # in each bin

Bin = tuple[int, int]


def bins_of(schedule: Schedule, edges: tuple[int, ...] = EDGES) -> list[Bin]:
  """The bins of log-SNR, rising, that lie within those that the path takes."""
  low, high = (float(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
  return [(a, b) for a, b in itertools.pairwise(edges) if low <= a and b <= high]


def midpoints(bins: list[Bin], count: int = LEVELS) -> np.ndarray:
  """`count` log-SNRs in each bin, the middles of its equal parts: (bins · count,)."""
  shares = (np.arange(count) + 0.5) / count
  return np.array([low + (high - low) * shares for low, high in bins]).reshape(-1)


def read_between(schedule: Schedule) -> Schedule:
  """A chain in continuous time; one that ends at zero SNR as it is, read at its nearest times."""
  if not isinstance(schedule, Discrete) or not np.isfinite(schedule.log_snrs[-1]):
    return schedule
  return interpolate(schedule)


def make_bin_errors(run: Run, dataset: Dataset, limit: int = 512) -> Callable[[], dict[Bin, float]]:
  """Makes bin_errors() -> the mean of |eps_hat - eps|² in each bin of log-SNR.

  It is the mean over dimensions, over at most `limit` test examples evenly spaced in the split, and
  over log-SNRs even in the bin. So it is the loss with weight `simple` there, whatever the training
  loss was, and e^log_snr times the mean squared error of x0. The noise comes from the config's seed
  and is the same at a level under every network and schedule whose bins are the same.

  Args:
    run: of a denoiser.
    dataset: of the run, with its examples.
    limit: of examples.
  """
  schedule = read_between(run.schedule)
  bins = bins_of(schedule)
  batch = evenly(dataset, dataset.test, limit)
  keys = example_keys(jax.random.key(run.config.seed), jnp.arange(len(batch['x'])))
  judged: Any = run.use.denoiser

  @jax.jit
  def errors(params: Any, frozen: Any, batch: Batch, keys: Array, times: Array) -> Array:
    x0 = run.experiment.encode(frozen, batch['x'], keys)
    return eps_errors(schedule, judged(params, batch['cond'], schedule), x0, times, keys)

  def bin_errors() -> dict[Bin, float]:
    times = jax.vmap(schedule.time)(jnp.asarray(midpoints(bins)))
    values = np.asarray(errors(run.trained, run.frozen, batch, keys, times), np.float64)
    return dict(zip(bins, values.reshape(len(bins), -1).mean(axis=1).tolist(), strict=True))

  return bin_errors
