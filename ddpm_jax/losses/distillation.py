"""Progressive distillation: half as many steps of a sampler, each worth two of the teacher's."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.parameterization import split_variance
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.keys import Keys
from ddpm_jax.losses.context import (
  Batch,
  LossContext,
  LossOutput,
  apply_network,
  noise_like,
  starts_with,
)
from ddpm_jax.losses.products import errors
from ddpm_jax.losses.timestep_distributions import uniforms
from ddpm_jax.losses.variational_terms import training_denoiser
from ddpm_jax.samplers.grids import time_grid

Steps = Annotated[int, Interval(ge=1, le=500_000)]


def begin(
  context: LossContext,
  params: dict,
  key: Array,
  *,
  num_steps: Steps = 8,
) -> tuple[Any, Any]:
  """No parameters and no state of its own; refuses more steps than a chain has."""
  del params, key
  try:
    time_grid('trailing', context.schedule, 2 * num_steps)
  except ValueError as error:
    mend = str(error).partition(': ')[2]
    raise ValueError(f"num_steps: {num_steps}, of the teacher's twice: {mend}") from error
  return {}, ()


@starts_with(begin)
def progressive(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  num_steps: Steps = 8,
) -> LossOutput:
  """w_out · mean distance(output - (a x̃ + b ε̃)), x̃ and ε̃ by two DDIM steps of the teacher.

  From xt the teacher goes to m and on to s; the one step of DDIM that ends there too has
  x̃ = (xs - σ_s/σ_t xt) / (α_s - σ_s/σ_t α_t) and ε̃ = (xt - α_t x̃) / σ_t. Times t and s are
  those of the grid `trailing` of num_steps, m is between, and the last s is the data: sample with
  DDIM on that grid. The weight has to count at the noisiest level, where that of eps' error, SNR of
  x0's, vanishes; the preset has `truncated_snr`.

  The teacher is the run of config.training.init_from, of the same network, schedule and
  parameterization; to halve again, give this run to the next.

  Reference: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, algorithm 2 and appendix G.

  Args:
    context: its timestep and noise distributions are not used; frozen['teacher'] is a network's.
    params: {'network'}.
    state: ().
    batch: 'x' is what is diffused.
    keys: the step's.
    num_steps: of the student's sampler; the teacher makes twice as many.
  """
  schedule, x0 = context.schedule, batch['x']
  grid = time_grid('trailing', schedule, 2 * num_steps)
  place = 2 * jnp.floor(num_steps * uniforms(keys.step, batch['index'])).astype(int)
  t, m = grid[place], grid[place + 1]
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, x0, t, noise_like(x0, keys))
  fixed = dataclasses.replace(context, train=False)
  teacher = training_denoiser(fixed, {'network': context.frozen['teacher']}, batch, keys)
  # The data comes after the last time.
  alphas = jnp.append(jax.vmap(schedule.alpha)(grid), 1.0)
  sigmas = jnp.append(jax.vmap(schedule.sigma)(grid), 0.0)
  of_t, of_m, of_s = ((alphas[place + k], sigmas[place + k]) for k in range(3))
  x = ddim_step(xt, teacher(xt, t).x0, of_t, of_m)
  x = ddim_step(x, teacher(x, m).x0, of_m, of_s)
  x_tilde, eps_tilde = jax.lax.stop_gradient(jax.vmap(target)(xt, x, *of_t, *of_s))
  prediction, _ = split_variance(apply_network(context, params, xt, t, batch, keys), xt)
  return LossOutput(errors(context, prediction, x_tilde, eps_tilde, t), {}, state)


def ddim_step(xt: Array, x0: Array, of_t: tuple[Array, Array], of_s: tuple[Array, Array]) -> Array:
  """alpha_s x0 + sigma_s (xt - alpha_t x0) / sigma_t, each example at its own levels (B,)."""

  def example(
    xt: Array, x0: Array, alpha_t: Array, sigma_t: Array, alpha_s: Array, sigma_s: Array
  ) -> Array:
    return alpha_s * x0 + sigma_s * (xt - alpha_t * x0) / sigma_t

  return jax.vmap(example)(xt, x0, *of_t, *of_s)


def target(
  xt: Array, xs: Array, alpha_t: Array, sigma_t: Array, alpha_s: Array, sigma_s: Array
) -> tuple[Array, Array]:
  """The (x0, eps) with which one step of DDIM takes xt to xs."""
  ratio = sigma_s / sigma_t
  x0 = (xs - ratio * xt) / (alpha_s - ratio * alpha_t)
  return x0, (xt - alpha_t * x0) / sigma_t
