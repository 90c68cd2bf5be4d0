"""The loss of a variational autoencoder: minus the evidence lower bound."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.condition import Cond
from ddpm_jax.diffusion.bound import bits_per_dim
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.vae import LogProb
from ddpm_jax.diffusion.vae import elbo as lower_bound
from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.context import Batch, LossContext, LossOutput


def elbo(context: LossContext, params: dict, state: Any, batch: Batch, keys: Keys) -> LossOutput:
  """KL(q(z | x) ‖ p(z)) - log p(x | z), in bits/dim, at one reparameterized z for each example.

  The prior p(z) is standard normal, and p(x | z) a Gaussian's mass of each of the data's levels.

  Reference: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114, equation 7.
  """
  coder: Any = context.network  # a models.Coder
  levels = context.codec.levels('the evidence lower bound')

  def example(x: Array, cond: Cond, key: Array) -> tuple[Array, Array]:
    q, p, log_likelihood = evidence_of(coder, params['network'], x, cond, levels)
    eps = jax.random.normal(key, (coder.latents,), x.dtype)
    return bits_per_dim(-lower_bound(q, p, log_likelihood, eps), x), bits_per_dim(q.kl(p), x)

  latent_keys = for_purpose(keys.examples, 'noise')
  values, divergence = jax.vmap(example)(batch['x'], batch['cond'], latent_keys)
  return LossOutput(values, {'kl': divergence}, state)


def evidence_of(
  coder: Any, params: Any, x: Array, cond: Cond, num_levels: int
) -> tuple[Gaussian, Gaussian, LogProb]:
  """q(z | x), p(z) and z -> log p(x | z), for one example x (H, W, C) in [-1, 1].

  Args:
    coder: a `models.Coder`.
    params: its parameters.
    x: the example, one of num_levels values in each component.
    cond: of the example, without a batch axis.
    num_levels: of the data.
  """
  q = Gaussian(*coder.encode(params, x, cond))

  def log_likelihood(z: Array) -> Array:
    return Gaussian(*coder.decode(params, z, cond, x.shape)).discretized_log_prob(x, num_levels)

  return q, Gaussian(jnp.zeros_like(q.mean), jnp.ones_like(q.mean)), log_likelihood
