"""One training step: a pure function of the state and a batch."""

from __future__ import annotations

import dataclasses
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
) -> Step:
  """Makes step(state, batch) -> (state, metrics).

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

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    key = step_key(seed, state.step)
    keys = Keys(key, example_keys(key, batch['index']))
    batch = prepare(batch, keys)

    def objective(params):
      schedule = bind(problem.schedule, params['schedule'])
      bound = dataclasses.replace(problem, schedule=schedule)
      output = loss(bound, params, state.loss_state, batch, keys)
      return jnp.mean(output.values), output

    (value, output), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    # Devices hold equally many examples: the mean of their means is the batch's mean.
    local = {'loss': value, **jax.tree.map(jnp.mean, output.metrics)}
    grads, metrics = mean((grads, local))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    averages = {
      name: ema.update(state.ema[name], params, ema.rate(decay, state.step, ema_warmup))
      for name, decay in decays.items()
    }
    state = TrainState(state.step + 1, params, averages, opt_state, output.state)
    return state, {**metrics, 'grad_norm': optax.tree.norm(grads)}

  return train_step
