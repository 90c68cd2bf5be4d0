"""The blocks that networks are built of. Images are (B, H, W, C).

Parameters are float32 and so are norm statistics, softmax and the embedding of the noise label;
convolutions and matrix products run in each block's `dtype`.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.condition import Cond, Spec
from ddpm_jax.keys import for_purpose

# DDPM's initialization: Glorot's for all weights, and zero where a residual branch ends.
GLOROT = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')
ZERO = nn.initializers.zeros

# The numbers in cond['augmentation']; see data/augmentation.py.
AUGMENTATION = 9


def sinusoid(noise_label: Array, size: int, max_period: float = 10_000.0) -> Array:
  """[sin(w_j c), cos(w_j c)] with w_j = max_period^(-j / (size/2 - 1)), j = 0 ... size/2 - 1.

  Args:
    noise_label: c, of shape (B,).
    size: an even number, at least 4.

  Returns:
    (B, size), float32 whatever the network computes in: bfloat16 cannot tell 998 from 1000.

  Reference: Ho et al. 2020, arXiv:2006.11239, appendix B, after Vaswani et al. 2017, section 3.5.
  """
  half = size // 2
  frequencies = jnp.asarray(max_period ** (-np.arange(half) / (half - 1)), jnp.float32)
  angles = jnp.outer(noise_label.astype(jnp.float32), frequencies)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Conditioning(nn.Module):
  """Embeds the noise label, plus the class label where the network is conditional.

  The embedding is Dense(silu(Dense(sinusoid(noise_label)))) + table[label], and its silu, which
  every block wants, is returned: (B, 4 channels) float32. The table has a row for each class and
  a last one, the null label's, which stands for no condition. How an example was augmented is a
  linear map, without a bias, away from nothing.

  Attributes:
    channels: the size of the sinusoid.
    num_classes: None for an unconditional network, which ignores the label.
    label_dropout: probability, in training, that an example's label becomes the null label.
    augmented: whether cond['augmentation'] is read: zeros where it is absent.
  """

  channels: int
  num_classes: int | None
  label_dropout: float
  augmented: bool = False

  @nn.compact
  def __call__(self, noise_label: Array, cond: Mapping[str, Array], keys: Array | None) -> Array:
    size = 4 * self.channels
    h = sinusoid(noise_label, self.channels)
    h = nn.silu(nn.Dense(size, kernel_init=GLOROT, name='dense_1')(h))
    h = nn.Dense(size, kernel_init=GLOROT, name='dense_2')(h)
    if self.num_classes is not None:
      normal = nn.initializers.normal(1.0)
      table = nn.Embed(self.num_classes + 1, size, embedding_init=normal, name='label')
      h = h + table(self._label(cond, keys, null=self.num_classes))
    if self.augmented:
      told = cond.get('augmentation', jnp.zeros((h.shape[0], AUGMENTATION)))
      h = h + nn.Dense(size, use_bias=False, kernel_init=GLOROT, name='augmentation')(told)
    return nn.silu(h)

  def _label(self, cond: Mapping[str, Array], keys: Array | None, null: int) -> Array:
    return drop_cond(cond['label'], null, keys, self.label_dropout)


def drop_cond(cond: Cond, null: Cond, keys: Array | None, rate: float) -> Cond:
  """The condition; in training each example's is replaced by its null with probability `rate`.

  One draw decides: of what is dropped at two rates, the less frequent goes only with the other.

  Args:
    cond: a tree of arrays (B, …).
    null: for each of them as many, or a number.
    keys: of the examples, (B,); None in evaluation, where nothing is dropped.
    rate: in [0, 1].
  """
  if keys is None or not rate:
    return cond
  dropped = jax.vmap(jax.random.bernoulli, (0, None))(for_purpose(keys, 'label'), rate)

  def either(value: Array, null: Any) -> Array:
    return jnp.where(jnp.expand_dims(dropped, tuple(range(1, value.ndim))), null, value)

  return jax.tree.map(either, cond, null)


def num_classes_in(spec: Spec) -> int | None:
  """The number of classes of a network that reads a class label or nothing.

  Raises:
    ValueError: the specification has an entry that such a network does not read.
  """
  unread = [name for name in spec if name != 'label' or spec[name].num_classes is None]
  if unread:
    raise ValueError(
      f"name: this network reads a class, 'label', and nothing else; the data set has "
      f'{", ".join(unread)}: set config.dataset.conditional=False, or take one that reads that'
    )
  return spec['label'].num_classes if spec else None


def with_estimate(x: Array, cond: Mapping[str, Array]) -> Array:
  """(B, …, 2 C): x beside cond['x0'], an estimate of the data; zeros where there is none.

  Reference: Chen et al. 2022, https://arxiv.org/abs/2208.04202, section 2, "Self-Conditioning".
  """
  x0 = cond.get('x0', jnp.zeros_like(x))
  return jnp.concatenate([x, x0.astype(x.dtype)], axis=-1)


class Dropout(nn.Module):
  """Zeroes entries with probability `rate` and divides the others by 1 - rate.

  An example's draw comes from its own key and this layer's path in the network, so that it is
  the same in any batch, on any device. Without keys (evaluation) it is the identity.

  `rate` is taken to the nearest multiple of 2^-16: half a random word for each entry.
  """

  rate: float

  @nn.compact
  def __call__(self, x: Array, keys: Array | None) -> Array:
    kept = round((1 - self.rate) * 2**16)
    if keys is None or kept == 2**16:
      return x
    path = zlib.crc32('/'.join(self.path).encode())
    layer_keys = jax.vmap(lambda key: jax.random.fold_in(key, path))(keys)
    draws = jax.vmap(lambda key: _random_halfwords(key, x.shape[1:]))(layer_keys)
    return jnp.where(draws < kept, x * (2**16 / kept), 0).astype(x.dtype)


def _random_halfwords(key: Array, shape: tuple[int, ...]) -> Array:
  """Uniform uint16, two from each word: random.bits would spend a whole word on each."""
  size = math.prod(shape)
  words = jax.random.bits(key, (-(-size // 2),), jnp.uint32)
  return jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:size].reshape(shape)


def num_groups(channels: int) -> int:
  """The most groups, 32 at most as in DDPM, that divide the channels into four or more each."""
  most = max(1, min(32, channels // 4))
  return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


class GroupNorm(nn.Module):
  """scale (x - mean) / sqrt(variance + 1e-6) + bias, mean and variance over a group of channels.

  The statistics are float32, and the variance is that of the centered values: E[x²] - E[x]² loses
  it where the mean is large. Reducing the pixels first and the few channels of a group after
  spares the (B, H, W, groups, C / groups) layout, two to three times slower on a CPU.

  Reference: Wu & He 2018, arXiv:1803.08494, equations 1 and 7.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    channels = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, (channels,))
    bias = self.param('bias', nn.initializers.zeros, (channels,))
    x = x.astype(jnp.float32)
    centered = x - _group_mean(x)
    factor = jax.lax.rsqrt(_group_mean(jnp.square(centered)) + 1e-6) * scale.reshape(1, 1, 1, -1)
    return (centered * factor + bias.reshape(1, 1, 1, -1)).astype(self.dtype)


def _group_mean(x: Array) -> Array:
  """Each channel's group mean: (B, H, W, C) -> (B, 1, 1, C)."""
  batch, _, _, channels = x.shape
  groups = num_groups(channels)
  mean = x.mean((1, 2)).reshape(batch, groups, -1).mean(-1)
  return jnp.repeat(mean, channels // groups, axis=-1)[:, None, None]


class ResBlock(nn.Module):
  """x + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(embedding))))), as in DDPM.

  Where the block changes the number of channels, x goes through a 1x1 convolution.
  """

  channels: int
  dropout: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, embedding: Array, keys: Array | None) -> Array:
    h = nn.silu(GroupNorm(self.dtype, name='norm_1')(x))
    h = conv(self.channels, self.dtype, name='conv_1')(h)
    h = h + dense(self.channels, self.dtype, name='embedding')(embedding)[:, None, None]
    h = nn.silu(GroupNorm(self.dtype, name='norm_2')(h))
    h = Dropout(self.dropout, name='dropout')(h, keys)
    h = conv(self.channels, self.dtype, ZERO, name='conv_2')(h)
    if x.shape[-1] != self.channels:
      x = dense(self.channels, self.dtype, name='shortcut')(x)
    return x + h


class SelfAttention(nn.Module):
  """x + dense(attention(q, k, v)), with q, k, v = dense(norm(x)), over all pixels of an image."""

  num_heads: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(
        f'num_heads: {self.num_heads} does not divide the {channels} channels at {height}x{width}'
      )
    h = GroupNorm(self.dtype, name='norm')(x).reshape(batch, height * width, channels)
    # One product for three matrices: scale 2 gives the variance of three separate ones,
    # since the joint fan average is (C + 3C) / 2 = 2C.
    glorot = nn.initializers.variance_scaling(2.0, 'fan_avg', 'uniform')
    qkv = dense(3 * channels, self.dtype, glorot, name='qkv')(h)
    q, k, v = (_split_heads(part, self.num_heads) for part in jnp.split(qkv, 3, axis=-1))
    h = _merge_heads(self.attend(q, k, v), self.num_heads)
    h = dense(channels, self.dtype, ZERO, name='projection')(h)
    return x + h.reshape(x.shape)

  def attend(self, q: Array, k: Array, v: Array) -> Array:
    """`attention`; a method, so that `nn.intercept_methods` can put another in its place."""
    return attention(q, k, v)


def attention(q: Array, k: Array, v: Array) -> Array:
  """softmax(q kᵀ / √D) v, the softmax in float32, for q, k, v of shape (M, T, D).

  One batch axis for heads and examples together: on a CPU that is up to twice as fast as two.
  """
  logits = jnp.einsum('mqd,mkd->mqk', q, k, preferred_element_type=jnp.float32)
  weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5)
  return jnp.einsum('mqk,mkd->mqd', weights.astype(v.dtype), v)


def _split_heads(x: Array, num_heads: int) -> Array:
  """(B, T, N D) -> (B N, T, D)."""
  batch, tokens, channels = x.shape
  x = x.reshape(batch, tokens, num_heads, channels // num_heads).swapaxes(1, 2)
  return x.reshape(-1, tokens, channels // num_heads)


def _merge_heads(x: Array, num_heads: int) -> Array:
  """(B N, T, D) -> (B, T, N D)."""
  _, tokens, size = x.shape
  x = x.reshape(-1, num_heads, tokens, size).swapaxes(1, 2)
  return x.reshape(-1, tokens, num_heads * size)


class Downsample(nn.Module):
  """A 3x3 convolution of stride 2: half the height and width."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return conv(x.shape[-1], self.dtype, strides=2, name='conv')(x)


class Upsample(nn.Module):
  """Every pixel becomes four, then a 3x3 convolution: twice the height and width."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, height, width, channels = x.shape
    # The gradient of this is a sum; that of jax.image.resize is a slow scatter.
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    x = x.reshape(batch, 2 * height, 2 * width, channels)
    return conv(channels, self.dtype, name='conv')(x)


def conv(channels: int, dtype: Any, init: Any = GLOROT, strides: int = 1, *, name: str) -> nn.Conv:
  """A 3x3 convolution with bias, DDPM's initialization."""
  return nn.Conv(channels, (3, 3), strides, kernel_init=init, dtype=dtype, name=name)


def dense(features: int, dtype: Any, init: Any = GLOROT, *, name: str) -> nn.Dense:
  """A linear map of the last axis with bias, DDPM's initialization."""
  return nn.Dense(features, kernel_init=init, dtype=dtype, name=name)
