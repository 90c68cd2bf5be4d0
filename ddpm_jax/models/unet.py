"""The U-Net of DDPM (Ho et al. 2020, arXiv:2006.11239, appendix B)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax.numpy as jnp
from annotated_types import Interval, Len, MultipleOf
from flax.core import FrozenDict
from jax import Array

from ddpm_jax.bounds import OneOf, check_fields
from ddpm_jax.condition import Spec
from ddpm_jax.keys import for_purpose
from ddpm_jax.models.layers import (
  ZERO,
  Conditioning,
  Downsample,
  GroupNorm,
  ResBlock,
  SelfAttention,
  Upsample,
  conv,
  num_classes_in,
  with_estimate,
)

Multiplier = Annotated[int, Interval(ge=1, le=64)]
DTYPES = {'float32': jnp.float32, 'bfloat16': jnp.bfloat16}


class UNet(nn.Module):
  """Residual blocks down to a small image and up again, with skip connections between the two.

  Level i has channels * multipliers[i] channels at 1/2^i of the image's size: num_res_blocks on
  the way down and one more on the way up, where each takes one stored activation of the way down.
  The defaults are DDPM's for CIFAR-10: 35,746,307 parameters.

  Attributes:
    channels: of the first level; a multiple of 4.
    multipliers: one for each level.
    num_res_blocks: residual blocks of a level.
    attention_resolutions: image heights at which each residual block is followed by attention.
    dropout: rate inside the residual blocks.
    num_heads: of each attention.
    learn_variance: doubles the output's channels; the second half is the variance head.
    spec: of the condition: a class label, {'label': Field(…)}, or {} for an unconditional network.
    label_dropout: probability, in training, that a label becomes the null label.
    self_condition: also sees the last estimate of x0, as twice the input's channels.
    augmented: is told how an image was augmented; see dataset.augment.
    dtype: 'float32' or 'bfloat16', of the computation; parameters and output stay float32.
    remat: saves memory in training: of each block only the input is kept, and the rest computed
      again for the gradient (Chen et al. 2016, arXiv:1604.06174).
    out_channels: of the image.
  """

  channels: Annotated[int, Interval(ge=4, le=16_384), MultipleOf(4)] = 128
  multipliers: Annotated[tuple[Multiplier, ...], Len(1, 16)] = (1, 2, 2, 2)
  num_res_blocks: Annotated[int, Interval(ge=1, le=100)] = 2
  attention_resolutions: tuple[Annotated[int, Interval(ge=1, le=65_536)], ...] = (16,)
  dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
  num_heads: Annotated[int, Interval(ge=1, le=1024)] = 1
  learn_variance: bool = False
  spec: Spec = FrozenDict()
  label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1
  self_condition: bool = False
  augmented: bool = False
  dtype: Annotated[str, OneOf(DTYPES)] = 'float32'
  remat: bool = False
  out_channels: int = 3

  @nn.compact
  def __call__(
    self, x: Array, noise_label: Array, cond: Mapping[str, Array], keys: Array | None = None
  ) -> Array:
    """Maps (B, H, W, C) images and (B,) noise labels to (B, H, W, out_channels or its double).

    Args:
      x: noisy images.
      noise_label: what the parameterization says of the noise level.
      cond: {'label': (B,) int32} for a conditional network; 'x0' like x and 'augmentation' (B, 9)
        may be there for one that reads them.
      keys: (B,) keys in training, for dropout and label dropout; None in evaluation.

    Raises:
      ValueError: where an attribute is out of bounds, or the image's sides cannot be halved
        len(multipliers) - 1 times.
    """
    check_fields(self)
    self._check(x.shape)
    dtype = DTYPES[self.dtype]
    classes = num_classes_in(self.spec)
    embedding = Conditioning(
      self.channels, classes, self.label_dropout, self.augmented, name='conditioning'
    )(noise_label, cond, keys)
    dropout_keys = None if keys is None else for_purpose(keys, 'dropout')

    residual = nn.remat(ResBlock) if self.remat else ResBlock
    attention = nn.remat(SelfAttention) if self.remat else SelfAttention

    def block(h: Array, channels: int, name: str, attend: bool) -> Array:
      h = residual(channels, self.dropout, dtype, name=name)(h, embedding, dropout_keys)
      return attention(self.num_heads, dtype, name=f'{name}_attention')(h) if attend else h

    h = conv(self.channels, dtype, name='conv_in')(
      with_estimate(x, cond) if self.self_condition else x
    )
    h = self._levels(h, block, dtype)
    h = nn.silu(GroupNorm(name='norm_out')(h))
    channels = self.out_channels * (2 if self.learn_variance else 1)
    return conv(channels, jnp.float32, ZERO, name='conv_out')(h)

  def _levels(self, h: Array, block: Any, dtype: Any) -> Array:
    widths = [self.channels * multiplier for multiplier in self.multipliers]
    levels = list(enumerate(widths))
    skips = [h]
    for level, width in levels:
      attend = h.shape[1] in self.attention_resolutions
      for i in range(self.num_res_blocks):
        h = block(h, width, f'down_{level}_{i}', attend)
        skips.append(h)
      if level < len(widths) - 1:
        h = Downsample(dtype, name=f'down_{level}')(h)
        skips.append(h)
    h = block(h, widths[-1], 'middle_0', attend=True)
    h = block(h, widths[-1], 'middle_1', attend=False)
    for level, width in reversed(levels):
      attend = h.shape[1] in self.attention_resolutions
      for i in range(self.num_res_blocks + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), width, f'up_{level}_{i}', attend)
      if level:
        h = Upsample(dtype, name=f'up_{level}')(h)
    return h

  def _check(self, shape: tuple[int, ...]) -> None:
    _, height, width, _ = shape
    halvings = len(self.multipliers) - 1
    if math.gcd(height, width) % 2**halvings:
      possible = (math.gcd(height, width) & -math.gcd(height, width)).bit_length()
      raise ValueError(
        f'multipliers: {len(self.multipliers)} levels need image sides that are '
        f'multiples of {2**halvings}, not {height}x{width}; give {possible} or fewer'
      )
