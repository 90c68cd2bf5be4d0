"""One training step: a pure function of the state and a batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddpm_jax import data
from ddpm_jax.diffusion.schedules import bind
from ddpm_jax.keys import Keys, example_keys, for_purpose, step_key
from ddpm_jax.losses import Loss, Problem
from ddpm_jax.training import ema
from ddpm_jax.training.state import TrainState

Batch = dict[str, Array]
Metrics = dict[str, Array]
Step = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
  problem: Problem,
  loss: Loss,
  optimizer: optax.GradientTransformation,
  *,
  decays: dict[str, float],
  ema_warmup: bool,
  seed: int,
  num_levels: int,
  flip: bool,
  mean: Callable[[Any], Any],
  augment: float = 0.0,
  microbatches: int = 1,
) -> Step:
  """Makes step(state, batch) -> (state, metrics).

  Where the loss or the gradient is not finite, nothing changes but the number of the step, and the
  metric 'skipped' is 1.

  Args:
    problem: what the loss needs to know beside parameters and data.
    loss: a row of LOSSES.
    optimizer: sees gradients already averaged over all examples of all devices.
    decays: name of an average in `state.ema` -> its decay.
    ema_warmup: whether the decays grow from 0.1, as (1 + n) / (10 + n).
    seed: the run's; with the step and an example's index it makes every key.
    num_levels: the number of values of a pixel; `batch['image']` holds 0 ... num_levels - 1.
    flip: whether images are mirrored at random.
    mean: a tree's mean over devices.
    augment: probability of each change of `data.augment`, told as batch['augmentation'].
    microbatches: equal parts that a device takes its examples in, one after another, so that only
      one part's activations are in memory. The gradient is the same, to rounding.
  """

  def prepare(batch: Batch, keys: Keys) -> Batch:
    image = data.scale(batch['image'], num_levels)
    if flip:
      image = data.random_flip(image, for_purpose(keys.examples, 'flip'))
    batch = {**batch, 'image': image}
    if augment:
      change = jax.vmap(data.augment, (0, 0, None))
      image, told = change(image, for_purpose(keys.examples, 'augment'), augment)
      batch |= {'image': image, 'augmentation': told}
    return batch

  def gradient(state: TrainState, batch: Batch, keys: Keys) -> tuple[Any, Metrics, Any]:
    """Of the mean loss of some examples; with its metrics, and the loss's next state."""

    def objective(params):
      schedule = bind(problem.schedule, params['schedule'])
      bound = dataclasses.replace(problem, schedule=schedule)
      output = loss(bound, params, state.loss_state, batch, keys)
      return jnp.mean(output.values), output

    (value, output), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    return grads, {'loss': value, **jax.tree.map(jnp.mean, output.metrics)}, output.state

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = step_key(seed, state.step)
    keys = Keys(key, example_keys(key, batch['index']))
    batch = prepare(batch, keys)
    of_part = functools.partial(gradient, state)
    *local, loss_state = accumulated(of_part, batch, keys, microbatches)
    # Devices hold equally many examples: the mean of their means is the batch's mean.
    grads, metrics = mean(tuple(local))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    averages = {
      name: ema.update(state.ema[name], params, ema.rate(decay, state.step, ema_warmup))
      for name, decay in decays.items()
    }
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(metrics['loss']) & jnp.isfinite(norm)
    done = TrainState(state.step + 1, params, averages, opt_state, loss_state)
    skipped = dataclasses.replace(state, step=state.step + 1)
    state = jax.tree.map(functools.partial(jnp.where, finite), done, skipped)
    return state, {**metrics, 'grad_norm': norm, 'skipped': 1.0 - finite}

  return train_step


def accumulated(
  gradient: Callable[[Batch, Keys], tuple[Any, Metrics, Any]], batch: Batch, keys: Keys, count: int
) -> tuple[Any, Metrics, Any]:
  """The mean of gradient(part, its keys) over `count` equal parts of a batch, one after another."""
  if count == 1:
    return gradient(batch, keys)
  # Part n is every count-th example from n on, of which each device has equally many.
  parts, examples = jax.tree.map(
    lambda x: jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0), (batch, keys.examples)
  )

  def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
    *sums, state = gradient(part[0], Keys(keys.step, part[1]))
    return (jax.tree.map(jnp.add, total[0], tuple(sums)), state), None

  first = jax.tree.map(lambda x: x[0], (parts, examples))
  shapes = jax.eval_shape(gradient, first[0], Keys(keys.step, first[1]))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (tuple(shapes[:2]), shapes[2]))
  # On CPUs the gradient of a convolution in a loop's body is 17 to 75 times slower.
  unroll = jax.default_backend() == 'cpu'
  (sums, state), _ = jax.lax.scan(add, zeros, (parts, examples), unroll=unroll)
  return *jax.tree.map(lambda x: x / count, sums), state


def several(step: Step) -> Step:
  """step(state, batches) -> (state, metrics): one step after another, over the first axis of both
  batches and metrics.
  """
  return lambda state, batches: jax.lax.scan(step, state, batches)
