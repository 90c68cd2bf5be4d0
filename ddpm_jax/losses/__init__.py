"""Loss variants: predicted quantity × weight × distance under laws of t and noise; whole functions.

A loss is `loss(problem, params, state, batch, keys) -> LossOutput(values (B,), metrics, state)`. It
sees batch['image'] as float in [-1, 1], and never reduces over the batch. LOSSES maps names to such
functions; those that are products start from the factors of PRESETS, each of which a flag may
replace, as in --config.loss.time_law=stratified. A loss with parameters or a state of its own says
how they begin, by `starts_with`.
"""

from __future__ import annotations

from collections.abc import Callable

from ddpm_jax.losses.consistency import consistency_distillation, consistency_training
from ddpm_jax.losses.distances import DISTANCES, l2
from ddpm_jax.losses.distillation import progressive
from ddpm_jax.losses.evidence import elbo
from ddpm_jax.losses.noise_laws import NOISE_LAWS
from ddpm_jax.losses.problem import Factors, Loss, LossOutput, Problem, start, starts_with
from ddpm_jax.losses.product import product
from ddpm_jax.losses.score_matching import denoising_score, sliced_score
from ddpm_jax.losses.time_laws import TIME_LAWS, uniform
from ddpm_jax.losses.variational import variational
from ddpm_jax.losses.weights import WEIGHTS, output, simple

LOSSES: dict[str, Loss] = {
  'simple': product,
  'elbo': elbo,
  'variational': variational,
  'flow_matching': product,
  'denoising_score': denoising_score,
  'sliced_score': sliced_score,
  'consistency_training': consistency_training,
  'consistency_distillation': consistency_distillation,
  'progressive': progressive,
}

# Those that learn from the run of config.training.init_from.
OF_TEACHERS = frozenset({'consistency_distillation', 'progressive'})

PRESETS = {
  'simple': Factors(weight=simple, time_law=uniform, distance=l2),
  # Lipman et al. 2022, https://arxiv.org/abs/2210.02747, where the network predicts the flow.
  'flow_matching': Factors(weight=output, time_law=uniform, distance=l2),
  'progressive': Factors(weight=output, time_law=uniform, distance=l2),
}

FACTORS = {'weight': WEIGHTS, 'time_law': TIME_LAWS, 'distance': DISTANCES, 'noise_law': NOISE_LAWS}


def make_factors(name: str, **given: Callable) -> Factors:
  """The factors of a preset, with those given in place of its own.

  A loss with no preset of its own (a plug-in) starts from those of 'simple'.
  """
  return PRESETS.get(name, PRESETS['simple'])._replace(**given)


__all__ = [
  'DISTANCES',
  'FACTORS',
  'LOSSES',
  'NOISE_LAWS',
  'OF_TEACHERS',
  'PRESETS',
  'TIME_LAWS',
  'WEIGHTS',
  'Factors',
  'Loss',
  'LossOutput',
  'Problem',
  'make_factors',
  'start',
  'starts_with',
]
