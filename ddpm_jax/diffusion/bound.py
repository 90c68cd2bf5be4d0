"""The variational bound on -log p(x0), term by term, in nats.

For a chain through times t_1 < … < t_N, every sigma positive, with the prior of `process.prior`,

  -log p(x0) <= KL(q(x_{t_N} | x0) ‖ prior)                                     prior
              + Σ_i E KL(q(x_{t_{i-1}} | x_{t_i}, x0) ‖ p(x_{t_{i-1}} | x_{t_i}))  terms, i = 2 … N
              - E log p(x0 | x_{t_1})                                           reconstruction

Times are passed as the samplers pass them: decreasing, from t_N to t_1. All of DDPM's chain is
jnp.arange(T, 0, -1).

Reference: Sohl-Dickstein et al. 2015, https://arxiv.org/abs/1503.03585; Ho et al. 2020,
https://arxiv.org/abs/2006.11239, equation 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import (
  Denoised,
  known_fraction,
  known_variance,
  prior,
  q_marginal,
  q_posterior,
  q_sample,
  reverse,
  small,
)
from ddpm_jax.diffusion.schedules import Schedule, Time, check_range

# (x0, reverse, evidence) -> log p(x0 | x_{t_1}) in nats, for one example. `reverse` is N(x0_hat,
# variance), what the denoiser makes of x_{t_1}; `evidence` is N(x_{t_1} / alpha, sigma² / alpha²),
# what x_{t_1} alone says of x0.
Decoder = Callable[[Array, Gaussian, Gaussian], Array]


class Bound(NamedTuple):
  """The bound's parts, in nats for each example.

  Attributes:
    prior: (B,), KL of the last marginal from the prior.
    terms: (B, N - 1) in the order of `times`, or (B, strata) that have the same expected sum.
    reconstruction: (B,), -log p(x0 | x_{t_1}).
  """

  prior: Array
  terms: Array
  reconstruction: Array

  @property
  def total(self) -> Array:
    """prior + Σ terms + reconstruction, (B,)."""
    return self.prior + jnp.sum(self.terms, axis=-1) + self.reconstruction


def discretized(levels: int) -> Decoder:
  """Decodes to a grid of `levels` values over [-1, 1]: each bin's mass under p(x0 | x_{t_1})."""
  return lambda x0, reverse, evidence: reverse.discretized_log_prob(x0, levels)


def categorical(levels: int) -> Decoder:
  """Decodes to a grid of `levels` values over [-1, 1] by Bayes' rule with equal odds: the softmax
  over values x of -½ SNR(t_1) (x_{t_1} / alpha - x)². The denoiser isn't asked.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, section 3.3.
  """

  def decoder(x0: Array, reverse: Gaussian, evidence: Gaussian) -> Array:
    del reverse
    values = jnp.linspace(-1, 1, levels, dtype=x0.dtype)
    grid = jnp.expand_dims(values, tuple(range(jnp.ndim(x0))))
    mean, variance = (
      jnp.broadcast_to(value, jnp.shape(x0))[..., None]
      for value in (evidence.mean, evidence.variance)
    )
    log_p = jax.nn.log_softmax(-0.5 * jnp.square(grid - mean) / variance)
    level = jnp.rint((x0 + 1) / 2 * (levels - 1)).astype(int)
    return jnp.sum(jnp.take_along_axis(log_p, level[..., None], axis=-1))

  return decoder


def density(x0: Array, reverse: Gaussian, evidence: Gaussian) -> Array:
  """Decodes to real numbers: the density of p(x0 | x_{t_1}) at x0."""
  del evidence
  return reverse.log_prob(x0)


def variational_bound(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  key: Array,
  *,
  times: Array,
  variance: str,
  decoder: Decoder,
  index: Array | None = None,
) -> Bound:
  """Every term of the bound, each from one draw of its xt.

  Args:
    schedule: the path.
    denoiser: a network's or an oracle's.
    x0: the examples (B, …).
    key: of the draws.
    times: (N,), decreasing, every sigma positive, N >= 2.
    variance: of the reverse steps, a key of VARIANCES.
    decoder: p(x0 | x_{t_1}): `discretized(levels)`, `categorical(levels)` or `density`.
    index: (B,), each example's number, which decides its draws; 0 … B - 1 if not given.

  Returns:
    A Bound with terms of shape (B, N - 1).
  """
  check_times(schedule, times)
  keys = example_keys(key, x0, index)

  def term(step: tuple[Array, Array, Array]) -> Array:
    t, s, number = step
    s, t = (jnp.full(x0.shape[:1], time) for time in (s, t))
    return bound_term(schedule, denoiser, x0, s, t, normals(keys, number, x0), variance)

  terms = jax.lax.map(term, (times[:-1], times[1:], jnp.arange(times.shape[0] - 1)))
  eps = normals(keys, times.shape[0] - 1, x0)
  return Bound(
    prior=jax.vmap(prior_term, (None, 0, None))(schedule, x0, times[0]),
    terms=jnp.moveaxis(terms, 0, -1),
    reconstruction=reconstruction_term(schedule, denoiser, x0, times, eps, variance, decoder),
  )


def stratified_bound(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  key: Array,
  *,
  times: Array,
  strata: int,
  variance: str,
  decoder: Decoder,
  index: Array | None = None,
) -> Bound:
  """An unbiased estimate of `variational_bound` from `strata` of its terms for each example.

  Step i, from t to s, is drawn with probability p_i in proportion to
  log(1 + SNR(s)) - log(1 + SNR(t)), twice its cost for a dimension of standard normal data, so that
  term / p_i varies little with i. Term k is of a step from the k-th of `strata` parts of equal
  probability, divided by strata p_i; each example has draws of its own. Arguments are the bound's.

  Returns:
    A Bound with terms of shape (B, strata).
  """
  check_times(schedule, times)
  keys = example_keys(key, x0, index)
  edges = cumulative_cost(schedule, times)

  def term(stratum: Array) -> Array:
    s, t, probability = draw_steps(times, edges, (stratum + uniforms(keys, stratum)) / strata)
    eps = normals(keys, strata + stratum, x0)
    return bound_term(schedule, denoiser, x0, s, t, eps, variance) / (strata * probability)

  terms = jax.lax.map(term, jnp.arange(strata))
  eps = normals(keys, 2 * strata, x0)
  return Bound(
    prior=jax.vmap(prior_term, (None, 0, None))(schedule, x0, times[0]),
    terms=jnp.moveaxis(terms, 0, -1),
    reconstruction=reconstruction_term(schedule, denoiser, x0, times, eps, variance, decoder),
  )


def check_times(schedule: Schedule, times: Array) -> None:
  """Refuses fewer than two times and concrete ones that do not fall or are out of range."""
  if times.shape[0] < 2:
    raise ValueError(f'times has shape {times.shape}: the bound needs two times or more')
  check_range(schedule, times)
  if not isinstance(times, jax.core.Tracer) and np.any(np.diff(times) >= 0):
    raise ValueError(
      'times do not strictly decrease: the bound runs from the last time to the first'
    )


def cumulative_cost(schedule: Schedule, times: Array) -> Array:
  """(N,) from 0 at times[0] to 1 at times[-1], linear in log(1 + SNR)."""
  cost = jax.nn.softplus(jax.vmap(schedule.log_snr)(times))
  return (cost - cost[0]) / (cost[-1] - cost[0])


def draw_steps(times: Array, edges: Array, share: Array) -> tuple[Array, Array, Array]:
  """(s, t, p) of the steps at shares (B,) in [0, 1) of the cost, each of probability p.

  Args:
    times: (N,), decreasing.
    edges: (N,), their cumulative cost.
    share: uniform, where the steps are to be drawn.
  """
  place = jnp.searchsorted(edges[1:-1], share, side='right')
  return times[place + 1], times[place], edges[place + 1] - edges[place]


def bound_term(
  schedule: Schedule, denoiser: Denoiser, x0: Array, s: Array, t: Array, eps: Array, variance: str
) -> Array:
  """KL(q(xs | xt, x0) ‖ p(xs | xt)) at xt = alpha x0 + sigma eps: (B,), for s and t (B,)."""
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, x0, t, eps)

  def term(x0: Array, xt: Array, s: Time, t: Time, denoised: Denoised) -> Array:
    posterior = q_posterior(schedule, x0, xt, s, t)
    return posterior.kl(reverse(schedule, denoised, xt, s, t, variance))

  return jax.vmap(term)(x0, xt, s, t, denoiser(xt, t))


def prior_term(schedule: Schedule, x0: Array, t: Time) -> Array:
  """KL(q(xt | x0) ‖ prior), for one example."""
  return q_marginal(schedule, x0, t).kl(prior(schedule, x0, t))


def reconstruction_term(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  times: Array,
  eps: Array,
  variance: str,
  decoder: Decoder,
) -> Array:
  """-log p(x0 | x_{t_1}) at x_{t_1} = alpha x0 + sigma eps: (B,)."""
  t_2, t_1 = times[-2], times[-1]
  xt = q_sample(schedule, x0, t_1, eps)

  def term(x0: Array, xt: Array, denoised: Denoised) -> Array:
    spread = RECONSTRUCTION_VARIANCES[variance](schedule, denoised, t_1, t_2)
    return -decoder(x0, Gaussian(denoised.x0, spread), evidence(schedule, xt, t_1))

  return jax.vmap(term)(x0, xt, denoiser(xt, t_1))


def evidence(schedule: Schedule, xt: Array, t: Time) -> Gaussian:
  """N(xt / alpha, sigma² / alpha²): what xt alone says of x0, all x0 being equally likely."""
  alpha = schedule.alpha(t)
  return Gaussian(xt / alpha, jnp.square(schedule.sigma(t) / alpha))


def between(schedule: Schedule, denoised: Denoised, t_1: Time, t_2: Time) -> Array:
  """exp(f log sigma_1² + (1 - f) log small), f the learned fraction."""
  low, high = small(schedule, denoised, t_1, t_2), jnp.square(schedule.sigma(t_1))
  return low * (high / low) ** known_fraction(denoised)


def exact(schedule: Schedule, denoised: Denoised, t_1: Time, t_2: Time) -> Array:
  """Var[x0 | x_{t_1}]."""
  del schedule, t_1, t_2
  return known_variance(denoised)


# The posterior's variance at s = 0 is zero and decodes nothing: as in DDPM's published code, that
# of the step from t_2 to t_1 takes its place.
RECONSTRUCTION_VARIANCES = {
  'small': small,
  'large': small,
  'fraction': between,
  'optimal': exact,
}


def example_keys(key: Array, x0: Array, index: Array | None) -> Array:
  """(B,) keys, one for each example's number."""
  index = jnp.arange(x0.shape[0]) if index is None else index
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def uniforms(keys: Array, number: Array | int) -> Array:
  """(B,) from [0, 1): the draw of that number from each example's key."""
  return jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, number)))(keys)


def normals(keys: Array, number: Array | int, x0: Array) -> Array:
  """Standard normals like the batch x0: the draw of that number from each example's key."""
  shape, dtype = x0.shape[1:], x0.dtype
  return jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, number), shape, dtype))(keys)


def bits_per_dim(nats: Array, x: Array) -> Array:
  """nats / (size of the one example x · log 2)."""
  return nats / (jnp.size(x) * math.log(2))


def bits_per_time(bound: Bound, x: Array) -> Array:
  """(N,) bits/dim at each of the bound's times: the mean over examples of the terms, and last, at
  t_1, of the reconstruction. With the prior they sum to the bound; x is the one example's array.

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, figure 2.
  """
  costs = jnp.concatenate([bound.terms, bound.reconstruction[:, None]], axis=-1)
  return bits_per_dim(jnp.mean(costs, axis=0), x)
