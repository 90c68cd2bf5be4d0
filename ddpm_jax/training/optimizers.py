"""Optimizers and learning-rate schedules by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
import optax
from annotated_types import Interval

LearningRate = float | optax.Schedule

# A decay nearer to one is one in float32.
Decay = Annotated[float, Interval(ge=0, le=0.999999)]
Eps = Annotated[float, Interval(gt=0, le=1)]
WeightDecay = Annotated[float, Interval(ge=0, le=10)]


def adam(
  learning_rate: LearningRate, b1: Decay = 0.9, b2: Decay = 0.999, eps: Eps = 1e-8
) -> optax.GradientTransformation:
  """Adam (Kingma and Ba, 2015)."""
  return optax.adam(learning_rate, b1, b2, eps)


def adamw(
  learning_rate: LearningRate,
  b1: Decay = 0.9,
  b2: Decay = 0.999,
  eps: Eps = 1e-8,
  weight_decay: WeightDecay = 1e-2,
) -> optax.GradientTransformation:
  """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""
  return optax.adamw(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def radam(
  learning_rate: LearningRate, b1: Decay = 0.9, b2: Decay = 0.999, eps: Eps = 1e-8
) -> optax.GradientTransformation:
  """Rectified Adam (Liu et al., 2020)."""
  return optax.radam(learning_rate, b1, b2, eps)


def lion(
  learning_rate: LearningRate, b1: Decay = 0.9, b2: Decay = 0.99, weight_decay: WeightDecay = 0.0
) -> optax.GradientTransformation:
  """Lion (Chen et al., 2023)."""
  return optax.lion(learning_rate, b1, b2, weight_decay=weight_decay)


def sgd(
  learning_rate: LearningRate, momentum: Decay = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
  """Stochastic gradient descent with momentum."""
  return optax.sgd(learning_rate, momentum, nesterov)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
  'adam': adam,
  'adamw': adamw,
  'radam': radam,
  'lion': lion,
  'sgd': sgd,
}


def constant(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
  """peak."""
  del warmup_steps, steps
  return optax.constant_schedule(peak)


def cosine(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
  """peak (1 + cos(pi n / steps)) / 2."""
  del warmup_steps
  return optax.cosine_decay_schedule(peak, max(steps, 1))


def linear(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
  """peak (1 - n / steps)."""
  del warmup_steps
  return optax.linear_schedule(peak, 0.0, steps)


def inverse_sqrt(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
  """peak sqrt(w / (w + n)), w = max(warmup_steps, 1) (Vaswani et al., 2017)."""
  del steps
  start = max(warmup_steps, 1)
  return lambda n: peak * (start / jnp.maximum(start + n, start)) ** 0.5


# Each: (peak, warmup_steps, steps after them) -> the rate n steps after the warm-up.
LR_SCHEDULES: dict[str, Callable[[float, int, int], optax.Schedule]] = {
  'constant': constant,
  'cosine': cosine,
  'linear': linear,
  'inverse_sqrt': inverse_sqrt,
}


def learning_rate(name: str, peak: float, warmup_steps: int, num_steps: int) -> optax.Schedule:
  """peak n / warmup_steps for n < warmup_steps, then the named schedule."""
  after = LR_SCHEDULES[name](peak, warmup_steps, num_steps - warmup_steps)
  if not warmup_steps:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps]
  )


def clipped(
  optimizer: optax.GradientTransformation, clip_norm: float | None
) -> optax.GradientTransformation:
  """The optimizer, after gradients are scaled to a global norm of at most `clip_norm`."""
  if clip_norm is None:
    return optimizer
  return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)
