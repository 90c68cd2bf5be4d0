"""Codecs: what stands between the data as it is stored and the numbers that are diffused.

A codec is a set of pure functions. Its parameters, such as the weights of a frozen autoencoder, are
arguments of these functions and never constants of a compiled program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array


def no_params() -> Any:
  """The parameters of a codec that has none."""
  return {}


class Codec(NamedTuple):
  """How stored data x becomes z, which is diffused, and how z becomes a picture.

  Attributes:
    encode: (params, x (B, …) as stored, keys (B,)) -> z (B, *shape). An encoder may draw:
      example i depends on x[i] and keys[i] alone.
    decode: (params, z (B, *shape)) -> pictures, uint8 (B, H, W, C).
    shape: of one z.
    bounds: between which every component of z lies, as (-1, 1); None where z has no such ends.
    num_levels: z takes so many equally spaced values between its bounds, one for each stored level,
      so that a probability of z is one of the data; None where the codec loses something.
    load: () -> params. It reads them from `source` and is called once, before training.
    source: where the parameters come from, as a run's record names it; '' where there are none.
  """

  encode: Callable[[Any, Array, Array], Array]
  decode: Callable[[Any, Array], Array]
  shape: tuple[int, ...]
  bounds: tuple[float, float] | None = None
  num_levels: int | None = None
  load: Callable[[], Any] = no_params
  source: str = ''

  def clip(self, z: Array) -> Array:
    """z within its bounds; z itself where it has none."""
    return z if self.bounds is None else jnp.clip(z, *self.bounds)

  def levels(self, what: str) -> int:
    """`num_levels`, for what is a probability of the data.

    Raises:
      ValueError: the codec loses something, or has other bounds than -1 and 1.
    """
    if self.num_levels is None or self.bounds != (-1, 1):
      raise ValueError(
        f'codec.name: {what} is a probability of the data, and this codec does not keep all of its '
        'levels, from -1 to 1'
      )
    return self.num_levels


def pixels(shape: tuple[int, ...], num_levels: int) -> Codec:
  """Levels 0 … num_levels - 1 as numbers evenly spaced in [-1, 1]; pictures by `to_uint8`.

  Args:
    shape: of an image, (H, W, C).
    num_levels: of a component of the data.
  """

  def encode(params: Any, x: Array, keys: Array | None = None) -> Array:
    del params, keys
    return scale(x, num_levels)

  def decode(params: Any, z: Array) -> Array:
    del params
    return to_uint8(z)

  return Codec(encode, decode, shape, (-1.0, 1.0), num_levels)


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


CODECS: dict[str, Callable[..., Codec]] = {'pixels': pixels}
