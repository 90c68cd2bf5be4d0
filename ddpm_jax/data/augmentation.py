"""Augmentation that does not leak: the network is told what was done, and at sampling that nothing.

Geometry about an image's center, by bilinear interpolation over its mirrored continuation. Each of

  mirror left to right, mirror top to bottom, scale, turn, stretch along an axis, shift

is done with the same probability, on its own, and the nine numbers that say how are zero otherwise.

Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, appendix F.2. There the first
mirror is done to half of all images, whatever the probability; so it is here with dataset.flip.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

# Deviations of log scale and log stretch, and that of a shift as a share of the image's size.
SCALE, STRETCH, SHIFT = 0.2 * math.log(2), 0.2 * math.log(2), 1 / 8


def augment(image: Array, key: Array, probability: float) -> tuple[Array, Array]:
  """An image (H, W, C), augmented or not, and the label (9,) that says how."""
  label = draw_label(key, probability)
  return transformed(image, label), label


def draw_label(key: Array, probability: float) -> Array:
  """(9,): two mirrors in {0, 1}; log₂ scale / 0.2; cos - 1 and sin of a turn; log₂ stretch / 0.2
  times cos and sin of its axis; shifts down and right by eighths of the size.
  """
  which, flips, angles, normals = jax.random.split(key, 4)
  done = jax.random.bernoulli(which, probability, (6,)).astype(jnp.float32)
  mirrors = jax.random.bernoulli(flips, 0.5, (2,)).astype(jnp.float32)
  turn, axis = jax.random.uniform(angles, (2,), minval=-jnp.pi, maxval=jnp.pi)
  scale, stretch, down, right = jax.random.normal(normals, (4,))
  parts = (
    mirrors,
    scale[None],
    jnp.stack([jnp.cos(turn) - 1, jnp.sin(turn)]),
    stretch * jnp.stack([jnp.cos(axis), jnp.sin(axis)]),
    jnp.stack([down, right]),
  )
  return jnp.concatenate(parts) * done[jnp.array([0, 1, 2, 3, 3, 4, 4, 5, 5])]


def transformed(image: Array, label: Array) -> Array:
  """The image (H, W, C) with what a label says done to it, in its order.

  A pixel of the result is read where it came from: by the inverse of each, the last one first.
  """
  height, width, _ = image.shape
  center = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None]
  rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')
  place = jnp.stack([rows.ravel(), columns.ravel()]) - center
  place = place - SHIFT * label[7:, None] * jnp.array([[height], [width]])
  length = jnp.hypot(label[5], label[6])
  axis = label[5:7] / jnp.where(length > 0, length, 1.0)
  place = stretched(axis, jnp.exp(-STRETCH * length)) @ place
  place = turned(1 + label[3], -label[4]) @ place
  place = place * jnp.exp(-SCALE * label[2])
  place = place * (1 - 2 * label[1::-1, None])
  source = place + center

  def channel(values: Array) -> Array:
    found = jax.scipy.ndimage.map_coordinates(values, list(source), order=1, mode='mirror')
    return found.reshape(height, width)

  return jax.vmap(channel, -1, -1)(image)


def turned(cos: Array, sin: Array) -> Array:
  """The matrix of a turn."""
  return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])


def stretched(axis: Array, factor: Array) -> Array:
  """The matrix that multiplies by `factor` along a unit vector, and divides by it across."""
  across = jnp.stack([-axis[1], axis[0]])
  unit = jnp.eye(2)
  return unit + (factor - 1) * jnp.outer(axis, axis) + (1 / factor - 1) * jnp.outer(across, across)
