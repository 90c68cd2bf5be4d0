"""Bits per dimension under a network that removes noise, by each of LIKELIHOODS.

Every one of them is a bound on -log P of the data under a model of its own, which nothing orders
for a trained network; with the exact denoiser they agree but for the length of the chain.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.condition import Cond
from ddpm_jax.diffusion import (
  bits_per_dim,
  categorical,
  discretized,
  stratified_bound,
  variational_bound,
)
from ddpm_jax.diffusion import prior as customary_prior
from ddpm_jax.diffusion.bound import Decoder
from ddpm_jax.diffusion.continuous_bound import continuous_bound, even_in_cost
from ddpm_jax.diffusion.likelihood import noised_log_prob
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Discrete, Schedule, interpolate
from ddpm_jax.errors import InputError, choose
from ddpm_jax.keys import example_keys
from ddpm_jax.samplers import THRESHOLDS
from ddpm_jax.tasks.drawing import denoiser
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.training.task import Batch, Measure, NoMeasure

Clip = Callable[[Denoiser], Denoiser]

STEPS = 1000  # of a chain through continuous time


class Settings(NamedTuple):
  """How likelihoods are measured.

  Attributes:
    decoder: p(x0 | x_{t_1}).
    variance: of a chain's reverse steps, a key of VARIANCES.
    strata: the number of terms drawn for each example; None takes all of a chain's.
    clip: a denoiser -> the same within the data's bounds.
  """

  decoder: Decoder
  variance: str
  strata: int | None
  clip: Clip


class Likelihood(NamedTuple):
  """A way of finding -log P of an example, or a bound on it.

  Attributes:
    schedule: the path on which the network is read.
    nats: (make, x0 (B, …), cond, key, index (B,)) -> (B,), where make(cond) is a denoiser.
    how: in words.
  """

  schedule: Schedule
  nats: Callable[[Callable[[Cond], Denoiser], Array, Cond, Array, Array], Array]
  how: str


def chain(schedule: Schedule, settings: Settings) -> Likelihood:
  """The variational bound of a chain's reverse steps, x0 clipped to the data's bounds.

  As in DDPM's code: the data lies there, so that this only tightens the bound of a fixed variance.
  In continuous time the chain is of STEPS steps, even in log(1 + SNR).
  """
  strata, variance = settings.strata, settings.variance
  bound = functools.partial(stratified_bound, strata=strata) if strata else variational_bound

  def nats(make: Any, x0: Array, cond: Cond, key: Array, index: Array) -> Array:
    return bound(
      schedule,
      settings.clip(make(cond)),
      x0,
      key,
      times=chain_times(schedule),
      variance=variance,
      decoder=settings.decoder,
      index=index,
    ).total

  steps = schedule.num_steps if isinstance(schedule, Discrete) else STEPS
  how = f"reverse chain, variance '{variance}': {strata or 'all'} of {steps} times for each image"
  return Likelihood(schedule, nats, how)


def chain_times(schedule: Schedule) -> Array:
  """(T,), from t_max to t_min: every time of a discrete chain."""
  if isinstance(schedule, Discrete):
    return jnp.arange(schedule.num_steps, 0, -1)
  return jax.vmap(lambda share: even_in_cost(schedule, share)[0])(jnp.linspace(0, 1, STEPS))


def continuous(schedule: Schedule, settings: Settings) -> Likelihood:
  """The variational bound of infinitely many steps, x0 clipped to the data's bounds."""
  schedule, strata = in_continuous_time(schedule), settings.strata or STEPS

  def nats(make: Any, x0: Array, cond: Cond, key: Array, index: Array) -> Array:
    decoder = settings.decoder
    denoiser = settings.clip(make(cond))
    return continuous_bound(
      schedule, denoiser, x0, key, strata=strata, decoder=decoder, index=index
    ).total

  how = f'reverse SDE: {strata} noise levels for each image'
  return Likelihood(schedule, nats, how)


def ode(schedule: Schedule, settings: Settings) -> Likelihood:
  """The density of the probability-flow ODE, its divergence by one Rademacher probe an example."""
  schedule = in_continuous_time(schedule)

  def prior(x: Array) -> Array:
    return customary_prior(schedule, x, schedule.t_max).log_prob(x)

  def nats(make: Any, x0: Array, cond: Cond, key: Array, index: Array) -> Array:
    def example(x0: Array, cond: Cond, index: Array) -> Array:
      return noised_log_prob(
        schedule,
        make(cond),
        x0,
        key,
        prior=prior,
        decoder=settings.decoder,
        divergence='rademacher',
        index=index,
      )[0]

    # One by one, since each takes steps of its own through the flow given its own label.
    alone = jax.tree.map(lambda leaf: leaf[:, None], (x0, cond, index))
    return -jax.vmap(example)(*alone)

  return Likelihood(schedule, nats, 'flow of the ODE from t_min, where the path is the dequantizer')


LIKELIHOODS: dict[str, Callable[[Schedule, Settings], Likelihood]] = {
  'chain': chain,
  'continuous': continuous,
  'ode': ode,
}

DECODERS: dict[str, Callable[[int], Decoder]] = {
  'discretized': discretized,
  'categorical': categorical,
}


def in_continuous_time(schedule: Schedule) -> Schedule:
  """The schedule, a chain by `interpolate`."""
  return interpolate(schedule) if isinstance(schedule, Discrete) else schedule


def measures(
  experiment: Experiment,
  names: Sequence[str] | None = None,
  variance: str | None = None,
  exact: bool = False,
) -> dict[str, Measure]:
  """Likelihoods of a network that removes noise, each as a function and in words.

  Args:
    experiment: on the schedule that it learned, if any.
    names: of LIKELIHOODS; None: the config's.
    variance: of a chain's reverse steps; None: `chosen_variance`'s.
    exact: sum a chain's bound over every time, not a draw of some.

  Raises:
    InputError: there is no such likelihood, the schedule has none such, the variance was not
      learned, or the codec loses something of the data.
  """
  wanted, codec = experiment.config.evaluation, experiment.codec
  try:
    num_levels = codec.levels('bits/dim')
  except ValueError as error:
    raise NoMeasure(f'config.{error}') from error
  how = Settings(
    decoder=DECODERS[wanted.decoder](num_levels),
    variance=chosen_variance(experiment, variance),
    strata=None if exact else wanted.strata,
    clip=lambda denoiser: THRESHOLDS['clip'](denoiser, codec.bounds),
  )
  schedule: Any = experiment.schedule
  found = {}
  for name in names or wanted.likelihoods:
    entry = choose(LIKELIHOODS, name, '--likelihood')
    try:
      likelihood = entry(schedule, how)
    except ValueError as error:
      raise InputError(f"the likelihood '{name}' on this schedule: {error}") from error
    found[name] = Measure(make_bits(experiment, likelihood), likelihood.how)
  return found


def make_bits(experiment: Experiment, likelihood: Likelihood) -> Callable[..., Array]:
  """Makes bits(params, frozen, key, batch) -> (B,), each example's bits/dim, compiled.

  The batch has 'x' as it is stored, 'cond', and 'index', which decides the draws. For a conditional
  network the bits are those of an example given its condition.
  """

  @jax.jit
  def bits(params: Any, frozen: Any, key: Array, batch: Batch) -> Array:
    def read(cond: Cond) -> Denoiser:
      return denoiser(experiment, params['network'], cond, likelihood.schedule)

    x0 = experiment.encode(frozen, batch['x'], example_keys(key, batch['index']))
    nats = likelihood.nats(read, x0, batch['cond'], key, batch['index'])
    return bits_per_dim(nats, x0[0])

  return bits


def chosen_variance(experiment: Experiment, wanted: str | None) -> str:
  """The one wanted; else the learned one, else 'large', for the variational loss 'small'.

  Raises:
    InputError: it is one that the network did not learn.
  """
  parameterization: Any = experiment.parameterization
  learns = getattr(experiment.module, 'learn_variance', False)
  learned = parameterization.head.variance if learns else None
  usual = 'small' if experiment.config.loss.name == 'variational' else 'large'
  if wanted not in (None, 'small', 'large', learned):
    raise InputError(f'--variance: this network learned no {wanted}; choose small or large')
  return wanted or learned or usual
