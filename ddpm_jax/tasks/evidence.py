"""Bits per dimension of a data split under an autoencoder, by both of its bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax import models
from ddpm_jax.condition import Cond
from ddpm_jax.diffusion import bits_per_dim
from ddpm_jax.diffusion.vae import elbo, importance_bound
from ddpm_jax.keys import example_keys
from ddpm_jax.losses.evidence import evidence_of
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.training.task import Batch, Measure


def mean_elbo(q: Any, p: Any, log_likelihood: Callable[[Array], Array], eps: Array) -> Array:
  """The evidence lower bound, averaged over draws eps (K, …)."""
  return jnp.mean(jax.vmap(lambda e: elbo(q, p, log_likelihood, e))(eps))


def iwae(q: Any, p: Any, log_likelihood: Callable[[Array], Array], eps: Array) -> Array:
  """The importance-weighted bound of draws eps (K, …)."""
  return importance_bound(q, lambda z: p.log_prob(z) + log_likelihood(z), eps)


BOUNDS = {'elbo': mean_elbo, 'iwae': iwae}


def measures(
  experiment: Experiment,
  names: Sequence[str] | None = None,
  variance: str | None = None,
  exact: bool = False,
) -> dict[str, Measure]:
  """Both of an autoencoder's bounds; what denoisers are measured by has no part in it."""
  del names, variance, exact
  draws = experiment.config.evaluation.draws
  return {
    name: Measure(make_evidence_bits(experiment, name, draws), f'{draws} draws for each image')
    for name in BOUNDS
  }


def make_evidence_bits(experiment: Experiment, bound: str, draws: int) -> Callable[..., Array]:
  """Makes bits(params, frozen, key, batch) -> (B,), a bound on each example in bits/dim, compiled.

  For a conditional autoencoder the bits are those of an image given its condition.

  Args:
    experiment: of an autoencoder.
    bound: a key of BOUNDS; both meet the same draws.
    draws: K, of z for each example.
  """
  module: Any = experiment.module
  coder: Any = models.make_coder(module)
  levels = experiment.codec.levels('the evidence lower bound')

  @jax.jit
  def bits(params: Any, frozen: Any, key: Array, batch: Batch) -> Array:
    def example(x: Array, cond: Cond, key: Array) -> Array:
      parts = evidence_of(coder, params['network'], x, cond, levels)
      eps = jax.random.normal(key, (draws, coder.latents))
      return bits_per_dim(-BOUNDS[bound](*parts, eps), x)

    keys = example_keys(key, batch['index'])
    return jax.vmap(example)(experiment.encode(frozen, batch['x'], keys), batch['cond'], keys)

  return bits
