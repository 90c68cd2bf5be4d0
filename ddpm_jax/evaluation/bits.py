"""The ways in which a run's bits per dimension are measured, by its kind of model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.errors import InputError, choose
from ddpm_jax.evaluation import evidence
from ddpm_jax.evaluation.likelihood import DECODERS, LIKELIHOODS, Bits, Settings, make_bits
from ddpm_jax.training.experiment import Experiment, denoiser

Measures = dict[str, tuple[Bits, str]]


def denoiser_bits(
  experiment: Experiment,
  names: Sequence[str] | None = None,
  variance: str | None = None,
  exact: bool = False,
) -> Measures:
  """Likelihoods of a network that removes noise, each as a function and in words.

  Args:
    experiment: on the schedule that it learned, if any.
    names: of LIKELIHOODS; None: the config's.
    variance: of a chain's reverse steps; None: `chosen_variance`'s.
    exact: sum a chain's bound over every time, not a draw of some.

  Raises:
    InputError: there is no such likelihood, the schedule has none such, or the variance was not
      learned.
  """
  wanted, num_levels = experiment.config.evaluation, experiment.dataset.num_levels
  how = Settings(
    decoder=DECODERS[wanted.decoder](num_levels),
    variance=chosen_variance(experiment, variance),
    strata=None if exact else wanted.strata,
  )

  def make(schedule: Schedule, params: Any, cond: dict[str, Array]) -> Denoiser:
    return denoiser(dataclasses.replace(experiment, schedule=schedule), params, cond)

  conditional = experiment.dataset.num_classes is not None
  rows = {}
  for name in names or wanted.likelihoods:
    entry = choose(LIKELIHOODS, name, '--likelihood')
    try:
      likelihood = entry(experiment.schedule, how)
    except ValueError as error:
      raise InputError(f"the likelihood '{name}' on this schedule: {error}") from error
    rows[name] = make_bits(make, likelihood, num_levels, conditional=conditional), likelihood.how
  return rows


def chosen_variance(experiment: Experiment, wanted: str | None) -> str:
  """The one wanted; else the learned one, else 'large', for the variational loss 'small'.

  Raises:
    InputError: it is one that the network did not learn.
  """
  learns = getattr(experiment.module, 'learn_variance', False)
  learned = experiment.parameterization.head.variance if learns else None
  usual = 'small' if experiment.config.loss.name == 'variational' else 'large'
  if wanted not in (None, 'small', 'large', learned):
    raise InputError(f'--variance: this network learned no {wanted}; choose small or large')
  return wanted or learned or usual


def autoencoder_bits(experiment: Experiment) -> Measures:
  """Both of an autoencoder's bounds."""
  draws = experiment.config.evaluation.draws
  return {
    name: (evidence.make_evidence_bits(experiment, name, draws), f'{draws} draws for each image')
    for name in evidence.BOUNDS
  }


BITS: dict[str, Callable[[Experiment], Measures]] = {
  'denoiser': denoiser_bits,
  'autoencoder': autoencoder_bits,
}
