"""From a linen module to the plain function that the rest of the package calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.errors import InputError

Params = Mapping[str, Any]
Network = Callable[..., Array]


def make_network(module: nn.Module) -> Network:
  """The function network(params, x, noise_label, cond, index=None, keys=None) -> output.

  x is (B, H, W, C) float32, noise_label (B,) float32, cond {'label': (B,) int32} or {}. With
  `keys` (B,), training, dropout and label dropout are drawn for each example from its own key;
  None is evaluation. `index` is for networks that answer by the example. Labels are read by
  `checked_cond`.
  """

  def network(
    params: Params,
    x: Array,
    noise_label: Array,
    cond: Mapping[str, Array],
    index: Array | None = None,
    keys: Array | None = None,
  ) -> Any:
    del index
    return module.apply({'params': params}, x, noise_label, checked_cond(module, cond), keys)

  return network


def init_network(module: nn.Module, key: Array, image_shape: tuple[int, int, int]) -> Params:
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


def null_cond(module: nn.Module, batch_size: int) -> dict[str, Array]:
  """The condition that says nothing: null labels, or {} where the module is unconditional."""
  if module.num_classes is None:
    return {}
  return {'label': jnp.full((batch_size,), module.num_classes, jnp.int32)}


def checked_cond(module: nn.Module, cond: Mapping[str, Array]) -> dict[str, Array]:
  """The condition, its labels within 0 … num_classes, the last of them the null label.

  Traced labels are clamped to that. Else an embedding would give NaN for those above, and for -1
  its last row.

  Raises:
    InputError: labels are no integers, more than one for each example or, where they are concrete,
      out of that range.
  """
  num_classes = getattr(module, 'num_classes', None)
  if num_classes is None or 'label' not in cond:
    return dict(cond)
  label = cond['label']
  dtype, shape = jnp.result_type(label), jnp.shape(label)
  if not jnp.issubdtype(dtype, jnp.integer) or len(shape) > 1:
    raise InputError(f'cond: label must be integers (B,), the classes, not {dtype} {shape}')
  if isinstance(label, jax.core.Tracer):
    return {**cond, 'label': jnp.clip(label, 0, num_classes)}
  outside = [int(k) for k in np.ravel(label) if not 0 <= k <= num_classes]
  if outside:
    raise InputError(
      f'cond: label {outside[0]} is no class: there are 0 to {num_classes - 1}, and {num_classes} '
      'for no condition'
    )
  return dict(cond)


def num_params(params: Params) -> int:
  """How many numbers the parameters are."""
  return sum(leaf.size for leaf in jax.tree.leaves(params))
