"""How fast samples are drawn: one compiled program, a Python loop, and the network alone.

A step of a sampler is a few products of an image with a number beside a whole network, so a run
ought to cost what its evaluations of the network do. What is run here draws a batch of samples with
parameters that were not trained, which changes nothing in the time.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.condition import Cond
from ddpm_jax.diffusion.parameterization import network_input
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.keys import example_keys
from ddpm_jax.samplers import NOISES, Sampler, Step, num_evaluations
from ddpm_jax.tasks.drawing import drawing, evaluations, generate, route_of
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.table import make_task


class Batch(NamedTuple):
  """What the samples of one run are drawn from."""

  params: Any
  cond: Cond
  keys: Array


def make_batch(experiment: Experiment) -> Batch:
  """As many samples as config.evaluation.batch_size."""
  size = experiment.config.evaluation.batch_size
  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(size))
  params, _ = make_task(experiment).init(None)
  return Batch(params['network'], jax.device_put(experiment.dataset.some_cond(size)), keys)


def make_program(experiment: Experiment) -> Callable[[Batch], Array]:
  """The run as one compiled program."""
  route = route_of(experiment)

  @jax.jit
  def draw(batch: Batch) -> Array:
    return generate(experiment, batch.params, route, batch.cond, batch.keys)

  return draw


def make_loop(experiment: Experiment) -> Callable[[Batch], Array]:
  """The same run as a loop in Python over the compiled network: one dispatch for each operation."""
  experiment = dataclasses.replace(experiment, network=jax.jit(experiment.network))
  route = route_of(experiment)

  def draw(batch: Batch) -> Array:
    return step_by_step(**drawing(experiment, batch.params, route, batch.cond, batch.keys))

  return draw


def step_by_step(
  sampler: Sampler,
  denoiser: Any,
  schedule: Schedule,
  times: Array,
  xT: Array,
  keys: Array,
  noise: str,
  recall: bool,
) -> Array:
  """What `sample` scans over, one step after the other."""
  state = sampler.init(schedule, times, xT)
  for index in range(len(times) - 1):
    step = Step(times[index], times[index + 1], jnp.asarray(index))
    drawn = NOISES[noise](schedule, keys, xT, step)
    found = denoiser(state.x0) if recall else denoiser
    state = sampler.update(schedule, found, state, step, drawn)
  found = denoiser(state.x0) if recall else denoiser
  return found(state.x, times[-1]).x0


def make_network_alone(experiment: Experiment) -> Callable[[Batch], Array]:
  """As many evaluations of the compiled network as the run has, each on the output of the last.

  Guidance evaluates twice the batch at once, and here so too.
  """
  shape, (path, times) = experiment.codec.shape, route_of(experiment)
  sampler: Any = experiment.sampler
  parameterization: Any = experiment.parameterization
  once = num_evaluations(sampler, times.shape[0])
  repeats = (evaluations(experiment) or once) // once

  @jax.jit
  def network(batch: Batch, x: Array, label: Array, cond: Cond) -> Array:
    return experiment.network(batch.params, x, label, cond)[..., : shape[-1]]

  def draw(batch: Batch) -> Array:
    cond = jax.tree.map(lambda column: jnp.concatenate([column] * repeats), batch.cond)
    x = jnp.zeros((repeats * len(batch.keys), *shape))
    t = jnp.broadcast_to(times[0], x.shape[:1])
    x, label = network_input(parameterization, path, x, t)
    for _ in range(once):
      x = network(batch, x, label, cond)
    return x

  return draw


RUNS = {'program': make_program, 'loop': make_loop, 'network': make_network_alone}


def timed(draw: Callable[[Batch], Array], batch: Batch) -> float:
  """Seconds for one batch of samples."""
  start = time.perf_counter()
  jax.block_until_ready(draw(batch))
  return time.perf_counter() - start


def make_runs(experiment: Experiment) -> dict[str, Callable[[], float]]:
  """Each of RUNS, compiled and warm, as run() -> seconds.

  Raises:
    RuntimeError: drawing a second time compiles another program.
  """
  batch = make_batch(experiment)
  draws = {name: make(experiment) for name, make in RUNS.items()}
  runs = {name: functools.partial(timed, draw, batch) for name, draw in draws.items()}
  for run in 2 * list(runs.values()):
    run()
  if (programs := draws['program']._cache_size()) != 1:  # pyrefly: ignore[missing-attribute]
    raise RuntimeError(f'a run of the sampler is {programs} programs, not one')
  return runs
