"""What a data set is: two splits of uint8 images with their conditions, read by the batch."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from ddpm_jax.condition import Field, Spec, from_record, labels, to_record
from ddpm_jax.errors import InputError

Batch = dict[str, Any]
Rows = slice | np.ndarray

# What a batch was made of in earlier versions, and where that is now.
EARLIER = {'image': "batch['x']", 'label': "batch['cond']['label']"}

_MEMORY = 2**29  # bytes: a split larger than this is decoded anew each time it is read


class Split(Protocol):
  """Random access: `split[rows]` is {'x': uint8 (b, H, W, C), 'cond': {name: (b, …)}}.

  The entries of 'cond' are those of the data set's specification; more are left out when they are
  read. A split that knows all labels without reading has them as its attribute `labels`, (N,).
  """

  def __len__(self) -> int: ...

  def __getitem__(self, rows: Rows) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images with values 0 … num_levels-1, each with what is known of it.

  Attributes:
    name: for people.
    train: what is trained on.
    test: what is held out.
    image_shape: (H, W, C).
    num_levels: of a component, 2 … 256.
    cond: the specification of the condition, name -> `Field`; {} for images alone.
  """

  name: str
  train: Split
  test: Split
  image_shape: tuple[int, int, int]
  num_levels: int
  cond: Spec = dataclasses.field(default_factory=dict)

  def read(self, split: Split, rows: Rows) -> Batch:
    """Examples of a split, with the specified entries of their condition alone."""
    batch = split[rows]
    return {'x': batch['x'], 'cond': typed(self.cond, batch['cond'])}

  def some_cond(self, num: int) -> dict[str, np.ndarray]:
    """The condition of `num` samples: classes in turn, or else those of held-out examples in turn.

    Raises:
      InputError: the entries are no classes and there are no examples to take them from.
    """
    if all(field.classes is not None for field in self.cond.values()):
      return {
        name: np.resize(np.asarray(field.classes, field.dtype), num)
        for name, field in self.cond.items()
      }
    split = self.test if len(self.test) else self.train
    if not len(split):
      raise InputError(
        f'cond: samples take {", ".join(self.cond)} from examples of the data set, which is not '
        'open here; give the values yourself'
      )
    return self.read(split, np.arange(num) % len(split))['cond']


def typed(spec: Spec, cond: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The specified entries of a condition, in the types of their fields."""
  return {
    name: np.asarray(cond[name]).astype(field.dtype, casting='same_kind', copy=False)
    for name, field in spec.items()
  }


def labeled(num_classes: int, train: Split, test: Split) -> dict[str, Field]:
  """The specification of a data set with class labels.

  Its trained classes are those of the labels in `train`, where the split knows them, or else all.

  Raises:
    ValueError: a label is not below num_classes.
  """
  trained, held = (known_labels(split) for split in (train, test))
  highest = max([*trained, *held], default=0)
  if highest >= num_classes:
    raise ValueError(f'label: {highest} is not one of the {num_classes} classes')
  return labels(num_classes, tuple(trained) or None)


class Arrays:
  """A split that is in memory.

  Args:
    x: images (N, H, W, C), whole numbers 0 … 255, kept as uint8.
    cond: the entries of the condition by name, each (N, …); 'label' are integers from 0.

  Raises:
    ValueError: they are not, and to keep them would change them.
  """

  def __init__(self, x: np.ndarray, cond: Mapping[str, np.ndarray] | None = None):
    pixels = stored(x, np.uint8, 'iuf')
    if pixels is None or pixels.ndim != 4 or 0 in pixels.shape[1:]:
      raise ValueError('x must be whole numbers 0 … 255 of shape (N, H, W, C)')
    self._x = pixels
    self._cond = {name: entry(name, values, len(pixels)) for name, values in (cond or {}).items()}
    self.labels = self._cond.get('label')

  def __len__(self) -> int:
    return len(self._x)

  def __getitem__(self, rows: Rows) -> Batch:
    return {'x': self._x[rows], 'cond': {name: column[rows] for name, column in self._cond.items()}}


def entry(name: str, values: np.ndarray, count: int) -> np.ndarray:
  """One entry of the condition of `count` examples; raises ValueError where it is none."""
  if name != 'label':
    found = np.asarray(values)
    if found.shape[:1] != (count,):
      raise ValueError(f'{name} must be one value for each of the {count} examples')
    return found
  found = stored(values, np.int32, 'iu')
  if found is None or found.shape != (count,) or found.min(initial=0) < 0:
    raise ValueError(
      f'label must be {count} integers from 0, the class of each example: '
      'np.unique(label, return_inverse=True)[1] numbers them; leave it out where there are none'
    )
  return found


class Decoded:
  """A split decoded when first asked for: `read(rows)` gives an (image, label) for each row.

  Where the whole split fits into `memory` bytes, what has been decoded is kept, so that later
  epochs gather from memory. `labels` are all labels, where they are known without reading.
  """

  def __init__(
    self,
    read: Callable[[np.ndarray], Iterable[tuple[np.ndarray, int]]],
    length: int,
    image_shape: tuple[int, int, int],
    memory: int = _MEMORY,
    labels: np.ndarray | None = None,
  ):
    self.labels = labels
    self._read = read
    self._rows = np.arange(length)
    self._shape = image_shape
    keep = length * math.prod(image_shape) <= memory
    self._kept = self._empty(length) if keep else None
    self._present = np.zeros(length, bool)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, rows: Rows) -> Batch:
    rows = self._rows[rows]
    if self._kept is None:
      return self._decode(rows)
    # Two threads may decode the same example; both then write the same bytes.
    missing = rows[~self._present[rows]]
    columns = map(jax.tree.leaves, (self._kept, self._decode(missing)))
    for kept, values in zip(*columns, strict=True):
      kept[missing] = values
    self._present[missing] = True
    return jax.tree.map(lambda column: column[rows], self._kept)

  def _decode(self, rows: np.ndarray) -> Batch:
    batch = self._empty(len(rows))
    for slot, (image, label) in enumerate(self._read(rows)):
      batch['x'][slot], batch['cond']['label'][slot] = image, label
    return batch

  def _empty(self, length: int) -> Batch:
    return {
      'x': np.empty((length, *self._shape), np.uint8),
      'cond': {'label': np.empty(length, np.int32)},
    }


def held_out(label: np.ndarray, every: int) -> np.ndarray:
  """Marks a fixed 1/every of the examples: each `every`-th in the order of their labels.

  No class's share is off by more than one example, and nothing is drawn at random: the same
  examples are held out wherever, and with whatever seed, a run is made.
  """
  marked = np.zeros(len(label), bool)
  marked[np.argsort(label, kind='stable')[::every]] = True
  return marked


def check_examples(dataset: Dataset) -> None:
  """Refuses splits whose first example is not what `Split` and the specification say.

  Raises:
    InputError: naming what was found.
  """
  try:
    from_record(json.loads(json.dumps(to_record(dataset.cond))))
  except (TypeError, ValueError) as error:
    raise InputError(f'config.dataset: its specification cannot be recorded ({error})') from error
  for split in (dataset.train, dataset.test):
    if not len(split):
      continue
    batch = split[:1]
    image = np.asarray(batch['x'])
    if image.dtype != np.uint8 or image.shape != (1, *dataset.image_shape):
      wanted, found = dataset.image_shape, f'{image.dtype} {image.shape[1:]}'
      raise InputError(f'config.dataset: its images must be uint8 {wanted}, not {found}')
    for name, field in dataset.cond.items():
      check_entry(name, field, batch['cond'])


def check_entry(name: str, field: Field, cond: Mapping[str, Any]) -> None:
  """Raises InputError where one entry of an example's condition is not as its field says."""
  if name not in cond:
    raise InputError(
      f"config.dataset: its examples have no '{name}' in their condition, only {', '.join(cond)}"
    )
  value = np.asarray(cond[name])
  if field.num_classes is not None and (value.dtype.kind not in 'iu' or value.shape != (1,)):
    raise InputError(
      f'config.dataset: its {name} must be one integer for each example, the number of its class, '
      f'not {value.dtype} {value.shape[1:]}'
    )
  same_kind = np.can_cast(value.dtype, field.dtype, 'same_kind')
  if value.shape != (1, *field.shape) or not same_kind:
    raise InputError(
      f'config.dataset: its {name} must be {field.dtype} {field.shape}, not {value.dtype} '
      f'{value.shape[1:]}'
    )


def known_labels(split: Split) -> list[int]:
  """The labels in a split, each once, rising; none where it would have to be read for them."""
  labels = getattr(split, 'labels', None)
  return [] if labels is None else np.unique(labels).tolist()


def stored(values: Any, dtype: Any, kinds: str) -> np.ndarray | None:
  """The numbers, of NumPy's `kinds`, in another type where that changes none of them; else None."""
  values = np.asarray(values)
  if values.dtype == dtype:
    return values
  if values.size and values.dtype.kind not in kinds:
    return None
  with np.errstate(invalid='ignore'):  # NaN is no integer, and is found to differ
    found = values.astype(dtype)
  return found if np.array_equal(found, values) else None
