"""The losses that are a product: weight(t) × mean over dimensions of distance(output, target)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import eps_slope, split_variance
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.keys import Keys
from ddpm_jax.losses.context import Batch, LossContext, LossOutput, apply_network
from ddpm_jax.losses.timestep_distributions import memory
from ddpm_jax.losses.weights import FLOOR, output


class Noised(NamedTuple):
  """A batch at the times t (B,), each (B, …): xt is seen, x0 and eps are the target's."""

  t: Array
  correction: Array
  x0: Array
  eps: Array
  xt: Array


def product(context: LossContext, params: dict, state: Any, batch: Batch, keys: Keys) -> LossOutput:
  """correction · w_out(t) · mean distance(output - (a x0 + b eps)), for each example.

  With t and eps from their distributions, (a, b) the parameterization's row, and
  w_out the weight carried over from the error of eps. A learned variance in the output is left
  alone.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14, for weight 1 and L2.
  """
  noised = add_noise(context, state, batch, keys)
  output = apply_network(context, params, noised.xt, noised.t, batch, keys)
  prediction, _ = split_variance(output, noised.xt)
  values = errors(context, prediction, noised.x0, noised.eps, noised.t)
  return LossOutput(noised.correction * values, {}, remember(context, state, noised.t, values))


def add_noise(context: LossContext, state: Any, batch: Batch, keys: Keys) -> Noised:
  """The batch at times that the timestep distribution draws, whose state it is."""
  schedule, distribution = context.schedule, context.factors.timestep_distribution
  t, correction = distribution(keys.step, batch['index'], context.batch_size, schedule, state)
  eps, shown = context.factors.noise_distribution(context, batch, keys)
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, batch['x'], t, shown)
  return Noised(t, correction, batch['x'], eps, xt)


def errors(context: LossContext, prediction: Array, x0: Array, eps: Array, t: Array) -> Array:
  """w_out(t) · mean distance(prediction - (a x0 + b eps)), for each example: (B,)."""
  schedule = context.schedule

  def example(prediction: Array, x0: Array, eps: Array, t: Array) -> Array:
    a, b = context.parameterization.row(schedule.alpha(t), schedule.sigma(t))
    error = jnp.mean(context.factors.distance(prediction - (a * x0 + b * eps)))
    return output_weight(context, t) * error

  return jax.vmap(example)(prediction, x0, eps, t)


def output_weight(context: LossContext, t: Array) -> Array:
  """w(t) (d eps / d output)²: the weight of eps' squared error, read in the network's output.

  Both are taken at the weights' FLOOR where the SNR is zero, the one infinite and the other zero.
  """
  schedule, weight = context.schedule, context.factors.weight
  if weight is output:
    return weight(schedule, t)
  sigma = schedule.sigma(t)
  alpha = jnp.maximum(schedule.alpha(t), jnp.exp(FLOOR / 2) * sigma)
  slope = eps_slope(alpha, sigma, context.parameterization.row)
  return weight(schedule, t) * jnp.square(slope)


def remember(context: LossContext, state: Any, t: Array, values: Array) -> Any:
  """The timestep distribution's next state, from times and uncorrected losses of all devices."""
  kept = memory(context.factors.timestep_distribution)
  if kept is None:
    return state
  values = jax.lax.stop_gradient(values)
  return kept.update(state, context.schedule, context.gather(t), context.gather(values))
