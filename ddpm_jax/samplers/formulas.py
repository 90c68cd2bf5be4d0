"""What the samplers' formulas share.

At one time xt = alpha x0 + sigma eps ties a denoiser's two readings, and all of these methods solve
dx/dt = alpha' x0 + sigma' eps, whose solution is `place` for as long as x0 and eps stay the same.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.process import fresh_noise, noise_ratio
from ddpm_jax.diffusion.schedules import Schedule, Time


def eps_of(schedule: Schedule, xt: Array, x0: Array, t: Time) -> Array:
  """(xt - alpha x0) / sigma: the noise that makes xt of x0, clipped or not."""
  return (xt - schedule.alpha(t) * x0) / schedule.sigma(t)


def place(schedule: Schedule, x0: Array, eps: Array, s: Time) -> Array:
  """alpha_s x0 + sigma_s eps: the point at time s on the way from x0 to eps."""
  return schedule.alpha(s) * x0 + schedule.sigma(s) * eps


def kept(schedule: Schedule, s: Time, t: Time, eta: float) -> Array:
  """1 - eta² r, for eta in [0, 1], as 1 - eta² + (eta q)².

  A sum of squares is never below zero. The difference is, in single precision, where r has been
  rounded to more than one.
  """
  return 1 - eta**2 + jnp.square(eta * noise_ratio(schedule, s, t))


def renewed(schedule: Schedule, eps: Array, noise: Array, s: Time, t: Time, eta: float) -> Array:
  """sqrt(1 - eta² r) eps + eta sqrt(r) noise: on the way from t to s noise replaces a part of eps.

  Rounding may take r below zero where both times have nearly the same level; then nothing is new.
  """
  share = fresh_noise(schedule, s, t)
  return root(kept(schedule, s, t, eta)) * eps + eta * root(share) * noise
