"""The stream of training batches: shuffled, endless, the same for any number of processes.

Position i of the stream is example order(i mod N) of epoch i div N, in an order that is a
function of (seed, epoch) alone. Batch k of global size B is positions k B … k B + B - 1.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Mapping

import grain
import numpy as np

from ddpm_jax.data.dataset import Batch, Dataset, Split
from ddpm_jax.errors import InputError


def train_iterator(
  dataset: Dataset,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """This process's rows of every global batch, without end.

  Args:
    dataset: its split `train` is read, in threads, ahead of use.
    batch_size: of the global batch, over all processes.
    seed: of the order, at least 0.
    process_index: this process's number p; with b = batch_size / process_count, it gets rows
      p b … p b + b - 1 of each global batch.
    process_count: the number of processes.

  Returns:
    An iterator of {'x': uint8 (b, H, W, C), 'cond': {name: (b, …)}, 'index': int64 (b,)},
    where `index` is the position in the stream. Its state, get_state() and set_state(state), is
    {'next_index': the number of batches taken}: JSON, the same in every process and for any
    number of them. Orbax saves it through grain.checkpoint.CheckpointSave.

  Raises:
    InputError: the batch cannot be divided among the processes; on reading, a class is none.
  """
  if batch_size % process_count:
    raise InputError(
      f'config.dataset.batch_size: {batch_size} cannot be divided among {process_count} '
      f'processes; the next that can is {-(-batch_size // process_count) * process_count}'
    )
  rows = batch_size // process_count
  order = _order(len(dataset.train), seed)

  # A whole batch is one element: a gather from memory beats `rows` Python calls a hundredfold.
  def batch(step: int) -> Batch:
    index = step * batch_size + process_index * rows + np.arange(rows)
    examples = dataset.read(dataset.train, order(index))
    check_classes(dataset, examples['cond'])
    return {**examples, 'index': index}

  threads = min(8, os.cpu_count() or 1)
  ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
  endless = sys.maxsize // batch_size  # positions stay within int64
  return iter(grain.MapDataset.range(endless).map(batch).to_iter_dataset(ahead))


def check_classes(dataset: Dataset, cond: Mapping[str, np.ndarray]) -> None:
  """Raises InputError for a value that is none of its classes; the network would clamp it."""
  for name, field in dataset.cond.items():
    values = cond[name]
    if field.num_classes is None or (values.min() >= 0 and values.max() < field.num_classes):
      continue
    wrong = values.min() if values.min() < 0 else values.max()
    raise InputError(
      f'config.dataset: an example has the {name} {wrong}, which is not one of the '
      f'{field.num_classes} classes'
    )


def batches(dataset: Dataset, split: Split, batch_size: int) -> Iterator[Batch]:
  """A split once, in order, with `index` the row in it; the last batch may be shorter."""
  for start in range(0, len(split), batch_size):
    index = np.arange(start, min(start + batch_size, len(split)))
    yield {**dataset.read(split, index), 'index': index}


def _order(length: int, seed: int):
  """order(index) -> rows: the example at each position of the stream."""

  # NumPy promises the raw output of a bit generator for ever, that of `permutation` it does not:
  # a run resumes in the same order under any version.
  @functools.lru_cache(maxsize=2)
  def permutation(epoch: int) -> np.ndarray:
    return np.argsort(np.random.Philox(key=(seed, epoch)).random_raw(length), kind='stable')

  def order(index: np.ndarray) -> np.ndarray:
    epochs, rows = np.divmod(index, length)
    result = np.empty_like(rows)
    for epoch in range(epochs[0], epochs[-1] + 1):
      here = epochs == epoch
      result[here] = permutation(epoch)[rows[here]]
    return result

  return order
