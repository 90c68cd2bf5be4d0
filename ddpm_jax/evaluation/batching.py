"""Batches of one size, padded and spread over all hosts' devices, for one compiled program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.data.dataset import Batch, Dataset, Split


def even_size(total: int, batch_size: int) -> int:
  """The size of the fewest equal batches of at most `batch_size`, then up to the next multiple of
  the number of devices.
  """
  devices = jax.device_count()
  each = math.ceil(total / math.ceil(total / batch_size))
  return math.ceil(each / devices) * devices


def map_batches(
  function: Callable[[Batch], Array],
  batches: Iterable[Batch],
  size: int,
  advance: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
  """function(batch) for each batch, one after another, on every host.

  A batch shorter than `size` is padded with its last row; what comes of the padding is dropped.
  Each host works on its part of a batch, and all parts are gathered once.

  Args:
    function: a tree of arrays (size / hosts, …) -> (size / hosts, …), row by row.
    batches: trees of arrays with equally many rows, at most `size`; the same on every host.
    size: a multiple of the number of devices.
    advance: told the number of rows done, after each batch.
  """
  each = size // jax.process_count()
  mine = slice(jax.process_index() * each, (jax.process_index() + 1) * each)
  parts = []
  for batch in batches:
    rows = len(jax.tree.leaves(batch)[0])
    part = jax.tree.map(lambda column: pad(column, size)[mine], batch)
    found = np.asarray(function(jax.device_put(part, over_devices('data'))))
    parts.append(multihost_utils.process_allgather(found, tiled=True)[:rows])
    advance(rows)
  return np.concatenate(parts)


def replicate(tree: Any) -> Any:
  """A copy on each of this host's devices."""
  return jax.device_put(tree, over_devices())


def over_devices(*axes: str) -> NamedSharding:
  """With 'data' rows are divided among this host's devices; without it each has them all."""
  return NamedSharding(Mesh(np.array(jax.local_devices()), ('data',)), PartitionSpec(*axes))


def pad(column: np.ndarray, size: int) -> np.ndarray:
  """Repeats the last row up to `size` rows."""
  return np.concatenate([column, np.repeat(column[-1:], size - len(column), axis=0)])


def evenly(dataset: Dataset, split: Split, limit: int) -> Batch:
  """At most `limit` examples, evenly spaced: a folder's are in the order of their classes."""
  rows = np.linspace(0, len(split) - 1, min(limit, len(split))).round().astype(int)
  return dataset.read(split, rows)
