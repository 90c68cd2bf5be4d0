"""CIFAR-10, unconditional: the recipe of the original DDPM.

Published: FID 3.17 against the training set and Inception Score 9.46, from 50,000 samples of the
averaged parameters; 35.7 M parameters, 800,000 steps, 10.6 hours on a TPU v3-8. It hasn't been
trained to its end with this code.

Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, table 1 and appendix B.
"""

from ml_collections import ConfigDict

from ddpm_jax.config import base_config


def get_config() -> ConfigDict:
  """The settings."""
  config = base_config()

  config.dataset.name = 'cifar10'
  config.dataset.batch_size = 128
  config.dataset.flip = True
  config.dataset.conditional = False

  config.model.name = 'unet'
  config.model.channels = 128
  config.model.multipliers = (1, 2, 2, 2)
  config.model.num_res_blocks = 2
  config.model.attention_resolutions = (16,)
  config.model.dropout = 0.1

  config.schedule.name = 'linear'
  config.schedule.num_steps = 1000
  config.schedule.beta_start = 1e-4
  config.schedule.beta_end = 0.02
  config.parameterization.name = 'eps'
  config.loss.name = 'simple'

  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 2e-4
  config.optimizer.warmup_steps = 5000
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.9999
  config.ema.warmup = False

  config.training.num_steps = 800_000

  config.sampler.name = 'ancestral'
  config.sampler.variance = 'large'
  config.sampler.num_steps = 1000

  config.evaluation.every_steps = 10_000
  config.evaluation.num_samples = 50_000
  config.checkpoint.every_steps = 5000
  config.logging.every_steps = 100
  config.logging.preview_every_steps = 10_000
  return config
