"""What a data set is: two splits of uint8 images, read by the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from ddpm_jax.errors import InputError

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray

_MEMORY = 2**29  # bytes: a split larger than this is decoded anew each time it is read


class Split(Protocol):
  """Random access: `split[rows]` is {'image': uint8 (b, H, W, C), 'label': int32 (b,)}.

  One that knows all labels without reading has them as its attribute `labels`, (N,).
  """

  def __len__(self) -> int: ...

  def __getitem__(self, rows: Rows) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images with values 0 … num_levels-1; without classes every label is 0.

  Attributes:
    name: for people.
    train: what is trained on.
    test: what is held out.
    image_shape: (H, W, C).
    num_levels: of a component, 2 … 256.
    num_classes: labels are 0 … num_classes-1; None without classes.
    classes: those that have a training example, which previews and samples are of; found in the
      labels of `train` where it knows them, else all.

  Raises:
    ValueError: a label is not below num_classes.
  """

  name: str
  train: Split
  test: Split
  image_shape: tuple[int, int, int]
  num_levels: int
  num_classes: int | None
  classes: tuple[int, ...] | None = None

  def __post_init__(self) -> None:
    object.__setattr__(self, 'classes', self._trained())

  def balanced_labels(self, num: int) -> np.ndarray | None:
    """`classes` in turn, int32 (num,); None without classes."""
    return None if self.classes is None else np.resize(np.asarray(self.classes, np.int32), num)

  def _trained(self) -> tuple[int, ...] | None:
    if self.num_classes is None:
      return None
    train, test = (known_labels(split) for split in (self.train, self.test))
    highest = max([*train, *test], default=0)
    if highest >= self.num_classes:
      raise ValueError(f'label: {highest} is not one of the {self.num_classes} classes')
    return tuple(self.classes or train or range(self.num_classes))


class Arrays:
  """A split that is in memory.

  Args:
    image: (N, H, W, C), whole numbers 0 … 255, kept as uint8.
    label: (N,), integers from 0, kept as int32.

  Raises:
    ValueError: they are not, and to keep them would change them.
  """

  def __init__(self, image: np.ndarray, label: np.ndarray):
    pixels, labels = stored(image, np.uint8, 'iuf'), stored(label, np.int32, 'iu')
    if pixels is None or pixels.ndim != 4 or 0 in pixels.shape[1:]:
      raise ValueError('image must be whole numbers 0 … 255 of shape (N, H, W, C)')
    if labels is None or labels.shape != (len(pixels),) or labels.min(initial=0) < 0:
      raise ValueError(
        f'label must be {len(pixels)} integers from 0, the class of each example: '
        'np.unique(label, return_inverse=True)[1] numbers them, zeros stand for no classes'
      )
    self.labels = labels
    self._columns = {'image': pixels, 'label': labels}

  def __len__(self) -> int:
    return len(self.labels)

  def __getitem__(self, rows: Rows) -> Batch:
    return {key: column[rows] for key, column in self._columns.items()}


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
    for key, values in self._decode(missing).items():
      self._kept[key][missing] = values
    self._present[missing] = True
    return {key: column[rows] for key, column in self._kept.items()}

  def _decode(self, rows: np.ndarray) -> Batch:
    batch = self._empty(len(rows))
    for slot, (image, label) in enumerate(self._read(rows)):
      batch['image'][slot], batch['label'][slot] = image, label
    return batch

  def _empty(self, length: int) -> Batch:
    return {
      'image': np.empty((length, *self._shape), np.uint8),
      'label': np.empty(length, np.int32),
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
  """Refuses splits whose first example is not what `Split` says.

  Raises:
    InputError: naming what was found.
  """
  for split in (dataset.train, dataset.test):
    if not len(split):
      continue
    batch = split[:1]
    image, label = (np.asarray(batch[name]) for name in ('image', 'label'))
    if image.dtype != np.uint8 or image.shape != (1, *dataset.image_shape):
      wanted, found = dataset.image_shape, f'{image.dtype} {image.shape[1:]}'
      raise InputError(f'config.dataset: its images must be uint8 {wanted}, not {found}')
    if label.dtype.kind not in 'iu' or label.shape != (1,):
      raise InputError(
        'config.dataset: its labels must be one integer for each example, the number of its class, '
        f'not {label.dtype} {label.shape[1:]}'
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
