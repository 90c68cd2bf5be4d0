"""Flax networks, and what makes plain functions of them."""

from ddpm_jax.models.autoencoder import Autoencoder, Coder, make_coder
from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.network import (
  checked_cond,
  init_network,
  make_network,
  null_cond,
  num_params,
)
from ddpm_jax.models.unet import UNet

MODELS = {'unet': UNet, 'mlp': MLP, 'autoencoder': Autoencoder}

__all__ = [
  'MLP',
  'MODELS',
  'Autoencoder',
  'Coder',
  'UNet',
  'checked_cond',
  'init_network',
  'make_coder',
  'make_network',
  'null_cond',
  'num_params',
]
