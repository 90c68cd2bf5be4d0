"""Flips of images, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def random_flip(image: Array, keys: Array) -> Array:
  """Mirrors each image left to right with probability 1/2.

  Args:
    image: (B, H, W, C), of any type.
    keys: (B,), one for each image, so that a flip depends on nothing else in the batch.
  """

  def flip(image: Array, key: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return jax.vmap(flip)(image, keys)
