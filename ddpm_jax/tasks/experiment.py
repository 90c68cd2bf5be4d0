"""An experiment: the objects that a config names, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import optax
from jax import Array

from ddpm_jax import data
from ddpm_jax.codec import Codec
from ddpm_jax.config.settings import Config
from ddpm_jax.diffusion import Parameterization, Schedule
from ddpm_jax.diffusion.parameterization import Network
from ddpm_jax.keys import for_purpose
from ddpm_jax.losses import Factors, Loss
from ddpm_jax.samplers import Sampler, Solver


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects that a config names: plain data, of which a task is made.

  What the config leaves unset, as an autoencoder's schedule, is None.

  Attributes:
    config: what it was built from.
    dataset: with the specification of its condition; {} where the config turns that off.
    codec: between the data as stored and what is diffused.
    schedule: the path that is trained on.
    parameterization: what the network predicts.
    module: the network.
    network: the module as a function (params, x, noise_label, cond, index, keys) -> output.
    loss: an entry of LOSSES, its arguments bound.
    factors: of a loss that is a product.
    optimizer: clipping included.
    learning_rate: step -> rate.
    sampler: by which samples are drawn.
  """

  config: Config
  dataset: data.Dataset
  codec: Codec
  schedule: Schedule | None
  parameterization: Parameterization | None
  module: nn.Module
  network: Network
  loss: Loss
  factors: Factors
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  sampler: Sampler | Solver | None

  @property
  def conditional(self) -> bool:
    """Whether the network is told anything of an example."""
    return bool(self.dataset.cond)

  def encode(self, frozen: Mapping[str, Any], x: Array, keys: Array) -> Array:
    """Examples x (B, …) as stored in the codec's numbers; keys (B,) are those of the examples."""
    return self.codec.encode(frozen['codec'], x, for_purpose(keys, 'codec'))

  def decode(self, frozen: Mapping[str, Any], z: Array) -> Array:
    """The codec's numbers (B, …) as pictures, uint8 (B, H, W, C)."""
    return self.codec.decode(frozen['codec'], z)
