"""What a data set is: two splits of uint8 images, read by the batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]
Rows = slice | np.ndarray

_MEMORY = 2**29  # bytes: a split larger than this is decoded anew each time it is read


class Split(Protocol):
  """Random access: `split[rows]` is {'image': uint8 (b, H, W, C), 'label': int32 (b,)}."""

  def __len__(self) -> int: ...

  def __getitem__(self, rows: Rows) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Images with values 0 … num_levels-1; without classes every label is 0."""

  name: str
  train: Split
  test: Split
  image_shape: tuple[int, int, int]  # height, width, channels
  num_levels: int
  num_classes: int | None


class Arrays:
  """A split that is in memory: image (N, H, W, C), label (N,)."""

  def __init__(self, image: np.ndarray, label: np.ndarray):
    self._columns = {
      'image': image.astype(np.uint8, copy=False),
      'label': label.astype(np.int32, copy=False),
    }

  def __len__(self) -> int:
    return len(self._columns['label'])

  def __getitem__(self, rows: Rows) -> Batch:
    return {key: column[rows] for key, column in self._columns.items()}


class Decoded:
  """A split decoded when first asked for: `read(rows)` gives an (image, label) for each row.

  Where the whole split fits into `memory` bytes, what has been decoded is kept, so that later
  epochs gather from memory.
  """

  def __init__(
    self,
    read: Callable[[np.ndarray], Iterable[tuple[np.ndarray, int]]],
    length: int,
    image_shape: tuple[int, int, int],
    memory: int = _MEMORY,
  ):
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
