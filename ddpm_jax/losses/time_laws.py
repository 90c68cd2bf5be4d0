"""Laws of t: (step_key, index, batch_size, schedule, state) -> (t, correction), both (B,).

The correction is 1 where the law defines the objective, a ratio of densities where the law only
estimates one. Draws depend on the step and on each example's index in the global stream, never on
how the batch is laid out over devices.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.schedules import Discrete, Schedule
from ddpm_jax.keys import example_keys, for_purpose


def uniform(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """Every example's t is uniform over the chain (over [t_min, t_max] where time is continuous)."""
  del batch_size, state
  u = uniforms(step_key, index)
  return time_of(schedule, u), jnp.ones_like(u)


def stratified(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """Example i of the batch draws t uniformly from the i-th of batch_size equal parts of the chain.

  Over examples in random order, a batch's mean has the expectation that `uniform` gives it, and
  never a larger variance.
  """
  del state
  u = (index % batch_size + uniforms(step_key, index)) / batch_size
  return time_of(schedule, u), jnp.ones_like(u)


def uniforms(step_key: Array, index: Array) -> Array:
  """One draw from [0, 1) for each example, (B,)."""
  return jax.vmap(jax.random.uniform)(for_purpose(example_keys(step_key, index), 'time'))


def time_of(schedule: Schedule, u: Array) -> Array:
  """The time at the share u in [0, 1) of the way from t_min to t_max."""
  if isinstance(schedule, Discrete):
    return jnp.minimum(1 + jnp.floor(u * schedule.num_steps).astype(int), schedule.num_steps)
  return schedule.t_min + u * (schedule.t_max - schedule.t_min)


TIME_LAWS = {
  'uniform': uniform,
  'stratified': stratified,
}
