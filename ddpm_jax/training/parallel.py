"""Ways of running one pure step on every device.

The step is written for the examples that a device holds; `mean` and `gather` are all it knows of
the others. Every way gives the same losses, to rounding, on any number of devices: each example
brings its own key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import InputError

Step = Callable[[Any, Any], tuple[Any, Any]]


class Parallel(NamedTuple):
  """A way of running the step.

  Attributes:
    place_state: the state -> the same, on every device.
    place_batch: arrays (B, ...) of this process -> the layout that the compiled step takes.
    compile: step(state, batch) -> its compiled form, which donates the state.
    mean: inside the step, a tree's mean over devices.
    gather: inside the step, an array (b, ...) -> (B, ...) of all devices' examples in order.
  """

  place_state: Callable[[Any], Any]
  place_batch: Callable[[Any], Any]
  compile: Callable[[Step], Step]
  mean: Callable[[Any], Any]
  gather: Callable[[jax.Array], jax.Array]


def pmap(devices: list[jax.Device]) -> Parallel:
  """Data parallelism by `jax.pmap`; the state is replicated and has no axis for devices."""
  axis = 'data'
  mesh = Mesh(np.array(devices), (axis,))
  replicated = NamedSharding(mesh, PartitionSpec())
  split = NamedSharding(mesh, PartitionSpec(axis))

  def place_batch(batch):
    rows = {name: x.reshape(len(devices), -1, *x.shape[1:]) for name, x in batch.items()}
    return jax.device_put(rows, split)

  return Parallel(
    place_state=lambda state: jax.device_put(state, replicated),
    place_batch=place_batch,
    compile=lambda step: jax.pmap(
      step, axis, in_axes=(None, 0), out_axes=None, devices=devices, donate_argnums=0
    ),
    mean=lambda tree: jax.lax.pmean(tree, axis),
    gather=lambda x: jax.lax.all_gather(x, axis, tiled=True),
  )


PARALLEL: dict[str, Callable[[list[jax.Device]], Parallel]] = {'pmap': pmap}


def check_batch_size(batch_size: int, num_devices: int) -> None:
  """Raises an InputError where a batch does not split evenly over the devices."""
  if batch_size % num_devices:
    below = batch_size - batch_size % num_devices
    options = [str(size) for size in (below, below + num_devices) if size]
    raise InputError(
      f'config.dataset.batch_size: {batch_size} examples cannot be shared equally by '
      f'{num_devices} devices; use {" or ".join(options)}'
    )
