"""From stored levels to the network's range and back, and flips, all on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def scale(image: Array, num_levels: int) -> Array:
  """2 k / (num_levels - 1) - 1, elementwise: levels 0 … num_levels-1 to float32 in [-1, 1]."""
  return 2 * image.astype(jnp.float32) / (num_levels - 1) - 1


def quantize(x: Array, num_levels: int) -> Array:
  """The nearest level, uint8: the inverse of `scale`; what lies outside [-1, 1] is clipped."""
  levels = jnp.round((x + 1) / 2 * (num_levels - 1))
  return jnp.clip(levels, 0, num_levels - 1).astype(jnp.uint8)


def to_uint8(x: Array) -> Array:
  """round(127.5 (x + 1)), clipped to 0 … 255: a picture of any data set, however many levels.

  Reference: Dhariwal and Nichol 2021 (ADM), the convention of its sample files, but rounded.
  """
  return quantize(x, 256)


def random_flip(image: Array, keys: Array) -> Array:
  """Mirrors each image left to right with probability 1/2.

  Args:
    image: (B, H, W, C), of any dtype.
    keys: (B,), one for each image, so that a flip depends on nothing else in the batch.
  """

  def flip(image: Array, key: Array) -> Array:
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)

  return jax.vmap(flip)(image, keys)
