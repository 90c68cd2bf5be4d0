"""The probability flow over the angle θ = arctan(sigma / alpha), on which every path is one.

With z = xt / sqrt(alpha² + sigma²), so that z = cos θ x0 + sin θ eps, the flow of sde.py is

  dz/dθ = cos θ eps - sin θ x0 = (cos θ z - x0) / sin θ.

It is finite from the data, θ = 0, to pure noise, θ = π/2. The schedule appears only in the time at
which the denoiser is asked. So what a solve costs and how far it errs depend on the data and on the
two ends alone, and a chain's continuous reading has no kinks for the solver to step over.

Reference: Lu and Song 2024, https://arxiv.org/abs/2410.11081, for the angle.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.diffusion.sde import Field


def length(schedule: Schedule, t: Time) -> Array:
  """sqrt(alpha² + sigma²): xt = length z."""
  return jnp.hypot(schedule.alpha(t), schedule.sigma(t))


def angle_at(schedule: Schedule, t: Time) -> Array:
  """θ = arctan(sigma / alpha), a right angle at zero SNR."""
  return jnp.arctan2(schedule.sigma(t), schedule.alpha(t))


def time_at(schedule: Schedule, angle: Array) -> Array:
  """The time at which tan θ = sigma / alpha; t_max for a right angle, or a rounding above it."""
  cos = jnp.maximum(jnp.cos(angle), 0.0)
  return schedule.time(2 * (jnp.log(cos) - jnp.log(jnp.sin(angle))))


def angular_flow(schedule: Schedule, denoiser: Denoiser) -> Field:
  """dz/dθ = (cos θ z - x0) / sin θ, where x0 is the denoiser's at xt = length z.

  Returns:
    (z (B, …), θ scalar) -> dz/dθ (B, …).
  """

  def field(z: Array, angle: Time) -> Array:
    # The angle of the rounded time, so that all here is of one noise level.
    t = time_at(schedule, jnp.asarray(angle))
    scale = length(schedule, t)
    cos, sin = schedule.alpha(t) / scale, schedule.sigma(t) / scale
    return (cos * z - denoiser(scale * z, t).x0) / sin

  return field
