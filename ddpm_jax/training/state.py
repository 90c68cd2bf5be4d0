"""What training carries from step to step."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from jax import Array


@flax.struct.dataclass
class TrainState:
  """Everything a step changes; no key is stored, since keys follow from the seed and the step.

  Attributes:
    step: () int32, the number of updates made.
    params: {'network', 'schedule', 'loss'}, all trained.
    ema: name -> an exponential moving average of `params`.
    opt_state: the optimizer's.
    loss_state: the loss's own (a history, a teacher).
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


def _copy(leaf: Array) -> Array:
  """A new buffer (one buffer cannot be donated twice), in float32 or wider."""
  return jnp.array(leaf, jnp.promote_types(leaf.dtype, jnp.float32), copy=True)
