"""What every loss is given, and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.codec import Codec, pixels
from ddpm_jax.condition import Cond
from ddpm_jax.diffusion.parameterization import (
  Network,
  Parameterization,
  network_input,
  split_variance,
  to_x0,
)
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.timestep_distributions import memory

Batch = Mapping[str, Any]  # 'x' (B, …), 'cond' and 'index' (B,)


def white(context: LossContext, batch: Batch, keys: Keys) -> tuple[Array, Array]:
  """Independent standard normals, seen as they are."""
  del context
  eps = noise_like(batch['x'], keys)
  return eps, eps


class Factors(NamedTuple):
  """What a loss that is a product is made of: weight, distance, and how t and eps are drawn."""

  weight: Callable[[Schedule, Array], Array]
  timestep_distribution: Callable[..., tuple[Array, Array]]
  distance: Callable[[Array], Array]
  noise_distribution: Callable[[LossContext, Batch, Keys], tuple[Array, Array]] = white


@dataclasses.dataclass(frozen=True)
class LossContext:
  """All that stays fixed while training; it holds no arrays that are trained.

  Attributes:
    network: (params, x, noise_label, cond, index, keys) -> output; an autoencoder's `Coder`.
    schedule: the path.
    parameterization: what the network predicts.
    factors: weight, timestep and noise distributions, distance.
    batch_size: of the whole batch, over all devices and hosts.
    gather: per-example values of this device -> those of the whole batch.
    train: whether the network drops out units and conditions.
    codec: of the data, for losses that are a probability of it.
    frozen: what is read and not trained: {'codec': its parameters, 'teacher': a network's}.
    recall: (cond, x0) -> the condition with an estimate of x0, for a network that is to see its own
      in training; None for others.
  """

  network: Network
  schedule: Schedule
  parameterization: Parameterization
  factors: Factors
  batch_size: int
  gather: Callable[[Array], Array] = lambda values: values
  train: bool = True
  codec: Codec = dataclasses.field(default_factory=lambda: pixels((), 256))
  frozen: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  recall: Callable[[Cond, Array], Cond] | None = None


class LossOutput(NamedTuple):
  """A loss for each example, (B,); metrics, each (B,); and the loss's own state."""

  values: Array
  metrics: dict[str, Array]
  state: Any


Loss = Callable[[LossContext, dict, Any, Batch, Keys], LossOutput]


def starts_with(init: Callable[..., tuple[Any, Any]]) -> Callable[[Loss], Loss]:
  """Decorator of a loss that trains parameters of its own or carries a state from step to step.

  Args:
    init: (context, params, key, **options) -> (the first params['loss'], the first state). `params`
      has 'network' and 'schedule' as training begins with them, `options` are the loss's own.
  """

  def mark(loss: Any) -> Loss:
    loss.init = init
    return loss

  return mark


def start(loss: Loss, context: LossContext, params: dict, key: Array) -> tuple[Any, Any]:
  """What a loss begins with: params['loss'] and its state.

  One that does not say has no parameters, and for its state what the timestep distribution
  remembers, so that it can be a function of a product.
  """
  function, options = getattr(loss, 'func', loss), getattr(loss, 'keywords', {})
  init = getattr(function, 'init', None)
  return init(context, params, key, **options) if init else ({}, distribution_start(context))


def distribution_start(context: LossContext) -> Any:
  """What the timestep distribution remembers before the first step; () for nothing."""
  kept = memory(context.factors.timestep_distribution)
  return kept.init(context.schedule) if kept else ()


def apply_network(
  context: LossContext, params: dict, xt: Array, t: Array, batch: Batch, keys: Keys
) -> Array:
  """One batched call of the network at times t (B,); with self-conditioning one more before it."""
  x, label = network_input(context.parameterization, context.schedule, xt, t)
  examples = keys.examples if context.train else None

  def network(cond: Cond) -> Array:
    return context.network(params['network'], x, label, cond, batch['index'], examples)

  if context.recall is None or not context.train:
    return network(batch['cond'])
  x0 = estimate(context, network(batch['cond']), xt, t, keys)
  return network(context.recall(batch['cond'], context.codec.clip(x0)))


def estimate(context: LossContext, output: Array, xt: Array, t: Array, keys: Keys) -> Array:
  """x0 by a first output, held fixed, for one half of the examples at random; zeros for the rest.

  Reference: Chen et al. 2022, https://arxiv.org/abs/2208.04202, section 2, "Self-Conditioning".
  """
  schedule, row = context.schedule, context.parameterization.row
  value, _ = split_variance(output, xt)

  def example(value: Array, x: Array, t: Array, key: Array) -> Array:
    x0 = to_x0(value, x, schedule.alpha(t), schedule.sigma(t), row)
    return jnp.where(jax.random.bernoulli(key), x0, 0.0)

  own = for_purpose(keys.examples, 'self_condition')
  return jax.lax.stop_gradient(jax.vmap(example)(value, xt, t, own))


def noise_like(x0: Array, keys: Keys, purpose: str = 'noise') -> Array:
  """Standard normals like the batch x0, each example's from its own key for that purpose."""

  def draw(key: Array) -> Array:
    return jax.random.normal(key, x0.shape[1:], x0.dtype)

  return jax.vmap(draw)(for_purpose(keys.examples, purpose))
