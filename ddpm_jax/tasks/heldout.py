"""The loss on held-out examples, noise level by noise level."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion import Schedule, q_sample
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.keys import for_purpose
from ddpm_jax.tasks.experiment import Experiment

LEVELS = 10


def levels(schedule: Schedule, count: int = LEVELS) -> np.ndarray:
  """The log-SNRs, falling, of the times nearest to the centers of `count` equal bins of log-SNR.

  Bins without a time are left out, and where the SNR ends at zero what is below -20.
  """
  low, high = schedule.log_snr(schedule.t_max), schedule.log_snr(schedule.t_min)
  centers = np.linspace(high, max(low, -20.0), 2 * count + 1)[1::2]
  times = np.unique(np.asarray(jax.vmap(schedule.time)(jnp.asarray(centers))))
  return np.asarray(jax.vmap(schedule.log_snr)(jnp.asarray(times)))


def eps_errors(
  schedule: Schedule, denoiser: Denoiser, x0: Array, times: Array, keys: Array
) -> Array:
  """mean |eps_hat - eps|² = SNR(t) mean |x0_hat - x0|² at each of `times`, (K,).

  Args:
    schedule: the path.
    denoiser: what is judged.
    x0: (B, …), what is diffused.
    times: (K,).
    keys: (B,): an example meets the same noise at a level whenever it is asked.
  """

  def at(level: tuple[Array, Array]) -> Array:
    number, t = level
    level_keys = jax.vmap(jax.random.fold_in, (0, None))(for_purpose(keys, 'heldout'), number)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(level_keys)
    xt = jax.vmap(q_sample, (None, 0, None, 0))(schedule, x0, t, eps)
    return jnp.exp(schedule.log_snr(t)) * jnp.mean(jnp.square(denoiser(xt, t).x0 - x0))

  return jax.lax.map(at, (jnp.arange(times.shape[0]), times))


def evenly_spaced(experiment: Experiment) -> dict[str, Any]:
  """`evaluation.batch_size` examples of the test split, evenly spaced in it."""
  split = experiment.dataset.test
  count = min(len(split), experiment.config.evaluation.batch_size)
  return experiment.dataset.read(split, np.arange(count) * len(split) // count)
