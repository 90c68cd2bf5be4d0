"""Bits per dimension of a data split under a trained network, by each of LIKELIHOODS.

Every one of them is a bound on -log P of the pixels under a model of its own, which nothing orders
for a trained network; with the exact denoiser they agree but for the length of the chain.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data
from ddpm_jax.data.dataset import Split
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
from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.batching import even_size, map_batches, replicate
from ddpm_jax.keys import for_purpose
from ddpm_jax.samplers import clip_x0

Cond = dict[str, Array]
Make = Callable[[Schedule, Any, Cond], Denoiser]
Bits = Callable[[Any, Array, dict[str, Array]], Array]

STEPS = 1000  # of a chain through continuous time


class Estimate(NamedTuple):
  """A mean over examples and the standard error of its Monte-Carlo draws.

  The error says how far another set of draws would land on the same examples; it does not say how
  far another set of examples would.
  """

  mean: float
  error: float
  replicates: int


class Settings(NamedTuple):
  """How likelihoods are measured.

  Attributes:
    decoder: p(x0 | x_{t_1}).
    variance: of a chain's reverse steps, a key of VARIANCES.
    strata: the number of terms drawn for each example; None takes all of a chain's.
  """

  decoder: Decoder
  variance: str
  strata: int | None


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
  """The variational bound of a chain's reverse steps, the predicted x0 clipped to [-1, 1].

  As in DDPM's code: the data lies there, so that this only tightens the bound of a fixed variance.
  In continuous time the chain is of STEPS steps, even in log(1 + SNR).
  """
  strata, variance = settings.strata, settings.variance
  bound = functools.partial(stratified_bound, strata=strata) if strata else variational_bound

  def nats(make: Any, x0: Array, cond: Cond, key: Array, index: Array) -> Array:
    return bound(
      schedule,
      clip_x0(make(cond)),
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
  """The variational bound of infinitely many steps, the predicted x0 clipped to [-1, 1]."""
  schedule, strata = in_continuous_time(schedule), settings.strata or STEPS

  def nats(make: Any, x0: Array, cond: Cond, key: Array, index: Array) -> Array:
    denoiser, decoder = clip_x0(make(cond)), settings.decoder
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


def make_bits(make: Make, likelihood: Likelihood, num_levels: int, *, conditional: bool) -> Bits:
  """Makes bits(params, key, batch) -> (B,), each example's bits/dim, compiled.

  The batch has uint8 'image' of num_levels levels, 'label', and 'index', which decides the draws.
  For a conditional network the bits are those of an image given its label.

  Args:
    make: (schedule, params, cond) -> denoiser.
    likelihood: an entry of LIKELIHOODS, called.
    num_levels: of the data.
    conditional: whether the network is told labels.
  """

  @jax.jit
  def bits(params: Any, key: Array, batch: dict[str, Array]) -> Array:
    x0 = data.scale(batch['image'], num_levels)
    cond = {'label': batch['label']} if conditional else {}
    read = functools.partial(make, likelihood.schedule, params)
    return bits_per_dim(likelihood.nats(read, x0, cond, key, batch['index']), x0[0])

  return bits


def split_bits(
  bits: Bits,
  params: Any,
  split: Split,
  *,
  seed: int,
  batch_size: int,
  tolerance: float = 0.02,
  most: int = 16,
  advance: Callable[[int], Any] = lambda rows: None,
) -> Estimate:
  """The mean bits/dim of a split.

  Independent replicates of the estimate, two at least, are drawn until its standard error is at
  most `tolerance` or there are `most`.

  Args:
    bits: from `make_bits`.
    params: as `make` takes them.
    split: the examples.
    seed: of the draws.
    batch_size: examples at a time, over all devices.
    tolerance: bits/dim.
    most: replicates.
    advance: told how many more examples are done, in each replicate anew.

  Raises:
    Unavailable: the split is empty.
  """
  if not len(split):
    raise Unavailable('there is no held-out image')
  size = even_size(len(split), batch_size)
  key = for_purpose(jax.random.key(seed), 'bound')
  params, key = replicate((params, key))
  replicates: list[np.ndarray] = []
  while len(replicates) < most:
    of_replicate = functools.partial(bits, params, jax.random.fold_in(key, len(replicates)))
    batches = data.batches(split, size)
    replicates.append(map_batches(of_replicate, batches, size, advance))
    if len(replicates) >= 2 and estimate(np.stack(replicates)).error <= tolerance:
      break
  return estimate(np.stack(replicates))


def estimate(values: np.ndarray) -> Estimate:
  """The mean of values (R, N) of R >= 2 independent replicates for each of N examples.

  Its standard error is sqrt(Σ_n s_n² / R) / N, with s_n² the variance over example n's replicates.
  """
  replicates, examples = values.shape
  within = values.astype(np.float64).var(axis=0, ddof=1)
  error = math.sqrt(within.sum() / replicates) / examples
  return Estimate(float(values.mean(dtype=np.float64)), error, replicates)
