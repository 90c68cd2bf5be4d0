"""A residual network of dense layers, for examples of few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Interval, MultipleOf
from flax.core import FrozenDict
from jax import Array

from ddpm_jax.bounds import check_fields
from ddpm_jax.condition import Spec
from ddpm_jax.keys import for_purpose
from ddpm_jax.models.layers import (
  GLOROT,
  ZERO,
  Conditioning,
  Dropout,
  num_classes_in,
  with_estimate,
)


class MLP(nn.Module):
  """h + dense(dropout(silu(dense(norm(h)) + dense(embedding)))), `depth` times, on a flat example.

  Attributes:
    width: of the hidden layers; a multiple of 4.
    depth: number of residual blocks.
    dropout: rate inside the blocks.
    learn_variance: doubles the output's channels; the second half is the variance head.
    spec: of the condition: a class label, {'label': Field(…)}, or {} for an unconditional network.
    label_dropout: probability, in training, that a label becomes the null label.
    self_condition: also sees the last estimate of x0.
    augmented: is told how an image was augmented; see dataset.augment.
    out_channels: of the example.
  """

  width: Annotated[int, Interval(ge=4, le=65_536), MultipleOf(4)] = 128
  depth: Annotated[int, Interval(ge=1, le=1000)] = 3
  dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
  learn_variance: bool = False
  spec: Spec = FrozenDict()
  label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1
  self_condition: bool = False
  augmented: bool = False
  out_channels: int = 1

  @nn.compact
  def __call__(
    self, x: Array, noise_label: Array, cond: Mapping[str, Array], keys: Array | None = None
  ) -> Array:
    """Maps (B, H, W, C) and (B,) noise labels to (B, H, W, out_channels or its double)."""
    check_fields(self)
    classes = num_classes_in(self.spec)
    embedding = Conditioning(
      self.width, classes, self.label_dropout, self.augmented, name='conditioning'
    )(noise_label, cond, keys)
    dropout_keys = None if keys is None else for_purpose(keys, 'dropout')
    seen = with_estimate(x, cond) if self.self_condition else x
    h = self._dense(self.width, 'dense_in')(seen.reshape(x.shape[0], -1))
    for i in range(self.depth):
      inner = self._dense(self.width, f'dense_{i}_1')(nn.LayerNorm(name=f'norm_{i}')(h))
      inner = nn.silu(inner + self._dense(self.width, f'embedding_{i}')(embedding))
      inner = Dropout(self.dropout, name=f'dropout_{i}')(inner, dropout_keys)
      h = h + self._dense(self.width, f'dense_{i}_2')(inner)
    shape = (*x.shape[:-1], self.out_channels * (2 if self.learn_variance else 1))
    h = nn.silu(nn.LayerNorm(name='norm_out')(h))
    out = nn.Dense(math.prod(shape[1:]), kernel_init=ZERO, name='dense_out')(h)
    return out.astype(jnp.float32).reshape(shape)

  def _dense(self, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=GLOROT, name=name)
