"""The networks of a variational autoencoder, q_theta(z | x) and p(x | z): dense, small images."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from annotated_types import Interval, Len
from flax.core import FrozenDict
from jax import Array

from ddpm_jax.bounds import check_fields
from ddpm_jax.condition import Spec
from ddpm_jax.models.layers import num_classes_in
from ddpm_jax.models.network import Params, checked_cond, null_cond

Width = Annotated[int, Interval(ge=1, le=65_536)]
Moments = tuple[Array, Array]
Shape = tuple[int, ...]


class Coder(NamedTuple):
  """An autoencoder as plain functions, of one example or of a batch of them.

  Attributes:
    encode: (params, x (…, H, W, C), cond) -> mean and variance of q(z | x), (…, latents) each.
    decode: (params, z (…, latents), cond, (H, W, C)) -> those of p(x | z), (…, H, W, C) each.
    latents: the size of z.
  """

  encode: Callable[[Params, Array, Mapping[str, Array]], Moments]
  decode: Callable[[Params, Array, Mapping[str, Array], Shape], Moments]
  latents: int


class Perceptron(nn.Module):
  """Dense layers with silu between them."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, h: Array) -> Array:
    for number, width in enumerate(self.widths):
      h = nn.Dense(width, name=f'dense_{number}')(nn.silu(h) if number else h)
    return h


class Decoder(nn.Module):
  """Dense layers from z to two numbers for each of an image's."""

  widths: tuple[int, ...]

  @nn.compact
  def __call__(self, z: Array, shape: Shape) -> Array:
    h = Perceptron((*self.widths, 2 * math.prod(shape)), name='layers')(z)
    return h.reshape(*z.shape[:-1], 2, *shape)


class Autoencoder(nn.Module):
  """Images to a Gaussian over z and back to one over images, each of independent components.

  Called it gives the mean of p(x | z) at the mean z of q(z | x), a reconstruction.

  Attributes:
    latents: the size of z.
    widths: of the encoder's hidden layers; the decoder's are these in reverse.
    spec: of the condition: a class label, {'label': Field(…)}, or {} for an unconditional
      autoencoder. Both networks are told the label, one hot; the null label is no class at all.
    out_channels: of the image.
  """

  latents: Width = 16
  widths: Annotated[tuple[Width, ...], Len(0, 100)] = (256, 256)
  spec: Spec = FrozenDict()
  out_channels: int = 3

  def setup(self) -> None:
    check_fields(self)
    self.encoder = Perceptron((*self.widths, 2 * self.latents))
    self.decoder = Decoder(self.widths[::-1])

  def __call__(self, x: Array, cond: Mapping[str, Array]) -> Array:
    """Maps (B, H, W, C) to its reconstruction of that shape."""
    mean, _ = self.encode(x, cond)
    return self.decode(mean, cond, x.shape[-3:])[0]

  def encode(self, x: Array, cond: Mapping[str, Array]) -> Moments:
    """Mean and variance of q(z | x)."""
    flat = x.reshape(*x.shape[:-3], -1)
    mean, log_variance = jnp.split(self.encoder(self._told(flat, cond)), 2, axis=-1)
    return mean, jnp.exp(log_variance)

  def decode(self, z: Array, cond: Mapping[str, Array], shape: Shape) -> Moments:
    """Mean and variance of p(x | z) for images of shape (H, W, C)."""
    output = self.decoder(self._told(z, cond), shape)
    mean, log_variance = jnp.moveaxis(output, -1 - len(shape), 0)
    return mean, jnp.exp(log_variance)

  def _told(self, h: Array, cond: Mapping[str, Array]) -> Array:
    num_classes = num_classes_in(self.spec)
    if num_classes is None:
      return h
    return jnp.concatenate([h, jax.nn.one_hot(cond['label'], num_classes)], axis=-1)


def make_coder(module: Autoencoder) -> Coder:
  """The autoencoder's two networks as functions of their parameters."""

  def encode(params: Params, x: Array, cond: Mapping[str, Array]) -> Any:
    return module.apply({'params': params}, x, checked_cond(module, cond), method='encode')

  def decode(params: Params, z: Array, cond: Mapping[str, Array], shape: Shape) -> Any:
    told = checked_cond(module, cond)
    return module.apply({'params': params}, z, told, shape, method='decode')

  return Coder(encode, decode, module.latents)


def init_coder(module: Autoencoder, key: Array, image_shape: tuple[int, ...]) -> Params:
  """Initial parameters for images of shape (H, W, C)."""
  return module.init(key, jnp.zeros((1, *image_shape)), null_cond(module, 1))['params']
