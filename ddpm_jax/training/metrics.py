"""What a run tells: metrics.jsonl, TensorBoard and a line on the screen.

metrics.jsonl holds nothing that depends on the clock, so a run that was interrupted and resumed
ends with the same file, byte for byte, as one that was not.
"""

from __future__ import annotations

import collections
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

from ddpm_jax import logs
from ddpm_jax.files import whole

Scalars = dict[str, float]
Metrics = Mapping[str, jax.Array]


class Window:
  """Collects the metrics of steps, each fetched only when `ahead` later calls are under way.

  So the device always has work queued, and the host never runs further ahead than that: memory
  stays bounded and a signal is heard within `ahead` calls.

  Attributes:
    skipped: the number of steps in a row, up to the last complete one, that were not finite.
  """

  def __init__(self, record: dict[str, Any] | None = None, ahead: int = 2):
    self._ahead = ahead
    self._pending: collections.deque[tuple[int, Metrics]] = collections.deque()
    record = record or {}
    self._count: int = record.get('count', 0)
    self._sums: Scalars = dict(record.get('sums', {}))
    self._missed: int = record.get('missed', 0)
    self.skipped: int = record.get('skipped', 0)

  def add(self, step: int, metrics: Metrics) -> Iterator[int]:
    """Takes in the metrics of a step, () each, or of some steps up to this one, (K,) each.

    Yields each step that is now complete, in order.
    """
    self._pending.append((step, metrics))
    while len(self._pending) > self._ahead:
      yield from self._fetch()

  def flush(self) -> Iterator[int]:
    """Waits for every step that is under way, and yields it."""
    while self._pending:
      yield from self._fetch()

  def _fetch(self) -> Iterator[int]:
    last, metrics = self._pending.popleft()
    rows = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
    count = len(rows['loss'])
    for row in range(count):
      self._take({name: float(values[row]) for name, values in rows.items()})
      yield last - count + row + 1

  def _take(self, values: Scalars) -> None:
    if values.pop('skipped', 0.0):
      self._missed, self.skipped = self._missed + 1, self.skipped + 1
      return
    self._count, self.skipped = self._count + 1, 0
    for name, value in values.items():
      self._sums[name] = self._sums.get(name, 0.0) + value

  def mean(self) -> Scalars:
    """Each metric's mean over the complete steps since the last call, and how many were skipped.

    Those are not in the means; where there were no others, there are none.
    """
    mean = {name: total / self._count for name, total in self._sums.items()}
    mean['skipped'] = self._missed
    self._count, self._missed, self._sums = 0, 0, {}
    return mean

  def record(self) -> dict[str, Any]:
    """What a checkpoint keeps of it, as JSON, once it is flushed."""
    return {
      'count': self._count,
      'sums': dict(self._sums),
      'missed': self._missed,
      'skipped': self.skipped,
    }


class MetricWriter:
  """Writes scalars to metrics.jsonl, one line a call."""

  def __init__(self, folder: epath.Path, step: int = 0):
    """Goes on from `step` in the file on a disk; what was written after that is dropped."""
    self._path = folder / 'metrics.jsonl'
    cut(self._path, step)

  def write(self, step: int, scalars: Scalars) -> None:
    with self._path.open('a') as lines:  # a mounted bucket has the line once it is closed
      lines.write(json.dumps({'step': step, **scalars}) + '\n')


class Board:
  """TensorBoard's files, whose one purpose is to be looked at."""

  def __init__(self, folder: epath.Path, step: int = 0):
    """Opens a file, on a disk, of a run that goes on from `step`."""
    import tensorboardX  # Here and not above: it imports PyTorch, where that is installed.

    self._writer = tensorboardX.SummaryWriter(str(folder), purge_step=step + 1 if step else None)

  def curves(self, step: int, scalars: Scalars) -> None:
    self._check()
    for name, value in scalars.items():
      self._writer.add_scalar(name, value, step)

  def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
    """Shows a picture (H, W, C) of uint8."""
    self._check()
    self._writer.add_image(name, pixels, step, dataformats='HWC')

  def flush(self) -> None:
    self._check()
    self._writer.flush()

  def close(self) -> None:
    self._check()
    self._writer.close()

  def _check(self) -> None:
    """Raises OSError where the thread that writes has died: its queue fills, and then blocks."""
    writer = self._writer.file_writer
    if writer is None or not writer.event_writer._worker.is_alive():
      raise OSError('the thread that writes its file has died')


def read(path: epath.Path) -> list[dict[str, float]]:
  """The lines of a metrics.jsonl; one cut short by a kill is left out.

  So is any other that cannot be read, which is named in a warning.
  """
  *lines, last = path.read_bytes().split(b'\n') if path.exists() else [b'']
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(row_of(line))
    except (ValueError, RecursionError) as error:
      logging.warning('%s, line %d: cannot be read (%s); it is left out', path, number, error)
  with contextlib.suppress(ValueError, RecursionError):
    rows.append(row_of(last))  # without its newline: whole only by chance
  return rows


def row_of(line: bytes) -> dict[str, float]:
  """A line of metrics.jsonl; raises ValueError where it is none."""
  row = json.loads(line.decode())
  if not (isinstance(row, dict) and type(row.get('step')) is int):
    raise ValueError('it has no step')
  if wrong := [name for name, value in row.items() if not isinstance(value, (int, float))]:
    raise ValueError(f'{wrong[0]} is not a number')
  return row


def cut(path: epath.Path, step: int) -> None:
  """Drops what was written after `step`."""
  if not path.exists():
    return
  lines = [json.dumps(row) + '\n' for row in read(path) if row['step'] <= step]
  with whole(path) as part:
    part.write_text(''.join(lines))


class Display:
  """Step, loss, images/s and time left: a bar on a terminal; elsewhere, and in the log, lines."""

  def __init__(self, step: int, num_steps: int, batch_size: int, seconds: float = 10.0):
    self._batch_size = batch_size
    self._num_steps = num_steps
    self._seconds = seconds
    self._step = step
    self._time = self._said = time.monotonic()
    self._first: tuple[int, float] | None = None
    self._bar = _bar() if sys.stdout.isatty() else None
    if self._bar:
      self._task = self._bar.add_task('', total=num_steps, completed=step, loss='', rate='')
      self._bar.start()

  def update(self, step: int, loss: float | None) -> float:
    """Shows where the run is; returns images/s since the last call. None: all steps skipped."""
    loss = math.nan if loss is None else loss
    now = time.monotonic()
    rate = (step - self._step) * self._batch_size / max(now - self._time, 1e-9)
    self._step, self._time = step, now
    self._first = self._first or (step, now)
    if self._bar:
      told = {'loss': f'loss {loss:.4f}', 'rate': f'{rate:,.0f} images/s'}
      self._bar.update(self._task, completed=step, **told)
    if now - self._said >= self._seconds or step == self._num_steps:
      self._said = now
      told = f'step {step}/{self._num_steps}  loss {loss:.4f}  {rate:,.0f} images/s'
      (logs.note if self._bar else logs.say)(told + self._left())
    return rate

  def _left(self) -> str:
    """The time left at the pace since the first update, which waited for the compiler."""
    step, start = self._first or (self._step, self._time)
    if self._step == step:
      return ''
    seconds = (self._num_steps - self._step) * (self._time - start) / (self._step - step)
    return f'  {seconds:.0f} s left'

  def close(self) -> None:
    if self._bar:
      self._bar.stop()


def _bar() -> Progress:
  return Progress(
    TextColumn('step'),
    MofNCompleteColumn(),
    BarColumn(),
    TextColumn('{task.fields[loss]}'),
    TextColumn('{task.fields[rate]}'),
    TimeRemainingColumn(),
  )
