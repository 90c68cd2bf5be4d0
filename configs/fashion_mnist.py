"""Fashion-MNIST, 28x28, by class: a first real data set, sized for an hour on two CPU cores.

Three levels of 28, 14 and 7 pixels; 117 images a second on two cores, 55 minutes for all steps.
"""

from ml_collections import ConfigDict

from ddpm_jax.config import base_config


def get_config() -> ConfigDict:
  """The settings."""
  config = base_config()

  config.dataset.name = 'fashion_mnist'
  config.dataset.batch_size = 64
  config.dataset.flip = True

  config.model.name = 'unet'
  config.model.channels = 32
  config.model.multipliers = (1, 2, 2)
  config.model.num_res_blocks = 1
  config.model.attention_resolutions = (7,)
  config.model.dropout = 0.0
  config.model.label_dropout = 0.1

  config.schedule.name = 'cosine'
  config.schedule.num_steps = 1000
  config.parameterization.name = 'v'
  config.loss.name = 'simple'

  config.optimizer.name = 'adam'
  config.optimizer.learning_rate = 5e-4
  config.optimizer.warmup_steps = 300
  config.optimizer.clip_norm = 1.0
  config.ema.decay = 0.998

  config.training.num_steps = 6000

  config.sampler.name = 'ddim'
  config.sampler.num_steps = 50
  config.sampler.guidance = 1.5

  config.evaluation.every_steps = 1000
  config.checkpoint.every_steps = 500
  config.logging.every_steps = 20
  config.logging.preview_every_steps = 1000
  return config
