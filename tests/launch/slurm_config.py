"""A run of a few seconds that any recipe starts: a network of two layers on the digits."""

import os

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpm_jax.config import base_config

SETTINGS = {
  'dataset.name': 'digits',
  'dataset.batch_size': 16,
  'model.name': 'slurm_config:Net',
  'schedule.name': 'cosine',
  'schedule.num_steps': 20,
  'parameterization.name': 'eps',
  'loss.name': 'simple',
  'optimizer.name': 'adam',
  'sampler.name': 'ddim',
  'sampler.num_steps': 2,
  'ema.decay': 0.9,
  'evaluation.every_steps': 1_000_000,
  'evaluation.batch_size': 8,
  'checkpoint.every_steps': 1_000_000,
  'logging.every_steps': 100,
  'logging.preview_every_steps': 1_000_000,
}


class Net(nn.Module):
  """Two dense layers that are told the noise; in the task that $FAILING names it fails."""

  spec: dict
  out_channels: int
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    if os.environ.get('FAILING') == str(jax.process_index()):
      raise RuntimeError('as asked')
    flat = x.reshape(x.shape[0], -1)
    noise = jnp.log1p(noise_label).reshape(-1, 1)
    hidden = nn.tanh(nn.Dense(16, self.dtype)(jnp.concatenate([flat, noise], axis=1)))
    return nn.Dense(flat.shape[1], dtype=jnp.float32)(hidden).reshape(x.shape)


def get_config() -> ConfigDict:
  """The settings."""
  config = base_config()
  for path, value in SETTINGS.items():
    group, name = path.split('.')
    config[group][name] = value
  return config
