"""Whether Markov chains have arrived, and how much their draws are worth.

Pure functions of one quantity's `draws` (chains, N), the start left off: jax.vmap serves more.
Reference: Vehtari et al. 2021, https://arxiv.org/abs/1903.08008.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array


def acceptance_rate(accepted: Array) -> Array:
  """The share of the proposals (chains, N) that each chain took, (chains,).

  Probabilities of acceptance in the place of booleans give the same with less noise.
  """
  return jnp.mean(check_draws(accepted, 1), axis=-1, dtype=jnp.result_type(float))


def split_r_hat(draws: Array) -> Array:
  """√((W (n - 1) / n + B / n) / W) over all chains' halves, of n draws: 1 where they agree.

  W is the mean of the halves' variances, B / n the variance of their means. An odd N leaves out
  its last draw. Chains that stand still have W = 0: NaN where all stand at one place, else inf.

  Reference: Vehtari et al. 2021, equations 1 to 4.
  """
  draws = check_draws(draws, 4)
  halves = draws[:, : draws.shape[1] // 2 * 2].reshape(2 * draws.shape[0], -1)
  within = jnp.mean(jnp.var(halves, axis=1, ddof=1))
  between = jnp.var(jnp.mean(halves, axis=1), ddof=1)
  return jnp.sqrt((halves.shape[1] - 1) / halves.shape[1] + between / within)


def effective_sample_size(draws: Array) -> Array:
  """chains · N / (-1 + 2 Σ_k P_k): how many independent draws have a mean as uncertain.

  P_k = ρ_2k + ρ_2k+1 sums pairs of autocorrelations, which are positive and falling for every
  reversible chain: the sum ends before the first that is not positive, and each counts as no more
  than those before it (Geyer's initial monotone sequence). Chains that disagree raise every ρ. The
  result is held under chains · N log10(chains · N), and is NaN where all draws are equal.

  Reference: Geyer 1992, https://doi.org/10.1214/ss/1177011137, section 3.3; Vehtari et al. 2021,
  with their bound.
  """
  draws = check_draws(draws, 4)
  chains, size = draws.shape
  covariance = jnp.mean(jax.vmap(autocovariance)(draws), axis=0)
  within = covariance[0] * size / (size - 1)
  between = jnp.var(jnp.mean(draws, axis=1), ddof=1) if chains > 1 else 0.0
  correlation = 1 - (within - covariance) / (covariance[0] + between)
  pairs = correlation.at[0].set(1.0)[: size // 2 * 2].reshape(-1, 2).sum(axis=1)
  falling = jax.lax.cummin(jnp.where(pairs <= 0, 0.0, pairs))  # NaN stays
  total = chains * size
  return total / jnp.maximum(2 * jnp.sum(falling) - 1, 1 / math.log10(total))


def standard_error(draws: Array) -> Array:
  """√(variance / `effective_sample_size`), of the mean of all draws."""
  return jnp.sqrt(jnp.var(draws, ddof=1) / effective_sample_size(draws))


def autocovariance(draws: Array) -> Array:
  """Σ_i (x_i - mean)(x_{i+k} - mean) / N of one chain (N,), for k = 0 … N - 1."""
  size = draws.shape[0]
  spectrum = jnp.fft.rfft(draws - jnp.mean(draws), n=2 * size)
  return jnp.fft.irfft(jnp.square(jnp.abs(spectrum)), n=2 * size)[:size] / size


def check_draws(draws: Array, fewest: int) -> Array:
  """The draws; ValueError where they are not (chains, N) with N >= fewest."""
  if jnp.ndim(draws) != 2 or draws.shape[1] < fewest:
    raise ValueError(f'draws has shape {jnp.shape(draws)}: not (chains, at least {fewest})')
  return draws
