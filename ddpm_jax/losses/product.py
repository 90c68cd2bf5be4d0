"""The losses that are a product: weight(t) × mean over dimensions of distance(output, target)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import eps_slope, split_variance
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.keys import Keys
from ddpm_jax.losses.problem import LossOutput, Problem, apply_network
from ddpm_jax.losses.weights import output


def product(
  problem: Problem, params: dict, state: Any, batch: dict[str, Array], keys: Keys
) -> LossOutput:
  """correction · w_out(t) · mean distance(output - (a x0 + b eps)), for each example.

  With t from the law of t, eps from the law of the noise, (a, b) the parameterization's row, and
  w_out the weight carried over from the error of eps. A learned variance in the output is left
  alone.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14, for weight 1 and L2.
  """
  schedule, factors = problem.schedule, problem.factors
  x0 = batch['image']
  t, correction = factors.time_law(keys.step, batch['index'], problem.batch_size, schedule, state)
  eps, shown = factors.noise_law(problem, batch, keys)
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, x0, t, shown)
  prediction, _ = split_variance(apply_network(problem, params, xt, t, batch, keys), xt)
  return LossOutput(correction * errors(problem, prediction, x0, eps, t), {}, state)


def errors(problem: Problem, prediction: Array, x0: Array, eps: Array, t: Array) -> Array:
  """w_out(t) · mean distance(prediction - (a x0 + b eps)), for each example: (B,)."""
  schedule = problem.schedule

  def example(prediction: Array, x0: Array, eps: Array, t: Array) -> Array:
    a, b = problem.parameterization.row(schedule.alpha(t), schedule.sigma(t))
    error = jnp.mean(problem.factors.distance(prediction - (a * x0 + b * eps)))
    return output_weight(problem, t) * error

  return jax.vmap(example)(prediction, x0, eps, t)


def output_weight(problem: Problem, t: Array) -> Array:
  """w(t) (d eps / d output)²: the weight of eps' squared error, read in the network's output."""
  schedule, weight = problem.schedule, problem.factors.weight
  if weight is output:
    return weight(schedule, t)
  slope = eps_slope(schedule.alpha(t), schedule.sigma(t), problem.parameterization.row)
  return weight(schedule, t) * jnp.square(slope)
