"""A sweep: which loss trains the digits' network best, at equal steps and with paired seeds?

  python -m experiments.ablate --config=configs/digits_losses.py --workdir=runs/losses --workers=2

Three losses under two schedules at three seeds: 18 runs of `configs/digits.py`, their samples drawn
without guidance. To ask another question copy it and change sweep(), which returns the settings
that each variant overrides; the first variant is what the others are compared with.
"""

from ml_collections import ConfigDict

from configs.digits import get_config as digits
from ddpm_jax.ablation import grid, vary
from ddpm_jax.ablation.sweep import Sweep


def get_config() -> ConfigDict:
  """The settings that all variants have."""
  config = digits()
  config.sampler.guidance = 1.0
  config.evaluation.likelihoods = ('chain', 'continuous')
  return config


def sweep() -> Sweep:
  """The simple loss, the same with times drawn evenly, and the bound; each on two schedules."""
  losses = [
    {'loss.name': 'simple'},
    {'loss.name': 'simple', 'loss.time_law': 'stratified'},
    {'loss.name': 'variational'},
  ]
  return grid(losses, vary('schedule.name', 'cosine', 'linear'))
