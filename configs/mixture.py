"""A mixture of four Gaussians in the plane, whose exact denoiser is known: any loss in seconds.

One CPU core trains it in about half a minute. `python -m experiments.benchmarks.exactness` trains
every loss here and says how far each network ends from the exact denoiser.
"""

from ml_collections import ConfigDict

from ddpm_jax.config import base_config


def get_config() -> ConfigDict:
  """The settings."""
  config = base_config()

  config.dataset.name = 'mixture'
  config.dataset.batch_size = 256
  config.dataset.conditional = False

  config.model.name = 'mlp'
  config.model.width = 64
  config.model.depth = 3

  config.schedule.name = 'cosine'
  config.schedule.num_steps = 1000
  config.parameterization.name = 'v'
  config.parameterization.noise_label = 'log_snr'
  config.loss.name = 'simple'

  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 3e-3
  config.optimizer.lr_schedule = 'cosine'
  config.optimizer.warmup_steps = 100
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.995

  config.training.num_steps = 4000

  config.sampler.name = 'ddim'
  config.sampler.num_steps = 50

  config.evaluation.every_steps = 2000
  config.evaluation.num_samples = 1000
  config.checkpoint.every_steps = 2000
  config.logging.every_steps = 100
  config.logging.preview_every_steps = 4000
  return config
