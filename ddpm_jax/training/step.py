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

from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LossOutput
from ddpm_jax.training import ema
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.task import Batch, Task

Metrics = dict[str, Array]
Step = Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]


def make_train_step(
  task: Task,
  *,
  decays: dict[str, float],
  ema_warmup: bool,
  seed: int,
  mean: Callable[[Any], Any],
  gather: Callable[[Array], Array],
  microbatches: int = 1,
) -> Step:
  """Makes step(state, frozen, batch) -> (state, metrics).

  Where the loss or the gradient is not finite, nothing changes but the number of the step, and the
  metric 'skipped' is 1.

  Args:
    task: its loss and its optimizer; that sees gradients averaged over all examples of all devices.
    decays: name of an average in `state.ema` -> its decay.
    ema_warmup: whether the decays grow from 0.1, as (1 + n) / (10 + n).
    seed: the run's; with the step and an example's index it makes every key.
    mean: a tree's mean over devices.
    gather: per-example values of this device -> those of the whole batch.
    microbatches: equal parts that a device takes its examples in, one after another, so that only
      one part's activations are in memory. The gradient is the same, to rounding.
  """

  def gradient(state: TrainState, frozen: Any, batch: Batch, keys: Keys) -> tuple[Any, Any, Any]:
    """Of the mean loss of some examples; with its metrics, and the loss's next state."""

    def objective(params: Any) -> tuple[Array, LossOutput]:
      output = task.loss(params, state.loss_state, frozen, batch, keys, gather)
      return jnp.mean(output.values), output

    (value, output), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    return grads, {'loss': value, **jax.tree.map(jnp.mean, output.metrics)}, output.state

  def train_step(state: TrainState, frozen: Any, batch: Batch) -> tuple[TrainState, Metrics]:
    key = step_key(seed, state.step)
    keys = Keys(key, example_keys(key, batch['index']))
    of_part = functools.partial(gradient, state, frozen)
    *local, loss_state = accumulated(of_part, batch, keys, microbatches)
    # Devices hold equally many examples: the mean of their means is the batch's mean.
    grads, metrics = mean(tuple(local))

    updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
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
  """Makes many(state, frozen, batches) -> (state, metrics): one step after another, over the first
  axis of both batches and metrics.
  """
  return lambda state, frozen, batches: jax.lax.scan(
    lambda state, batch: step(state, frozen, batch), state, batches
  )
