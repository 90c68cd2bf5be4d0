"""Bits per dimension of a data split under an autoencoder, by both of its bounds, and a picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data
from ddpm_jax.data.dataset import Batch
from ddpm_jax.diffusion import bits_per_dim
from ddpm_jax.diffusion.vae import elbo, importance_bound
from ddpm_jax.evaluation.likelihood import Bits
from ddpm_jax.keys import example_keys
from ddpm_jax.losses.evidence import evidence_of
from ddpm_jax.training import Experiment
from ddpm_jax.training.autoencoding import reconstruct


def mean_elbo(q: Any, p: Any, log_likelihood: Callable[[Array], Array], eps: Array) -> Array:
  """The evidence lower bound, averaged over draws eps (K, …)."""
  return jnp.mean(jax.vmap(lambda e: elbo(q, p, log_likelihood, e))(eps))


def iwae(q: Any, p: Any, log_likelihood: Callable[[Array], Array], eps: Array) -> Array:
  """The importance-weighted bound of draws eps (K, …)."""
  return importance_bound(q, lambda z: p.log_prob(z) + log_likelihood(z), eps)


BOUNDS = {'elbo': mean_elbo, 'iwae': iwae}


def make_evidence_bits(experiment: Experiment, bound: str, draws: int) -> Bits:
  """Makes bits(params, key, batch) -> (B,), the bound on each example in bits/dim, compiled.

  For a conditional autoencoder the bits are those of an image given its label.

  Args:
    experiment: of an autoencoder.
    bound: a key of BOUNDS; both meet the same draws.
    draws: K, of z for each example.
  """
  coder: Any = experiment.network  # a models.Coder
  levels = experiment.dataset.num_levels

  @jax.jit
  def bits(params: Any, key: Array, batch: dict[str, Array]) -> Array:
    def example(x: Array, label: Array, key: Array) -> Array:
      parts = evidence_of(coder, params, x, {'label': label}, levels)
      eps = jax.random.normal(key, (draws, coder.latents))
      return bits_per_dim(-BOUNDS[bound](*parts, eps), x)

    x = data.scale(batch['image'], levels)
    return jax.vmap(example)(x, batch['label'], example_keys(key, batch['index']))

  return bits


def pairs(experiment: Experiment, params: Any, batch: Batch, columns: int) -> np.ndarray:
  """Rows of images, each above the row of their reconstructions: uint8 (2 N, H, W, C).

  Args:
    experiment: of an autoencoder.
    params: of the network.
    batch: N images, a multiple of `columns`, and their labels.
    columns: of the grid to be.
  """
  x = data.scale(jnp.asarray(batch['image']), experiment.dataset.num_levels)
  again = reconstruct(experiment, params, x, {'label': jnp.asarray(batch['label'])})
  both = np.stack([np.asarray(data.to_uint8(images)) for images in (x, again)])
  rows = both.reshape(2, -1, columns, *x.shape[1:]).swapaxes(0, 1)
  return rows.reshape(-1, *x.shape[1:])
