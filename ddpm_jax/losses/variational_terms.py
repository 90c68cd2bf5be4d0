"""The variational bound itself as a loss: one of its terms for each example, without bias."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.bounds import OneOf
from ddpm_jax.diffusion.bound import (
  Decoder,
  bound_term,
  categorical,
  cumulative_cost,
  draw_steps,
  evidence,
  normals,
  prior_term,
)
from ddpm_jax.diffusion.continuous_bound import continuous_term, even_in_cost, even_in_time
from ddpm_jax.diffusion.learned import ENDS, INSIDE, Learned
from ddpm_jax.diffusion.parameterization import Denoiser, read_batch
from ddpm_jax.diffusion.process import VARIANCES, Denoised, q_sample
from ddpm_jax.diffusion.schedules import Discrete, Schedule, Time
from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.context import Batch, LossContext, LossOutput, apply_network, noise_like
from ddpm_jax.losses.timestep_distributions import uniforms


def variational(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  variance: Annotated[str, OneOf(VARIANCES)] = 'small',
) -> LossOutput:
  """prior + KL of one step / its probability + reconstruction, in nats per dimension.

  Its mean is the bound with the decoder `categorical`, which needs no call of the network. Steps
  are drawn as by `stratified_bound`, evenly in log(1 + SNR), example i of a batch from the i-th of
  batch_size parts; in continuous time the term is that of `continuous_bound`. Weight, timestep
  distribution and distance are the bound's own, those of the config unused.

  A learned schedule's times are even in t: its ends train on the bound, the rest on the variance.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equation 11, section 5.3 and
  appendix I.

  Args:
    variance: of a chain's reverse steps, a key of VARIANCES; 'fraction' trains a learned range,
      'optimal' a raw learned variance.
  """
  schedule, inside = trained_parts(context.schedule)
  context = dataclasses.replace(context, schedule=schedule)
  x0, eps = batch['x'], noise_like(batch['x'], keys)
  place = batch['index'] % context.batch_size + uniforms(keys.step, batch['index'])
  share = place / context.batch_size
  denoiser = training_denoiser(context, params, batch, keys)
  if isinstance(schedule, Discrete):
    steps = chain_term(schedule, denoiser, x0, share, eps, variance)
  else:
    spacing = even_in_cost if inside is None else even_in_time
    steps = continuous_term(schedule, denoiser, x0, share, eps, spacing)
  last = normals(for_purpose(keys.examples, 'bound'), 0, x0)
  decoder = categorical(context.codec.levels('the bound'))
  parts = {
    'prior': jax.vmap(prior_term, (None, 0, None))(schedule, x0, schedule.t_max),
    'steps': steps,
    'reconstruction': decoding_term(schedule, x0, last, decoder),
  }
  parts = {name: nats / x0[0].size for name, nats in parts.items()}
  values = parts['prior'] + parts['steps'] + parts['reconstruction']
  if inside is not None:
    values += without_value(square_gradient(inside, parts['steps'], share))
  return LossOutput(values, parts, state)


def trained_parts(schedule: Schedule) -> tuple[Schedule, Learned | None]:
  """A learned schedule whose ends alone train, and one of which the rest alone does."""
  if not isinstance(schedule, Learned):
    return schedule, None
  return schedule.fixed(INSIDE), schedule.fixed(ENDS)


def square_gradient(schedule: Learned, steps: Array, share: Array) -> Array:
  """-steps² log p(log_snr), (B,): its mean has the gradient of E steps² in the schedule.

  See `Learned.log_density`; steps and log_snr count as constants.
  """
  log_snr = jax.vmap(lambda u: schedule.log_snr(even_in_time(schedule, u)[0]))(share)
  densities = jax.vmap(schedule.log_density)(jax.lax.stop_gradient(log_snr))
  return -jnp.square(jax.lax.stop_gradient(steps)) * densities


def without_value(x: Array) -> Array:
  """Zero, with the gradient of x."""
  return x - jax.lax.stop_gradient(x)


def chain_term(
  schedule: Discrete, denoiser: Denoiser, x0: Array, share: Array, eps: Array, variance: str
) -> Array:
  """KL / probability of the step at each share (B,) of the cost of all steps: (B,)."""
  times = jnp.arange(schedule.num_steps, 0, -1)
  s, t, probability = draw_steps(times, cumulative_cost(schedule, times), share)
  return bound_term(schedule, denoiser, x0, s, t, eps, variance) / probability


def decoding_term(schedule: Schedule, x0: Array, eps: Array, decoder: Decoder) -> Array:
  """-log p(x0 | x_{t_1}) of a decoder that asks x_{t_1} alone, for each example: (B,)."""
  t = schedule.t_min

  def term(x0: Array, eps: Array) -> Array:
    alone = evidence(schedule, q_sample(schedule, x0, t, eps), t)
    return -decoder(x0, alone, alone)

  return jax.vmap(term)(x0, eps)


def training_denoiser(context: LossContext, params: dict, batch: Batch, keys: Keys) -> Denoiser:
  """The network as a denoiser of this batch, with dropout where the context has it."""

  def denoiser(xt: Array, t: Time) -> Denoised:
    times = jnp.asarray(t)
    output = apply_network(context, params, xt, times, batch, keys)
    return read_batch(context.parameterization, context.schedule, output, xt, times)

  return denoiser
