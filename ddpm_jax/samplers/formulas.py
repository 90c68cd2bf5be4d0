"""What the samplers' formulas share.

At one time xt = alpha x0 + sigma eps ties a denoiser's two readings, and all of these methods solve
dx/dt = alpha' x0 + sigma' eps, whose solution is `place` for as long as x0 and eps stay the same.
"""

from __future__ import annotations

from jax import Array

from ddpm_jax.diffusion.schedules import Schedule, Time


def eps_of(schedule: Schedule, xt: Array, x0: Array, t: Time) -> Array:
  """(xt - alpha x0) / sigma: the noise that makes xt of x0, clipped or not."""
  return (xt - schedule.alpha(t) * x0) / schedule.sigma(t)


def place(schedule: Schedule, x0: Array, eps: Array, s: Time) -> Array:
  """alpha_s x0 + sigma_s eps: the point at time s on the way from x0 to eps."""
  return schedule.alpha(s) * x0 + schedule.sigma(s) * eps
