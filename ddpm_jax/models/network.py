"""From a linen module to the plain function that the rest of the package calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.condition import Cond, Spec, checked, nulls

Params = Mapping[str, Any]
Network = Callable[..., Array]


def make_network(module: nn.Module) -> Network:
  """The function network(params, x, noise_label, cond, index=None, keys=None) -> output.

  x is (B, H, W, C) float32, noise_label (B,) float32, cond what the module reads, as {'label': (B,)
  int32}, or {}. With `keys` (B,), training, dropout of units and of conditions is drawn for each
  example from its own key; None is evaluation. `index` is for networks that answer by the example.
  """

  def network(
    params: Params,
    x: Array,
    noise_label: Array,
    cond: Cond,
    index: Array | None = None,
    keys: Array | None = None,
  ) -> Any:
    del index
    return module.apply({'params': params}, x, noise_label, checked_cond(module, cond), keys)

  return network


def init_network(module: nn.Module, key: Array, image_shape: tuple[int, ...]) -> Params:
  """Initial parameters for images of shape (H, W, C)."""
  image = jnp.zeros((1, *image_shape))
  init = jax.jit(module.init, compiler_options=_compiler_options(image))
  return init(key, image, jnp.zeros(1), null_cond(module, 1))['params']


def _compiler_options(image: Array) -> dict[str, Any] | None:
  """On a CPU, no optimization: init runs once, and its many small draws compile 4 times sooner.

  JAX takes options at top level only, hence not where the caller is tracing.
  """
  if isinstance(image, jax.core.Tracer) or jax.default_backend() != 'cpu':
    return None
  return {'xla_backend_optimization_level': 0}


def null_cond(module: nn.Module, batch_size: int) -> Cond:
  """The condition by which the network is told nothing.

  It is the module's own, `module.null_cond(batch_size)`, where the module has one, and else every
  entry of its specification filled with its null; {} for an unconditional module.
  """
  own = getattr(module, 'null_cond', None)
  return own(batch_size) if own else nulls(spec_of(module), batch_size)


def checked_cond(module: nn.Module, cond: Cond) -> Cond:
  """The condition, once it is what the module's specification says; see `condition.checked`."""
  return checked(spec_of(module), cond) if spec_of(module) else cond


def spec_of(module: nn.Module) -> Spec:
  """The specification of the condition that a module was made for; {} where it has none."""
  return getattr(module, 'spec', {})


def never_null(module: nn.Module) -> str | None:
  """The name of the module's dropout rate where it is zero: then it never sees its null.

  None where a rate is above zero, and for a module that has no attribute of these names.
  """
  rates = [name for name in DROPOUTS if hasattr(module, name)]
  return rates[0] if rates and not any(getattr(module, name) for name in rates) else None


DROPOUTS = ('label_dropout', 'cond_dropout')


def tell_estimate(cond: Cond, x0: Array) -> Cond:
  """The condition with an estimate of x0, for a network with `self_condition`."""
  return {**cond, 'x0': x0}


def tell_augmentation(cond: Cond, changes: Array) -> Cond:
  """The condition with what was done to each image (B, 9), for a network that is `augmented`."""
  return {**cond, 'augmentation': changes}


def num_params(params: Params) -> int:
  """How many numbers the parameters are."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
