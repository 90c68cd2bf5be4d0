"""Ways of running one pure step on every device of every host.

The step is written for the examples that it is given; `mean` and `gather` are all it knows of
others. Every way gives the same losses, to rounding, on any number of devices: each example
brings its own key.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpm_jax.errors import InputError

Step = Callable[[Any, Any, Any], tuple[Any, Any]]

SLICE, AXIS = 'slice', 'data'
REPLICATED = PartitionSpec()
# Below so many elements a piece on each device saves nothing and costs a message.
LEAST = 1024


class Parallel(NamedTuple):
  """A way of running the step.

  Attributes:
    compile: step(state, frozen, batch) -> its compiled form, which donates the state.
    mean: inside the step, a tree's mean over devices.
    gather: inside the step, an array (b, ...) -> (B, ...) of all devices' examples in order.
    place_batch: arrays of this host, with its examples along an axis, the first unless told
      otherwise -> the layout that the compiled step takes.
    place_state: a state, the same on each host or in the layout of `layout` -> the layout that the
      compiled step takes.
    create: make() -> the state that it makes, in that layout from the start.
    layout: shapes of a state -> how a checkpoint of it lies on all devices of all hosts.
    for_checkpoint: a state of the compiled step -> the same in that layout.
    on_one_device: a part of such a state -> whole, on one device of this host; every host calls it.
  """

  compile: Callable[[Step], Step]
  mean: Callable[[Any], Any]
  gather: Callable[[jax.Array], jax.Array]
  place_batch: Callable[..., Any]
  place_state: Callable[[Any], Any]
  create: Callable[[Callable[[], Any]], Any]
  layout: Callable[[Any], Any]
  for_checkpoint: Callable[[Any], Any]
  on_one_device: Callable[[Any], Any]


def pmap(devices: list[jax.Device]) -> Parallel:
  """Data parallelism by `jax.pmap`; the state is replicated and has no axis for devices.

  Between steps each host has arrays of its own devices alone, since pmap takes and returns those.
  """
  mesh = Mesh(np.array(devices), (AXIS,))
  here = mesh.local_mesh

  def place_batch(batch, axis=0):
    count = here.devices.size

    def divided(x):
      return np.moveaxis(x.reshape(*x.shape[:axis], count, -1, *x.shape[axis + 1 :]), axis, 0)

    rows = jax.tree.map(divided, batch)
    return jax.device_put(rows, NamedSharding(here, PartitionSpec(AXIS)))

  def place_state(state):
    local = multihost_utils.global_array_to_host_local_array(state, mesh, REPLICATED)
    return jax.device_put(local, NamedSharding(here, REPLICATED))

  return Parallel(
    compile=lambda step: jax.pmap(
      step, AXIS, in_axes=(None, None, 0), out_axes=None, devices=devices, donate_argnums=0
    ),
    mean=lambda tree: jax.lax.pmean(tree, AXIS),
    gather=lambda x: jax.lax.all_gather(x, AXIS, tiled=True),
    place_batch=place_batch,
    place_state=place_state,
    create=lambda make: place_state(make()),
    layout=lambda shapes: laid_out(shapes, lambda leaf: NamedSharding(mesh, REPLICATED)),
    for_checkpoint=lambda state: multihost_utils.host_local_array_to_global_array(
      state, mesh, REPLICATED
    ),
    on_one_device=first_shard,
  )


def jit(devices: list[jax.Device]) -> Parallel:
  """Data parallelism by `jax.jit` over a mesh: the step sees the whole batch, the state is whole
  on every device.
  """
  return over_mesh(np.array([devices]), lambda leaf: REPLICATED)


def fsdp(devices: list[jax.Device]) -> Parallel:
  """`jit` with every large array of the state (parameters, their averages, the optimizer's) in
  pieces, one on each device: fully sharded data parallelism.

  Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277.
  """
  return hsdp(devices, 1)


def hsdp(devices: list[jax.Device], slices: int | None = None) -> Parallel:
  """Hybrid sharded data parallelism: `fsdp` within each slice, and data parallelism between them.

  Parameters are gathered over the fast links of a slice alone; over the network between slices goes
  the sum of the gradient, of which each device sends its own piece. "Hybrid sharding" of Zhao et
  al. 2023, section 3.2.2, https://arxiv.org/abs/2304.11277.
  """
  grid = in_slices(devices, slices)
  return over_mesh(grid, lambda leaf: largest_axis(leaf.shape, grid.shape[1]))


def in_slices(devices: list[jax.Device], slices: int | None = None) -> np.ndarray:
  """The devices as (slices, devices of each).

  Args:
    devices: in the order of `all_devices`.
    slices: how many equal parts to make of them; None takes those that the devices name: TPU
      slices, and of GPUs and CPUs the machines. Devices of a single process may name none and are
      one slice.

  Raises:
    InputError: the slices are unequal, or the hosts are not in the order of their slices.
  """
  if slices is None:
    return named_slices(devices)
  if len(devices) % slices:
    fit = [count for count in range(1, len(devices) + 1) if len(devices) % count == 0]
    raise InputError(
      f'config.parallel.slices: {slices} slices cannot be made of {len(devices)} devices; '
      f'use one of {", ".join(map(str, fit))}'
    )
  return np.array(devices).reshape(slices, -1)


def named_slices(devices: list[jax.Device]) -> np.ndarray:
  """The devices as (slices, devices of each) by `device.slice_index`; see `in_slices`."""
  parts = itertools.groupby(devices, lambda device: getattr(device, 'slice_index', 0))
  numbers, found = zip(*((number, list(part)) for number, part in parts), strict=True)
  if len(set(numbers)) < len(numbers):
    raise InputError(
      "config.parallel.mode: 'hsdp' needs hosts in the order of their slices, which are "
      f'{", ".join(map(str, numbers))}; number the hosts of one slice one after another (as srun '
      '--distribution=block does)'
    )
  sizes = [len(part) for part in found]
  if len(set(sizes)) > 1:
    raise InputError(
      "config.parallel.mode: 'hsdp' needs slices of equally many devices, and they have "
      f"{', '.join(map(str, sizes))}; use equal ones or 'fsdp'"
    )
  return np.array(found)


def largest_axis(shape: tuple[int, ...], count: int) -> PartitionSpec:
  """Splits the largest axis that `count` divides; none of a small array or where there is none."""
  fitting = [axis for axis, size in enumerate(shape) if size % count == 0]
  if not fitting or np.prod(shape) < LEAST:
    return REPLICATED
  best = max(fitting, key=lambda axis: shape[axis])
  return PartitionSpec(*(AXIS if axis == best else None for axis in range(len(shape))))


def over_mesh(grid: np.ndarray, spec: Callable[[Any], PartitionSpec]) -> Parallel:
  """`jax.jit` with the batch divided among the devices and each array of the state by its spec.

  Args:
    grid: devices (slices, devices of each), over which the batch is divided.
    spec: of an array, in pieces along AXIS within each slice, or whole; all slices hold the same.
  """
  # Not jax.make_mesh, whose axes are Explicit: there the reshape of a divided axis is an error.
  mesh = Mesh(grid, (SLICE, AXIS))

  def layout(shapes):
    return laid_out(shapes, lambda leaf: NamedSharding(mesh, spec(leaf)))

  def shardings(state):
    return jax.tree.map(lambda leaf: leaf.sharding, layout(state))

  def compiled(step):
    def kept(state, frozen, batch):
      state, metrics = step(state, frozen, batch)
      return jax.lax.with_sharding_constraint(state, shardings(state)), metrics

    return jax.jit(kept, donate_argnums=0)

  def place_batch(batch, axis=0):
    split = NamedSharding(mesh, PartitionSpec(*[None] * axis, (SLICE, AXIS)))
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(split, rows), batch)

  def place(leaf, like):
    if isinstance(leaf, jax.Array) and leaf.sharding == like.sharding:
      return leaf
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, like.sharding, lambda rows: host[rows])

  def create(make):
    return jax.jit(make, out_shardings=shardings(jax.eval_shape(make)))()

  def on_one_device(tree):
    return first_shard(jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, REPLICATED))(tree))

  return Parallel(
    compile=compiled,
    mean=lambda tree: tree,
    gather=lambda x: x,
    place_batch=place_batch,
    place_state=lambda state: jax.tree.map(place, state, layout(state)),
    create=create,
    layout=layout,
    for_checkpoint=lambda state: state,
    on_one_device=on_one_device,
  )


def laid_out(shapes: Any, sharding: Callable[[Any], NamedSharding]) -> Any:
  """The shapes with a sharding each."""
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding(leaf)), shapes
  )


def first_shard(tree: Any) -> Any:
  """Replicated arrays as one device of this host sees them."""
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


PARALLEL: dict[str, Callable[[list[jax.Device]], Parallel]] = {
  'pmap': pmap,
  'jit': jit,
  'fsdp': fsdp,
  'hsdp': hsdp,
}


def make_parallel(mode: str, devices: list[jax.Device], slices: int | None = None) -> Parallel:
  """The way of PARALLEL that `mode` names, on these devices.

  Args:
    mode: a key of PARALLEL.
    devices: of all hosts, in the order of `all_devices`.
    slices: as `hsdp` takes them.

  Raises:
    InputError: there are no such slices, or the mode has none.
  """
  if slices is None:
    return PARALLEL[mode](devices)
  if mode != 'hsdp':
    raise InputError(
      f"config.parallel.slices: {slices} is set, but '{mode}' makes no use of it; leave it unset, "
      'or take config.parallel.mode=hsdp'
    )
  return hsdp(devices, slices)


def all_devices() -> list[jax.Device]:
  """Every device of every host, host by host: so a host's rows of a batch are consecutive."""
  return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def check_batch_size(batch_size: int, num_devices: int, microbatches: int = 1) -> None:
  """Raises an InputError where a batch does not split evenly over the devices and their parts."""
  parts = num_devices * microbatches
  if batch_size % parts:
    below = batch_size - batch_size % parts
    options = [str(size) for size in (below, below + parts) if size]
    each = f' in {microbatches} microbatches each' if microbatches > 1 else ''
    raise InputError(
      f'config.dataset.batch_size: {batch_size} examples cannot be shared equally by '
      f'{num_devices} devices{each}; use {" or ".join(options)}'
    )
