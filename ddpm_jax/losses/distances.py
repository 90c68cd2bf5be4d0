"""Distances of an output from its target, elementwise functions of their difference.

Those that are not squares at large differences are so at small ones, on the scale of `l2`: the
weight means there what it means with it.
"""

from __future__ import annotations

from typing import Annotated

import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

Scale = Annotated[float, Interval(ge=1e-6, le=1e6)]


def l2(difference: Array) -> Array:
  """difference²."""
  return jnp.square(difference)


def l1(difference: Array) -> Array:
  """|difference|."""
  return jnp.abs(difference)


def huber(difference: Array, *, delta: Scale = 1.0) -> Array:
  """difference² up to delta, 2 delta |difference| - delta² beyond.

  Twice what Huber 1964, https://doi.org/10.1214/aoms/1177703732, writes, as befits `l2`.
  """
  near = jnp.minimum(jnp.abs(difference), delta)
  return near * (2 * jnp.abs(difference) - near)


def pseudo_huber(difference: Array, *, c: Scale = 1.0) -> Array:
  """2c (sqrt(difference² + c²) - c): about difference² below c, 2c |difference| above.

  Of each component; consistency models take sqrt(|·|² + c²) - c of a whole example's difference.
  Reference: Song and Dhariwal 2023, https://arxiv.org/abs/2310.14189.
  """
  square = jnp.square(difference)
  return 2 * c * square / (jnp.sqrt(square + c**2) + c)


DISTANCES = {
  'l2': l2,
  'l1': l1,
  'huber': huber,
  'pseudo_huber': pseudo_huber,
}
