"""Where every random number comes from.

A draw's key is fold_in(fold_in(fold_in(key(seed), step), index), purpose), where `index` is the
example's position in the global stream of examples. Neither devices, hosts nor the batch's
layout enter, so they change nothing but rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
from jax import Array

# Numbered from 2³¹, above every step and index: or the key of a step for one purpose would be the
# key of the example with that number.
PURPOSES = {
  name: 2**31 + number
  for number, name in enumerate(
    (
      'init',
      'time',
      'noise',
      'dropout',
      'label',
      'flip',
      'prior',
      'sampler',
      'bound',
      'heldout',
      'loss',
      'perturbation',
      'probe',
      'self_condition',
      'augment',
      'codec',
    )
  )
}


class Keys(NamedTuple):
  """The keys of one step: the step's own (for what couples a batch) and one for each example."""

  step: Array
  examples: Array


def step_key(seed: int, step: Array | int) -> Array:
  """fold_in(key(seed), step)."""
  return jax.random.fold_in(jax.random.key(seed), step)


def example_keys(key: Array, index: Array) -> Array:
  """One key for each example: fold_in(key, index), for `index` of shape (B,)."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def for_purpose(keys: Array, purpose: str) -> Array:
  """fold_in(keys, PURPOSES[purpose]), for one key or for (B,) of them."""
  number = PURPOSES[purpose]
  if keys.ndim:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
  return jax.random.fold_in(keys, number)
