"""A sweep: which loss trains the digits' network best, at equal steps and with paired seeds?

  python -m experiments.ablate --config=configs/digits_losses.py --workdir=runs/losses --seeds=3

Every loss that trains `configs/digits.py` from nothing; samples are drawn without guidance. To ask
another question copy it and change sweep(), which returns the settings that each variant overrides;
the first variant is what the others are compared with. docs/ablations.md says what was found.
"""

from ml_collections import ConfigDict

from configs.digits import get_config as digits
from ddpm_jax.ablation import listed, vary
from ddpm_jax.ablation.sweep import Sweep

LOSSES = (
  *('simple', 'x0', 'v', 'flow_matching', 'truncated_snr', 'min_snr', 'soft_min_snr', 'p2'),
  *('sigmoid', 'edm', 'logit_normal', 'laplace', 'uncertainty', 'sliced_score', 'variational'),
)


def get_config() -> ConfigDict:
  """The settings that all variants have."""
  config = digits()
  config.sampler.guidance = 1.0
  config.evaluation.likelihoods = ('chain', 'continuous')
  return config


def sweep() -> Sweep:
  """The losses; one whose learned variance needs a sampler that uses it, and that sampler alone."""
  return listed(
    vary('loss.name', *LOSSES),
    [
      {'loss.name': 'simple', 'sampler.name': 'ancestral'},
      {
        'loss.name': 'hybrid',
        'model.learn_variance': True,
        'sampler.name': 'ancestral',
        'sampler.variance': 'fraction',
      },
    ],
  )
