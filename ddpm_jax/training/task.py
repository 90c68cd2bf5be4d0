"""What a loop trains: a task, which is a tuple of functions. The loop knows no more of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import xxhash
from jax import Array

from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys
from ddpm_jax.losses import LossOutput
from ddpm_jax.training import hosts

Params = Any
Pytree = Any
Batch = dict[str, Any]  # 'x' (B, …) as stored, 'cond' and 'index' (B,)


class Frozen(NamedTuple):
  """What a step reads and does not train, such as a teacher or an encoder.

  It is not averaged and not in a checkpoint: whoever goes on with the run loads it again.

  Attributes:
    source: where it comes from, as the run's record names it.
    load: () -> its arrays, on the host.
    together: whether hosts that load it ask each other while they do.
  """

  source: str
  load: Callable[[], Pytree]
  together: bool = False


class NoMeasure(InputError):
  """There are no bits/dim of what a task trains; the message says why."""


def no_bits(*args: Any) -> Any:
  """The ways of measuring bits/dim of a task that has none."""
  del args
  raise NoMeasure('config.task.name: the task measures no bits/dim of what it trains')


class Use(NamedTuple):
  """How trained parameters are used, by the commands that sample and evaluate.

  Attributes:
    generate: (params, frozen, cond, keys, **options) -> samples (B, *codec.shape). Sample i depends
      on keys[i] and its condition alone. Options are those of the task.
    bind: of the host, params -> the use with what params have learned that a compiled program has
      to know beforehand, such as a schedule's times; None where that is nothing.
    evaluations: (picture=None) -> how often the network is evaluated for each sample; None where
      the samples themselves decide.
    describe: () -> how samples are drawn, in words.
    bits: (names=None, variance=None, exact=False) -> the ways of measuring bits/dim, name ->
      `Measure`.
    denoiser: (params, cond, schedule=None) -> the network as a denoiser; None where it is none, and
      samples have no path.
    reconstruct: (params, frozen, x as stored, cond) -> what comes of it through a code, (B,
      *codec.shape); None where there is no code.
  """

  generate: Callable[..., Any]
  bind: Callable[[Params], Use] | None = None
  evaluations: Callable[..., int | None] = lambda picture=None: 1
  describe: Callable[[], str] = lambda: "the task's own way"
  bits: Callable[..., dict[str, Measure]] = no_bits
  denoiser: Callable[..., Any] | None = None
  reconstruct: Callable[..., Array] | None = None


class Measure(NamedTuple):
  """A way of measuring bits per dimension.

  Attributes:
    bits: (params, frozen, key, batch) -> (B,), for a batch {'x', 'cond', 'index'}; compiled.
    how: in words.
  """

  bits: Callable[[Params, Pytree, Array, Batch], Array]
  how: str


class Task(NamedTuple):
  """What is trained, and how. What is not said to be of the host is pure.

  Attributes:
    init: (given) -> (params, loss_state) before the first step; `given`, unless it is None, has
      the first values of some branches of params.
    loss: (params, loss_state, frozen, batch, keys, gather) -> LossOutput. What the optimizer sees
      is the gradient of the mean of its values, of all branches of params at once. `gather` turns
      a device's values for its examples into those of the whole batch.
    optimizer: for all params. One for each branch is an `optax.partition`.
    learning_rate: step -> the number that metrics show; None where there is none.
    frozen: name -> what the step reads and does not train; `loss` gets the arrays by that name.
    heldout: of the host, (params, frozen) -> scalars of held-out examples by name; None for none.
    preview: of the host, (params, frozen) -> samples as pictures, uint8 (N, H, W, C), of the same
      noise each time; None for none.
    use: what trained parameters are good for; None where nothing draws or measures by them.
  """

  init: Callable[[Mapping[str, Any] | None], tuple[Params, Pytree]]
  loss: Callable[[Params, Pytree, Pytree, Batch, Keys, Callable[[Array], Array]], LossOutput]
  optimizer: optax.GradientTransformation
  learning_rate: Callable[[int], Any] | None = None
  frozen: Mapping[str, Frozen] = MappingProxyType({})
  heldout: Callable[[Params, Pytree], dict[str, float]] | None = None
  preview: Callable[[Params, Pytree], np.ndarray] | None = None
  use: Use | None = None


def load_frozen(task: Task) -> dict[str, Pytree]:
  """The arrays of everything that is frozen, by name."""
  return {name: load(part) for name, part in task.frozen.items()}


def load(part: Frozen) -> Pytree:
  """The arrays of one part; no host goes on where one cannot read them."""
  with contextlib.nullcontext() if part.together else hosts.together():
    return part.load()


def frozen_record(task: Task, frozen: Mapping[str, Pytree]) -> dict[str, dict[str, str]]:
  """Where each frozen part that has arrays comes from, and the hash of its arrays."""
  return {
    name: {'source': task.frozen[name].source, 'xxh128': digest(tree)}
    for name, tree in frozen.items()
    if jax.tree.leaves(tree)
  }


def refuse_changed(before: Any, now: Mapping[str, Mapping[str, str]]) -> None:
  """Refuses to go on, or to draw, with other frozen arrays than a run was trained with.

  Args:
    before: a record's `frozen_record`; those of format 1 have none.
    now: the `frozen_record` of today.

  Raises:
    InputError: a part has other arrays now, or the record does not know it.
  """
  if not isinstance(before, Mapping):
    return
  for name, part in now.items():
    known = before.get(name)
    if not isinstance(known, Mapping) or known.get('xxh128') != part['xxh128']:
      raise InputError(
        f'{part["source"]}: the {name} that the run was trained with has changed since; restore '
        'it, or give another --workdir'
      )


def digest(tree: Pytree) -> str:
  """The hash of all arrays of a tree with their names, types and shapes."""
  found = xxhash.xxh128()
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    values = np.asarray(leaf)
    found.update(f'{jax.tree_util.keystr(path)} {values.dtype} {values.shape}'.encode())
    found.update(np.ascontiguousarray(values).tobytes())
  return found.hexdigest()
