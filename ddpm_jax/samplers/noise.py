"""Where a sampler's noise comes from: (schedule, keys (B,), like (B, …), step) -> noise.

  noise(t, s, draw=0, part=0)

gives standard normals like the batch for the way from t to s, row i by keys[i] alone. `draw`
numbers what is to be independent on one way. `part` numbers the pieces of a way that is gone in
pieces, whose increments are of one path where there is a path: (t, m) is part 0, (m, s) part 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.keys import for_purpose

Noise = Callable[..., Array]

# The finest part of the Brownian clock; beyond it the path is a smooth line.
RESOLUTION = 2.0**-16


class Step(NamedTuple):
  """From time t to time s; `index` counts the steps from 0."""

  t: Array
  s: Array
  index: Array


def white(schedule: Schedule, keys: Array, like: Array, step: Step) -> Noise:
  """Independent standard normals for each step, draw and part, whatever the times."""
  del schedule

  def noise(t: Time, s: Time, draw: int | Array = 0, part: int = 0) -> Array:
    del t, s

    def example(key: Array) -> Array:
      for number in (step.index, draw, part):
        key = jax.random.fold_in(key, number)
      return jax.random.normal(key, like.shape[1:], like.dtype)

    return jax.vmap(example)(for_purpose(keys, 'sampler'))

  return noise


def brownian(schedule: Schedule, keys: Array, like: Array, step: Step) -> Noise:
  """(W(c_s) - W(c_t)) / sqrt|c_s - c_t|: increments of one path W for each key and draw.

  The path belongs to the key, not to the grid: what a grid of more times draws between t and s adds
  up to what one step would have drawn, so that runs of more and more steps converge to one sample.
  The clock c = sigmoid(log_snr / 8) runs from 0, all noise, to 1, all data, and evenly enough
  between for `RESOLUTION` to tell the steps of a chain of thousands apart. From t to t itself the
  increment is zero.

  Reference: Li et al. 2020, https://arxiv.org/abs/2001.01328, for the tree; Jelinčič et al. 2024,
  https://arxiv.org/abs/2405.06464, for the law between its leaves.
  """
  del step

  def clock(t: Time) -> Array:
    return jax.lax.stop_gradient(jax.nn.sigmoid(schedule.log_snr(t) / 8))

  def noise(t: Time, s: Time, draw: int | Array = 0, part: int = 0) -> Array:
    del part
    before, after = clock(t), clock(s)
    length = jnp.abs(after - before)

    def example(key: Array) -> Array:
      shape = jax.ShapeDtypeStruct(like.shape[1:], like.dtype)
      key = jax.random.fold_in(key, draw)
      path = diffrax.VirtualBrownianTree(0.0, 1.0, RESOLUTION, shape, key)
      increment = jnp.asarray(path.evaluate(before, after))
      return increment / jnp.sqrt(jnp.where(length > 0, length, 1.0))

    # Two purposes, since a path's key for draw i would be white's for step i.
    return jax.vmap(example)(for_purpose(for_purpose(keys, 'sampler'), 'noise'))

  return noise


NOISES = {
  'white': white,
  'brownian': brownian,
}
