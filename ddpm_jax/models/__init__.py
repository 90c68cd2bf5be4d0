"""Flax networks, and what makes plain functions of them."""

from ddpm_jax.models.autoencoder import Autoencoder, Coder, init_coder, make_coder
from ddpm_jax.models.layers import drop_cond
from ddpm_jax.models.mlp import MLP
from ddpm_jax.models.network import (
  checked_cond,
  init_network,
  make_network,
  never_null,
  null_cond,
  num_params,
  tell_augmentation,
  tell_estimate,
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
  'drop_cond',
  'init_coder',
  'init_network',
  'make_coder',
  'make_network',
  'never_null',
  'null_cond',
  'num_params',
  'tell_augmentation',
  'tell_estimate',
]
