"""Loss variants: products of weight, distance, timestep and noise distribution; whole functions.

A loss is `loss(context, params, state, batch, keys) -> LossOutput(values (B,), metrics, state)`. A
batch has 'x', what is diffused (B, …), which for pixels is in [-1, 1]; 'cond', the condition; and
'index' (B,). A loss never reduces over the batch. LOSSES maps names to such functions; those that
are products start from the factors of PRESETS, each of which a flag may replace, as in
--config.loss.timestep_distribution=stratified. A loss with parameters or a state of its own says
how they begin, by `starts_with`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ddpm_jax.losses import distances, timestep_distributions, weights
from ddpm_jax.losses.consistency import consistency_distillation, consistency_training
from ddpm_jax.losses.context import Factors, Loss, LossContext, LossOutput, start, starts_with
from ddpm_jax.losses.distances import DISTANCES
from ddpm_jax.losses.distillation import progressive
from ddpm_jax.losses.evidence import elbo
from ddpm_jax.losses.learned_uncertainty import uncertainty
from ddpm_jax.losses.learned_variance import hybrid
from ddpm_jax.losses.noise_distributions import NOISE_DISTRIBUTIONS
from ddpm_jax.losses.products import product
from ddpm_jax.losses.score_matching import denoising_score, sliced_score
from ddpm_jax.losses.timestep_distributions import TIMESTEP_DISTRIBUTIONS
from ddpm_jax.losses.variational_terms import variational
from ddpm_jax.losses.weights import WEIGHTS

LOSSES: dict[str, Loss] = {
  'simple': product,
  'x0': product,
  'v': product,
  'truncated_snr': product,
  'min_snr': product,
  'soft_min_snr': product,
  'p2': product,
  'sigmoid': product,
  'edm': product,
  'logit_normal': product,
  'laplace': product,
  'hybrid': hybrid,
  'uncertainty': uncertainty,
  'variational': variational,
  'elbo': elbo,
  'flow_matching': product,
  'denoising_score': denoising_score,
  'sliced_score': sliced_score,
  'consistency_training': consistency_training,
  'consistency_distillation': consistency_distillation,
  'progressive': progressive,
}

# Those that learn from the run of config.training.init_from, and what that has to predict; None:
# the same.
OF_TEACHERS = {'consistency_distillation': 'edm', 'progressive': None}

# Those that train an autoencoder; the others train a network that removes noise.
OF_AUTOENCODERS = frozenset({'elbo'})

SIMPLE = Factors(weights.simple, timestep_distributions.uniform, distances.l2)
PRESETS = {
  'simple': SIMPLE,
  'x0': SIMPLE._replace(weight=weights.inverse_snr),
  'v': SIMPLE._replace(weight=weights.snr_plus_one),
  'flow_matching': SIMPLE._replace(weight=weights.flow),
  'truncated_snr': SIMPLE._replace(weight=weights.truncated_snr),
  'min_snr': SIMPLE._replace(weight=weights.min_snr),
  'soft_min_snr': SIMPLE._replace(weight=weights.soft_min_snr),
  'p2': SIMPLE._replace(weight=weights.p2),
  'sigmoid': SIMPLE._replace(weight=weights.sigmoid),
  'edm': SIMPLE._replace(
    weight=weights.edm, timestep_distribution=timestep_distributions.log_normal
  ),
  'logit_normal': SIMPLE._replace(
    weight=weights.flow, timestep_distribution=timestep_distributions.logit_normal
  ),
  'laplace': SIMPLE._replace(
    weight=weights.output, timestep_distribution=timestep_distributions.laplace
  ),
  'hybrid': SIMPLE,
  'uncertainty': SIMPLE._replace(
    weight=weights.edm, timestep_distribution=timestep_distributions.log_normal
  ),
  'progressive': SIMPLE._replace(weight=weights.truncated_snr),
  'denoising_score': SIMPLE,
  'sliced_score': SIMPLE,
}

FACTORS = {
  'weight': WEIGHTS,
  'timestep_distribution': TIMESTEP_DISTRIBUTIONS,
  'distance': DISTANCES,
  'noise_distribution': NOISE_DISTRIBUTIONS,
}


def make_factors(name: str, **given: Callable) -> Factors:
  """The factors of a preset, with those given in place of its own.

  A loss with no preset of its own (a plug-in) starts from those of 'simple'.
  """
  return PRESETS.get(name, SIMPLE)._replace(**given)


def trained_variance(name: str, arguments: Mapping[str, Any]) -> bool:
  """Whether a loss of LOSSES, with these arguments, trains a learned variance."""
  return name == 'hybrid' or arguments.get('variance') in ('fraction', 'optimal')


__all__ = [
  'DISTANCES',
  'FACTORS',
  'LOSSES',
  'NOISE_DISTRIBUTIONS',
  'OF_AUTOENCODERS',
  'OF_TEACHERS',
  'PRESETS',
  'TIMESTEP_DISTRIBUTIONS',
  'WEIGHTS',
  'Factors',
  'Loss',
  'LossContext',
  'LossOutput',
  'make_factors',
  'start',
  'starts_with',
  'trained_variance',
]
