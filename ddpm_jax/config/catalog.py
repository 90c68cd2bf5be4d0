"""The package's own tables, in which the names in a config are looked up."""

from __future__ import annotations

from ddpm_jax.config.tables import Group, Tables


def all_tables() -> Tables:
  """The package's own tables."""
  # Here and not above: tasks read settings, and Python reads this module with them.
  from ddpm_jax import codec, data, losses, models, samplers
  from ddpm_jax.diffusion import parameterization, schedules
  from ddpm_jax.tasks import likelihoods, table
  from ddpm_jax.training import optimizers, parallel

  groups = {
    'task': Group(table.TASKS, frozenset({'experiment', 'teacher'})),
    'dataset': Group(data.DATASETS, fallback=data.source),
    'codec': Group(codec.CODECS, frozenset({'shape', 'num_levels'})),
    'model': Group(models.MODELS, frozenset({'spec', 'out_channels'})),
    'schedule': Group(schedules.SCHEDULES),
    'parameterization': Group(parameterization.PARAMETERIZATIONS),
    'loss': Group(losses.LOSSES, frozenset({'context', 'params', 'state', 'batch', 'keys'})),
    'optimizer': Group(optimizers.OPTIMIZERS, frozenset({'learning_rate'})),
    'sampler': Group(samplers.SAMPLERS | samplers.SOLVERS),
  }
  options = {
    'parameterization.variance_head': parameterization.VARIANCE_HEADS,
    'optimizer.lr_schedule': optimizers.LR_SCHEDULES,
    'sampler.grid': samplers.TIME_GRIDS,
    'sampler.noise': samplers.NOISES,
    'sampler.threshold': samplers.THRESHOLDS,
    'parallel.mode': parallel.PARALLEL,
    'evaluation.likelihoods': likelihoods.LIKELIHOODS,
    'evaluation.decoder': likelihoods.DECODERS,
  }
  factors = {f'loss.{factor}': entries for factor, entries in losses.FACTORS.items()}
  return Tables(groups, options, factors, table.UNREAD)
