"""Loss variants: what the network predicts × weight × law of t × distance, and whole functions.

A loss is `loss(problem, params, state, batch, keys) -> LossOutput(values (B,), metrics, state)`. It
sees batch['image'] as float in [-1, 1], and never reduces over the batch. LOSSES maps names to such
functions; those that are products start from the factors of PRESETS, each of which a flag may
replace, as in --config.loss.time_law=stratified.
"""

from __future__ import annotations

from ddpm_jax.errors import choose
from ddpm_jax.losses.distances import DISTANCES
from ddpm_jax.losses.evidence import elbo
from ddpm_jax.losses.problem import Factors, Loss, LossOutput, Problem
from ddpm_jax.losses.product import product
from ddpm_jax.losses.time_laws import TIME_LAWS
from ddpm_jax.losses.variational import variational
from ddpm_jax.losses.weights import WEIGHTS

LOSSES: dict[str, Loss] = {
  'simple': product,
  'elbo': elbo,
  'variational': variational,
}

PRESETS = {
  'simple': {'weight': 'simple', 'time_law': 'uniform', 'distance': 'l2'},
}

FACTORS = {'weight': WEIGHTS, 'time_law': TIME_LAWS, 'distance': DISTANCES}


def make_factors(
  name: str, *, weight: str | None = None, time_law: str | None = None, distance: str | None = None
) -> Factors:
  """The factors of a preset, with those replaced whose name is given.

  A loss with no preset of its own (a plug-in) starts from those of 'simple'.

  Raises:
    InputError: for a factor that is not in its table.
  """
  given = {'weight': weight, 'time_law': time_law, 'distance': distance}
  chosen = PRESETS.get(name, PRESETS['simple']) | {k: v for k, v in given.items() if v}
  return Factors(
    weight=choose(WEIGHTS, chosen['weight'], 'config.loss.weight'),
    time_law=choose(TIME_LAWS, chosen['time_law'], 'config.loss.time_law'),
    distance=choose(DISTANCES, chosen['distance'], 'config.loss.distance'),
  )


__all__ = [
  'DISTANCES',
  'FACTORS',
  'LOSSES',
  'PRESETS',
  'TIME_LAWS',
  'WEIGHTS',
  'Factors',
  'Loss',
  'LossOutput',
  'Problem',
  'make_factors',
]
