"""Score matching: ½ λ E |s - ∇ log q(xt)|² but for a constant, two ways around the unknown q(xt).

λ(t) is sigma² times the weight of eps' squared error, so that every weight of the table is one of
these losses too; at weight 1 it is that of Song and Ermon 2019, https://arxiv.org/abs/1907.05600,
equation 6. All is per dimension, and any parameterization is read as a score,
s = (alpha x0 - xt) / sigma² = -eps / sigma.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import split_variance, to_x0
from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.context import Batch, LossContext, LossOutput, apply_network
from ddpm_jax.losses.products import add_noise, remember


def denoising_score(
  context: LossContext, params: dict, state: Any, batch: Batch, keys: Keys
) -> LossOutput:
  """½ λ mean |s - ∇ log q(xt | x0)|²: the score of one noised example in place of the mixture's.

  E[∇ log q(xt | x0) | xt] = ∇ log q(xt), hence the same minimum. It is half the loss `simple` under
  the same weight, distributions and distance L2.

  Reference: Vincent 2011, https://doi.org/10.1162/NECO_a_00142, section 4.
  """
  t, correction, _, eps, xt = add_noise(context, state, batch, keys)
  error = scaled_score(context, params, xt, t, batch, keys) + eps
  values = 0.5 * weighted_mean(context, jnp.square(error), t)
  return LossOutput(correction * values, {}, remember(context, state, t, values))


def sliced_score(
  context: LossContext, params: dict, state: Any, batch: Batch, keys: Keys
) -> LossOutput:
  """λ mean(½ s² + v · ∇(v · s)), v of random signs: needs no score of anything but the network's.

  By parts, E s · ∇ log q(xt) = -E tr ∇s, and one probe v estimates the trace. Its mean is that of
  `denoising_score` less ½ of the weight; the price for not asking x0 is a second, forward
  derivative and the probe's variance. This is the paper's variant of reduced variance.

  Reference: Song et al. 2019, https://arxiv.org/abs/1905.07088: its SSM-VR, which is equation 3 of
  Song and Ermon 2019.
  """
  t, correction, _, _, xt = add_noise(context, state, batch, keys)

  def probe(key: Array) -> Array:
    return jax.random.rademacher(key, xt.shape[1:], xt.dtype)

  v = jax.vmap(probe)(for_purpose(keys.examples, 'probe'))
  score, slope = jax.jvp(lambda x: scaled_score(context, params, x, t, batch, keys), (xt,), (v,))
  sigma = jax.vmap(context.schedule.sigma)(t).reshape(-1, *[1] * (xt.ndim - 1))
  terms = 0.5 * jnp.square(score) + sigma * v * slope
  values = weighted_mean(context, terms, t)
  return LossOutput(correction * values, {}, remember(context, state, t, values))


def scaled_score(
  context: LossContext, params: dict, xt: Array, t: Array, batch: Batch, keys: Keys
) -> Array:
  """sigma s = (alpha x0 - xt) / sigma, of order one at every level."""
  schedule = context.schedule
  prediction, _ = split_variance(apply_network(context, params, xt, t, batch, keys), xt)

  def read(value: Array, x: Array, t: Array) -> Array:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return (alpha * to_x0(value, x, alpha, sigma, context.parameterization.row) - x) / sigma

  return jax.vmap(read)(prediction, xt, t)


def weighted_mean(context: LossContext, terms: Array, t: Array) -> Array:
  """w(t) times the mean over dimensions, for each example: (B,)."""
  weights = jax.vmap(context.factors.weight, (None, 0))(context.schedule, t)
  return weights * jnp.mean(terms.reshape(terms.shape[0], -1), axis=1)
