"""Floating-point operations: those that a function takes, and those that the machine can do.

Only matrix products and convolutions count, 2 operations for each multiply-add. The zeros around
an image count as numbers; those that the gradient of a strided convolution sets between pixels do
not, so that its gradients cost what it costs itself, each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr

SIZES = (512, 1024, 2048, 4096, 8192)
PATIENCE = 0.5  # seconds: a product that would take longer is not tried


def count_flops(function: Callable, *args: Any) -> int:
  """The operations of function(*args), on all devices together.

  Args:
    function: anything that JAX can trace, jitted or not.
    *args: arrays or their shapes.

  Raises:
    ValueError: products stand in a while loop, which goes round an unknown number of times.
  """
  return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
  return sum(RULES.get(equation.primitive.name, _inner)(equation) for equation in jaxpr.eqns)


def _product(equation: Any) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
  return 2 * equation.outvars[0].aval.size * math.prod(lengths)


def _convolution(equation: Any) -> int:
  kernel = equation.invars[1].aval
  outputs = kernel.shape[equation.params['dimension_numbers'].rhs_spec[0]]
  total = 2 * equation.outvars[0].aval.size * (kernel.size // outputs)
  return total // math.prod(equation.params['lhs_dilation'])


def _inner(equation: Any) -> int:
  return sum(map(_count, _jaxprs(equation)))


def _dearest(equation: Any) -> int:
  return max(map(_count, _jaxprs(equation)))


def _unknown(equation: Any) -> int:
  if _inner(equation):
    raise ValueError('a while loop: who knows how often it goes round?')
  return 0


def _jaxprs(equation: Any) -> Iterator[Jaxpr]:
  for leaf in jax.tree.leaves(equation.params):
    if isinstance(leaf, ClosedJaxpr):
      yield leaf.jaxpr
    elif isinstance(leaf, Jaxpr):
      yield leaf


# What is not here costs what its inner functions cost, mostly nothing.
RULES: dict[str, Callable[[Any], int]] = {
  'dot_general': _product,
  'conv_general_dilated': _convolution,
  'cond': _dearest,
  'scan': lambda equation: equation.params['length'] * _inner(equation),
  'shard_map': lambda equation: equation.params['mesh'].size * _inner(equation),
  'while': _unknown,
}


def matmul_rate(dtype: Any, devices: list[jax.Device]) -> float:
  """The most operations per second in square matrix products, all devices working at once.

  Args:
    dtype: of the matrices, multiplied at JAX's default precision.
    devices: that the step runs on.
  """
  rates = []
  for size in SIZES:
    seconds = _matmul_seconds(size, dtype, devices)
    rates.append(2 * size**3 * len(devices) / seconds)
    if 8 * seconds > PATIENCE:  # the next size has eight times the operations
      break
  return max(rates)


def _matmul_seconds(size: int, dtype: Any, devices: list[jax.Device], repeats: int = 5) -> float:
  """The least time of a product."""
  product = jax.jit(jnp.dot)
  matrices = [jax.device_put(jnp.ones((size, size), dtype), device) for device in devices]
  calls = max(1, 1024 // size) ** 2  # short ones are dispatched together
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready([product(x, x) for _ in range(calls) for x in matrices])
    times.append((time.perf_counter() - start) / calls)
  return min(times)
