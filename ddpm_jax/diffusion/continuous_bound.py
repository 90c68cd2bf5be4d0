"""The variational bound of a chain of infinitely many steps, in nats.

Between t_min and t_max, with SNR = alpha² / sigma², the KLs of smaller and smaller steps sum to

  ½ ∫ e^log_snr E|x0 - x0_hat(xt, t)|² d log_snr = ½ ∫ E|x0 - x0_hat|² dSNR
                                                 = ½ ∫ (1 + SNR) E|x0 - x0_hat|² d log(1 + SNR),

the last over a finite interval even at zero terminal SNR, and with a constant integrand for
standard normal data. A denoiser that is a function of xt / alpha and log_snr alone makes it a
function of the two ends: the way that the schedule takes from one to the other does not enter.

Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equations 17 and 18.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion.bound import (
  Bound,
  Decoder,
  evidence,
  example_keys,
  normals,
  prior_term,
  uniforms,
)
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, q_sample
from ddpm_jax.diffusion.schedules import Discrete, Schedule

# (schedule, share in [0, 1]) -> (t, ½ |dSNR / dshare|), both scalars.
Spacing = Callable[[Schedule, Array], tuple[Array, Array]]


def continuous_bound(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  key: Array,
  *,
  strata: int,
  decoder: Decoder,
  index: Array | None = None,
) -> Bound:
  """An unbiased estimate of the bound from `strata` noise levels for each example.

  Level k is drawn evenly in log(1 + SNR) from the k-th of `strata` equal parts of its range.
  p(x0 | x_{t_min}) has the variance Var[x0 | xt] where the denoiser knows it, and else that of
  `evidence`, sigma² / alpha².

  Args:
    schedule: continuous; the bound runs from its t_max to its t_min.
    denoiser: a network's or an oracle's.
    x0: the examples (B, …).
    key: of the draws.
    strata: 1 or more.
    decoder: p(x0 | x_{t_min}), as for `variational_bound`.
    index: (B,), each example's number, which decides its draws; 0 … B - 1 if not given.

  Returns:
    A Bound with terms of shape (B, strata), in order of falling noise.

  Raises:
    TypeError: for a discrete chain.
  """
  keys = example_keys(key, x0, index)

  def term(stratum: Array) -> Array:
    share = (stratum + uniforms(keys, stratum)) / strata
    eps = normals(keys, strata + stratum, x0)
    return continuous_term(schedule, denoiser, x0, share, eps) / strata

  terms = jax.lax.map(term, jnp.arange(strata))
  return Bound(
    prior=jax.vmap(prior_term, (None, 0, None))(schedule, x0, schedule.t_max),
    terms=jnp.moveaxis(terms, 0, -1),
    reconstruction=continuous_reconstruction(
      schedule, denoiser, x0, normals(keys, 2 * strata, x0), decoder
    ),
  )


def integrated_terms(
  schedule: Schedule, denoiser: Denoiser, x0: Array, eps: Array, *, nodes: int
) -> Array:
  """½ ∫ |x0 - x0_hat(alpha x0 + sigma eps)|² dSNR from t_max to t_min at one eps: (B,).

  By Gauss-Legendre quadrature in log(1 + SNR) with `nodes` nodes. Its mean over standard normal
  eps (B, …) is the bound's sum of KLs.
  """
  places, weights = np.polynomial.legendre.leggauss(nodes)

  def weighted(node: tuple[Array, Array]) -> Array:
    place, weight = node
    share = jnp.full(x0.shape[:1], place)
    return weight * continuous_term(schedule, denoiser, x0, share, eps)

  on_unit = jnp.asarray((places + 1) / 2, x0.dtype), jnp.asarray(weights / 2, x0.dtype)
  return jnp.sum(jax.lax.map(weighted, on_unit), axis=0)


def continuous_term(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  share: Array,
  eps: Array,
  spacing: Spacing | None = None,
) -> Array:
  """½ |dSNR / dshare| |x0 - x0_hat|²: (B,).

  Over `share` uniform in [0, 1] its mean is the integral of the KLs.

  Args:
    schedule: continuous.
    denoiser: of x0.
    x0: (B, …).
    share: (B,), how much of the way from t_max to t_min lies before the noise level.
    eps: the noise, like x0.
    spacing: what the way is measured in; `even_in_cost` if not given.
  """
  t, weight = jax.vmap(spacing or even_in_cost, (None, 0))(schedule, share)
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, x0, t, eps)
  errors = jnp.square(denoiser(xt, t).x0 - x0)
  return weight * jax.vmap(jnp.sum)(errors)


def even_in_cost(schedule: Schedule, share: Array) -> tuple[Array, Array]:
  """The time at a share of the range of log(1 + SNR), and ½ |dSNR / dshare| = ½ range (1 + SNR).

  The integrand is constant for standard normal data, whatever the schedule.
  """
  low, high = cost_range(schedule)
  cost = low + share * (high - low)
  return schedule.time(log_snr_of(cost)), 0.5 * (high - low) * jnp.exp(cost)


def even_in_time(schedule: Schedule, share: Array) -> tuple[Array, Array]:
  """The time at a share of [t_min, t_max], and ½ |dSNR / dshare|.

  How much the integrand varies is then the schedule's doing: see `Learned.log_density`.
  """
  length = schedule.t_max - schedule.t_min
  t = schedule.t_max - share * length
  log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
  return t, -0.5 * length * rate * jnp.exp(log_snr)


def cost_range(schedule: Schedule) -> tuple[Array, Array]:
  """log(1 + SNR) at t_max and at t_min."""
  if isinstance(schedule, Discrete):
    raise TypeError('this bound is over continuous time: use schedules.interpolate(schedule)')
  low, high = (jax.nn.softplus(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
  return low, high


def log_snr_of(cost: Array) -> Array:
  """log(exp(cost) - 1): the log-SNR at which log(1 + SNR) is the cost."""
  return cost + jnp.log(-jnp.expm1(-cost))


def continuous_reconstruction(
  schedule: Schedule, denoiser: Denoiser, x0: Array, eps: Array, decoder: Decoder
) -> Array:
  """-log p(x0 | x_{t_min}) at x_{t_min} = alpha x0 + sigma eps: (B,)."""
  t = schedule.t_min
  xt = q_sample(schedule, x0, t, eps)

  def term(x0: Array, xt: Array, denoised: Denoised) -> Array:
    alone, known = evidence(schedule, xt, t), denoised.x0_variance
    spread = alone.variance if known is None else known
    return -decoder(x0, Gaussian(denoised.x0, spread), alone)

  return jax.vmap(term)(x0, xt, denoiser(xt, t))
