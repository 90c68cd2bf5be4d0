"""What training carries from step to step."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddpm_jax.config.settings import Config
from ddpm_jax.training.ema import decays
from ddpm_jax.training.task import Task


@flax.struct.dataclass
class TrainState:
  """Everything a step changes; no key is stored, since keys follow from the seed and the step.

  Attributes:
    step: () int32, the number of updates made.
    params: the task's, all trained; a denoiser's are {'network', 'schedule', 'loss'}.
    ema: name -> an exponential moving average of `params`.
    opt_state: the optimizer's.
    loss_state: the loss's own, such as a history.
  """

  step: Array
  params: dict[str, Any]
  ema: dict[str, Any]
  opt_state: Any
  loss_state: Any


def init_state(
  params: dict[str, Any],
  optimizer: optax.GradientTransformation,
  loss_state: Any = (),
  averages: tuple[str, ...] = (),
) -> TrainState:
  """The state before the first step; every average starts at `params`."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema={name: jax.tree.map(_copy, params) for name in averages},
    opt_state=optimizer.init(params),
    loss_state=loss_state,
  )


def new_state(task: Task, config: Config, given: Any = None) -> TrainState:
  """The state of a task before the first step.

  Args:
    task: what is to be trained.
    config: of its averages.
    given: the first values of some branches of the parameters.
  """
  params, loss_state = task.init(given)
  return init_state(params, task.optimizer, loss_state, tuple(decays(config)))


def _copy(leaf: Array) -> Array:
  """A new buffer (one buffer cannot be donated twice), in float32 or wider."""
  return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True)
