"""Consistency models: a network that takes every point of a path of the flow to its end, the data.

In y = x / alpha and n = sigma / alpha the probability flow is dy/dn = eps. Levels are Karras' grid,
n_i = (n_0^(1/7) + i / N (n_N^(1/7) - n_0^(1/7)))^7 from sigma_min to the schedule's end; a pair
n_i < n_{i+1} is the cell that a log-normal level falls in. The loss of an example is

  (|f(x_{i+1}) - f(x_i)|² + c²)^½ - c, over n_{i+1} - n_i

with f(x_i) held fixed: same weights, same dropout, no gradient. x_{i+1} is the data noised; x_i is
the same data with the same noise (training), or a step of a teacher's flow (distillation). Weight,
timestep distribution, distance and noise distribution are these losses' own.

References: Song et al. 2023, https://arxiv.org/abs/2303.01469; Song and Dhariwal 2023,
https://arxiv.org/abs/2310.14189, sections 3.2 to 3.5 and table 1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array
from jax.scipy.special import ndtr, ndtri

from ddpm_jax.diffusion.parameterization import ConsistencyRow, Denoiser, EDMRow
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.diffusion.schedules import Discrete, Schedule
from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.context import Batch, LossContext, LossOutput, noise_like, starts_with
from ddpm_jax.losses.variational_terms import training_denoiser

RHO = 7.0

Levels = Annotated[int, Interval(ge=1, le=10_000)]
Scale = Annotated[float, Interval(ge=1e-6, le=100)]
LogLevel = Annotated[float, Interval(ge=-20, le=20)]


def begin_training(
  context: LossContext, params: dict, key: Array, **options: Any
) -> tuple[Any, Array]:
  """No parameters of its own; the state counts the steps."""
  del params, key, options
  check(context)
  return {}, jnp.zeros((), jnp.int32)


def begin_distillation(
  context: LossContext, params: dict, key: Array, **options: Any
) -> tuple[Any, Any]:
  """No parameters and no state of its own."""
  del params, key, options
  check(context)
  return {}, ()


@starts_with(begin_training)
def consistency_training(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  first_steps: Levels = 10,
  last_steps: Levels = 1280,
  double_every: Annotated[int, Interval(ge=1, lt=2**31)] = 50_000,
  huber: Scale = 0.00054,
  mean: LogLevel = -1.1,
  std: Scale = 2.0,
) -> LossOutput:
  """A consistency model from data alone; see above. Defaults are the paper's for CIFAR-10.

  E[(xt - alpha x0) / sigma | xt] is the flow's own direction, so that the noised data itself does a
  step of it without bias; what is left of the error falls with the gap between levels.

  Args:
    context: of a continuous schedule and the parameterization `consistency`.
    params: {'network'}.
    state: the number of steps made.
    batch: 'x' is what is diffused.
    keys: the step's.
    first_steps: N at first.
    last_steps: N at most.
    double_every: steps of training after which N doubles.
    huber: c over √dimensions.
    mean: of log n, before it is cut to the grid's range.
    std: its deviation.
  """
  exponent = jnp.minimum(state // double_every, 30)
  count = jnp.minimum(float(first_steps) * 2.0**exponent, float(last_steps))
  n_s, n_t = neighbors(context, keys, count, mean, std)
  s, t = (times(context.schedule, n) for n in (n_s, n_t))
  eps = noise_like(batch['x'], keys)
  xs, xt = (
    jax.vmap(q_sample, (None, 0, 0, 0))(context.schedule, batch['x'], time, eps) for time in (s, t)
  )
  student = training_denoiser(context, params, batch, keys)
  values = distance(student, xs, s, xt, t, huber) / (n_t - n_s)
  return LossOutput(values, {'levels': jnp.full_like(values, count)}, state + 1)


@starts_with(begin_distillation)
def consistency_distillation(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  num_steps: Levels = 18,
  huber: Scale = 0.00054,
  mean: LogLevel = -1.1,
  std: Scale = 2.0,
) -> LossOutput:
  """A consistency model of a teacher's flow, a step of Heun's from each level to the next.

  The teacher is the run of config.training.init_from: the same network on the same schedule under
  the parameterization `edm` of the same sigma_data, from whose weights the student begins too. The
  target's weights are the student's own, not an average of them; distance, weight and timestep
  distribution are those of `consistency_training`, where the paper of distillation has others.

  Args:
    context: of a continuous schedule and the parameterization `consistency`; frozen['teacher'] is a
      network's.
    params: {'network'}.
    state: ().
    batch: 'x' is what is diffused.
    keys: the step's.
    num_steps: N.
    huber: c over √dimensions.
    mean: of log n, before it is cut to the grid's range.
    std: its deviation.
  """
  n_s, n_t = neighbors(context, keys, jnp.asarray(float(num_steps)), mean, std)
  s, t = (times(context.schedule, n) for n in (n_s, n_t))
  eps = noise_like(batch['x'], keys)
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(context.schedule, batch['x'], t, eps)
  params_of_teacher = {'network': context.frozen['teacher']}
  teacher = training_denoiser(of_teacher(context), params_of_teacher, batch, keys)
  xs = jax.lax.stop_gradient(heun_step(context.schedule, teacher, xt, s, t))
  student = training_denoiser(context, params, batch, keys)
  values = distance(student, xs, s, xt, t, huber) / (n_t - n_s)
  return LossOutput(values, {}, state)


def distance(student: Denoiser, xs: Array, s: Array, xt: Array, t: Array, huber: float) -> Array:
  """The pseudo-Huber distance of f(xt) from f(xs), which is held fixed: (B,)."""
  target = jax.lax.stop_gradient(student(xs, s).x0)
  square = jnp.sum(jnp.square(student(xt, t).x0 - target).reshape(xt.shape[0], -1), axis=1)
  c = huber * math.sqrt(xt[0].size)
  return square / (jnp.sqrt(square + c**2) + c)  # without the cancellation of √(square + c²) - c


def heun_step(schedule: Schedule, denoiser: Denoiser, xt: Array, s: Array, t: Array) -> Array:
  """xs on the denoiser's flow through xt, by the mean of eps at both ends; s and t (B,)."""

  def level(time: Array) -> tuple[Array, Array]:
    shape = (-1, *[1] * (xt.ndim - 1))
    alpha, sigma = jax.vmap(schedule.alpha)(time), jax.vmap(schedule.sigma)(time)
    return alpha.reshape(shape), sigma.reshape(shape)

  (alpha_s, sigma_s), (alpha_t, sigma_t) = level(s), level(t)
  step = sigma_s / alpha_s - sigma_t / alpha_t
  eps_t = (xt - alpha_t * denoiser(xt, t).x0) / sigma_t
  euler = alpha_s * (xt / alpha_t + step * eps_t)
  eps_s = (euler - alpha_s * denoiser(euler, s).x0) / sigma_s
  return alpha_s * (xt / alpha_t + step * (eps_t + eps_s) / 2)


def neighbors(
  context: LossContext, keys: Keys, count: Array, mean: float, std: float
) -> tuple[Array, Array]:
  """Levels n_i and n_{i+1} of a grid of `count` cells for each example, both (B,)."""
  low, high = ends(context)
  first, last = low ** (1 / RHO), high ** (1 / RHO)

  def example(key: Array) -> tuple[Array, Array]:
    below, above = (ndtr((jnp.log(n) - mean) / std) for n in (low, high))
    log_n = mean + std * ndtri(below + jax.random.uniform(key) * (above - below))
    cell = jnp.floor(count * (jnp.exp(log_n / RHO) - first) / (last - first))
    cell = jnp.clip(cell, 0, count - 1)
    n_s, n_t = ((first + i / count * (last - first)) ** RHO for i in (cell, cell + 1))
    return n_s, n_t

  return jax.vmap(example)(for_purpose(keys.examples, 'time'))


def ends(context: LossContext) -> tuple[Array, Array]:
  """The first level, where f(x) = x / alpha, and the last."""
  row: Any = context.parameterization.row
  return jnp.asarray(row.sigma_min), jnp.exp(-context.schedule.log_snr(context.schedule.t_max) / 2)


def times(schedule: Schedule, n: Array) -> Array:
  """The time of each level, (B,)."""
  return jax.vmap(schedule.time)(-2 * jnp.log(n))


def of_teacher(context: LossContext) -> LossContext:
  """The context of the teacher: a denoiser that was trained under `edm`, without dropout."""
  row: Any = context.parameterization.row
  parameterization = dataclasses.replace(context.parameterization, row=EDMRow(row.sigma_data))
  return dataclasses.replace(context, parameterization=parameterization, train=False)


def check(context: LossContext) -> None:
  """Refuses what has no boundary, no times between, or no end.

  Raises:
    ValueError: naming what it is.
  """
  row, schedule = context.parameterization.row, context.schedule
  if not isinstance(row, ConsistencyRow):
    raise ValueError(
      "parameterization: a consistency loss needs 'consistency', whose x0 is exactly "
      'xt / alpha at sigma_min'
    )
  if isinstance(schedule, Discrete):
    raise ValueError(
      'schedule.continuous: a consistency loss moves between the times of a chain; set it, or take '
      'schedules.interpolate'
    )
  with jax.ensure_compile_time_eval():
    first = float(jnp.exp(-schedule.log_snr(schedule.t_min) / 2))
    last = float(jnp.exp(-schedule.log_snr(schedule.t_max) / 2))
  if not first <= row.sigma_min * (1 + 1e-4):
    raise ValueError(
      f'parameterization.sigma_min: {row.sigma_min} is below the schedule, which begins at '
      f'sigma / alpha = {first:.3g}'
    )
  if not last < 1e6:
    raise ValueError(
      'schedule: it ends at zero SNR, where a consistency loss has no last level; '
      'choose edm, ve or vp'
    )
