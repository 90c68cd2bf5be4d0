"""How noisy the gradient is that training follows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ddpm_jax.training.advance import make_step
from ddpm_jax.training.job import Job
from ddpm_jax.training.state import TrainState


class Tally(NamedTuple):
  """What is kept of the gradients g_1 … g_n: n, Σ g and Σ |g|²."""

  count: Array
  total: Any
  squares: Array


def tally() -> optax.GradientTransformation:
  """An optimizer that moves nothing; its state is a Tally of what it was given."""

  def init(params: optax.Params) -> Tally:
    return Tally(jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), jnp.zeros(()))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Tally]:
    del params
    total = jax.tree.map(jnp.add, state.total, updates)
    squares = state.squares + optax.tree.norm(updates, squared=True)
    return jax.tree.map(jnp.zeros_like, updates), Tally(state.count + 1, total, squares)

  return optax.GradientTransformation(init, update)


def relative_variance(seen: Tally) -> float:
  """tr Cov(g) / |E g|², both estimated without bias from n >= 2 independent gradients.

  |E g|² is the mean of g_i·g_j over i ≠ j, (|Σ g|² - Σ |g|²) / (n (n - 1)), and tr Cov(g) is the
  mean of |g|² less that. Where so few gradients leave no sign of their mean it is infinite.

  Reference: McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, appendix A.
  """
  count, squares = float(seen.count), float(seen.squares)
  of_total = sum(float(np.sum(np.square(x, dtype=np.float64))) for x in jax.tree.leaves(seen.total))
  mean_squared = (of_total - squares) / (count * (count - 1))
  return (squares / count - mean_squared) / mean_squared if mean_squared > 0 else math.inf


def gradient_noise(job: Job, state: TrainState, batches: Iterable[Any]) -> float:
  """The variance of the training loss's minibatch gradient, relative to its mean's square.

  It is `relative_variance` of the gradients that training would see next if its parameters stood
  still: over examples, times, noise and dropout, averaged over the batch, before any clipping.

  Args:
    job: of the training.
    state: of the training; its averages and its optimizer's state play no part.
    batches: two at least, as the training reads them.
  """
  still, parallel = job._replace(task=job.task._replace(optimizer=tally())), job.parallel
  step, frozen = parallel.compile(make_step(still)), parallel.place_state(job.frozen)
  state = parallel.place_state(
    dataclasses.replace(state, opt_state=still.task.optimizer.init(state.params))
  )
  for batch in batches:
    state, _ = step(state, frozen, parallel.place_batch(batch))
  return relative_variance(jax.device_get(state.opt_state))
