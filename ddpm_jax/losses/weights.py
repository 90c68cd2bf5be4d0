"""Weights w(schedule, t) of the squared error of eps.

The loss carries them over to what the network predicts, so that with the L2 distance one weight is
one objective under every parameterization.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.schedules import Discrete, Schedule


def simple(schedule: Schedule, t: Array) -> Array:
  """1: the simple loss. Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14."""
  return jnp.ones_like(schedule.alpha(t))


def output(schedule: Schedule, t: Array) -> Array:
  """1 in the network's own output: the one weight that is not carried over."""
  return jnp.ones_like(schedule.alpha(t))


def variational(schedule: Schedule, t: Array) -> Array:
  """The bound's own: -½ d log_snr / dt, and for a chain's step to t - 1, ½ (SNR(t-1)/SNR(t) - 1).

  A chain's t = 1 has the weight of its decoder, a Gaussian density of the step (1, 2)'s small
  variance: 1 / (2 alpha_1² r). So the mean over t, times T or t_max - t_min, is the bound but for
  what doesn't depend on the network. Infinite at zero terminal SNR, where the loss 'variational',
  which never forms eps, is finite.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equations 14 and 17.
  """
  if not isinstance(schedule, Discrete):
    t = jnp.asarray(t)
    return -0.5 * jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))[1]
  step = jnp.maximum(t, 2)  # t - 1 = 0 has infinite SNR
  gap = schedule.log_snr(step - 1) - schedule.log_snr(step)
  decoder = 0.5 / jnp.square(schedule.alpha(1)) / -jnp.expm1(-gap)
  return jnp.where(t > 1, 0.5 * jnp.expm1(gap), decoder)


WEIGHTS = {
  'simple': simple,
  'output': output,
  'variational': variational,
}
