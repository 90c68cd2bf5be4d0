"""The hybrid loss: the mean learns by the product, the variance by the variational bound."""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.bound import RECONSTRUCTION_VARIANCES, bits_per_dim
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.parameterization import read_batch, split_variance
from ddpm_jax.diffusion.process import Denoised, q_posterior, reverse
from ddpm_jax.diffusion.schedules import Discrete
from ddpm_jax.keys import Keys
from ddpm_jax.losses.context import (
  Batch,
  LossContext,
  LossOutput,
  apply_network,
  distribution_start,
  starts_with,
)
from ddpm_jax.losses.products import add_noise, errors, remember

Weight = Annotated[float, Interval(ge=0, le=1000)]


def new_hybrid(
  context: LossContext,
  params: dict,
  key: Array,
  *,
  vlb_weight: Weight = 0.001,
) -> tuple[dict, Any]:
  """No parameters, and the state of the timestep distribution.

  Raises:
    ValueError: unless the schedule is a chain of two steps or more.
  """
  del params, key, vlb_weight
  schedule = context.schedule
  if not isinstance(schedule, Discrete) or schedule.num_steps < 2:
    raise ValueError(
      "'hybrid' sums over the steps of a chain, two or more; continuous time has 'variational'"
    )
  return {}, distribution_start(context)


@starts_with(new_hybrid)
def hybrid(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  vlb_weight: Weight = 0.001,
) -> LossOutput:
  """product + vlb_weight · T · L_t, with L_t the bound's term at t in bits/dim.

  Over uniform t the mean of T L_t is the bound but for its prior term, which trains nothing. Its
  gradient reaches the learned variance alone: there the mean counts as a constant. One call of the
  network serves both. The timestep distribution must be one that estimates the mean over uniform
  times.

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 16; its published
  code measures the bound in bits/dim, as here.

  Args:
    vlb_weight: of the bound.
  """
  noised = add_noise(context, state, batch, keys)
  output = apply_network(context, params, noised.xt, noised.t, batch, keys)
  prediction, _ = split_variance(output, noised.xt)
  simple = errors(context, prediction, noised.x0, noised.eps, noised.t)

  denoised = read_batch(context.parameterization, context.schedule, output, noised.xt, noised.t)
  denoised = denoised._replace(x0=jax.lax.stop_gradient(denoised.x0))
  vlb = jax.vmap(chain_bound, (None, 0, 0, 0, 0))(context, denoised, noised.x0, noised.xt, noised.t)

  values = simple + vlb_weight * vlb
  parts = {'simple': noised.correction * simple, 'vlb': noised.correction * vlb}
  state = remember(context, state, noised.t, values)
  return LossOutput(noised.correction * values, parts, state)


def chain_bound(context: LossContext, denoised: Denoised, x0: Array, xt: Array, t: Array) -> Array:
  """T times the bound's term at t, in bits/dim, for one example.

  It is KL(q(x_{t-1} | xt, x0) ‖ p(x_{t-1} | xt)), and at t = 1 -log p(x0 | x_1), discretized to the
  data's levels. Each of the two is kept finite at the times of the other.
  """
  schedule: Any = context.schedule
  variance = context.parameterization.head.variance
  step = jnp.maximum(t, 2)
  posterior = q_posterior(schedule, x0, xt, step - 1, step)
  kl = posterior.kl(reverse(schedule, denoised, xt, step - 1, step, variance))

  first = t == 1
  spread = RECONSTRUCTION_VARIANCES[variance](schedule, denoised, 1, 2)
  decoder = Gaussian(jnp.where(first, denoised.x0, x0), spread)
  decoding = -decoder.discretized_log_prob(x0, context.codec.levels('the bound'))
  return schedule.num_steps * bits_per_dim(jnp.where(first, decoding, kl), x0)
