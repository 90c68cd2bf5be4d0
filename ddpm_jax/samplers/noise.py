"""Where a sampler's noise comes from: (keys (B,), like (B, …), step) -> noise(t, s, draw=0)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array

from ddpm_jax.diffusion.schedules import Time
from ddpm_jax.keys import for_purpose

Noise = Callable[..., Array]


class Step(NamedTuple):
  """From time t to time s; `index` counts the steps from 0."""

  t: Array
  s: Array
  index: Array


def white(keys: Array, like: Array, step: Step) -> Noise:
  """Independent standard normals for each step: noise(t, s, draw=0), like the batch."""

  def noise(t: Time, s: Time, draw: int = 0) -> Array:
    del t, s

    def example(key: Array) -> Array:
      key = jax.random.fold_in(jax.random.fold_in(key, step.index), draw)
      return jax.random.normal(key, like.shape[1:], like.dtype)

    return jax.vmap(example)(for_purpose(keys, 'sampler'))

  return noise


NOISES = {
  'white': white,
}
