"""Distances of an output from its target, elementwise functions of their difference."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def l2(difference: Array) -> Array:
  """difference²."""
  return jnp.square(difference)


def l1(difference: Array) -> Array:
  """|difference|."""
  return jnp.abs(difference)


DISTANCES = {
  'l2': l2,
  'l1': l1,
}
