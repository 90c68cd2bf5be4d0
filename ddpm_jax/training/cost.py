"""What a run costs: the hours of its chips, at the price that the user gives for one.

cost.json in the run's folder has a row for each start of the run, since what one process knows is
its own time alone. metrics.jsonl stays free of clocks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
from etils import epath

from ddpm_jax.files import whole

FILE = 'cost.json'
EVERY = 60.0  # seconds between writing it: of a killed start at most so many are not counted


class Start(NamedTuple):
  """One start of a run, from its first step to the last that it has told of.

  Attributes:
    from_step: from which it went on.
    to_step: the last that was complete.
    chips: devices of all hosts.
    seconds: from the compiling of its first step on.
    price: of a chip for an hour.
  """

  from_step: int
  to_step: int
  chips: int
  seconds: float
  price: float

  @property
  def chip_hours(self) -> float:
    return self.chips * self.seconds / 3600

  @property
  def money(self) -> float:
    return self.price * self.chip_hours


class Bill:
  """Counts the chip-hours of this start beside those of the starts before it."""

  def __init__(self, workdir: epath.Path, step: int, price: float):
    """Begins to count; raises ValueError or TypeError where cost.json is none that this writes."""
    self._path, self._step, self._price = workdir / FILE, step, price
    self._before = read(self._path)
    self._start: Start | None = None
    self._begun = self._written = time.monotonic()

  def reached(self, step: int) -> None:
    """Counts up to a step that is complete now; writes it every minute."""
    now = time.monotonic()
    self._start = Start(self._step, step, jax.device_count(), now - self._begun, self._price)
    if now - self._written >= EVERY:
      self._write()

  def _write(self) -> None:
    rows = [start._asdict() for start in (*self._before, self._start) if start]
    with whole(self._path) as part:
      part.write_text(json.dumps(rows, indent=2) + '\n')
    self._written = time.monotonic()

  def close(self) -> None:
    """Counts what came after the last step too, as previews, and writes it."""
    if self._start:
      self.reached(self._start.to_step)
      self._write()

  def lines(self) -> Iterator[str]:
    """What this start has cost, and all of them; nothing of one that has got nowhere."""
    if not self._start:
      return
    price = f'{amount(self._price)} per chip-hour'
    yield f'cost of this start: {told([self._start])}, at {price}'
    if self._before:
      starts = [*self._before, self._start]
      yield (
        f'cost of all {len(starts)} starts: {told(starts)}; steps that a killed start lost are '
        'counted twice, and its last minute may be missing'
      )


def read(path: epath.Path) -> list[Start]:
  """The starts in a cost.json; none where there is no such file."""
  return [Start(**row) for row in json.loads(path.read_text())] if path.exists() else []


def told(starts: list[Start]) -> str:
  """'2.00 chip-hours, 3.00 in money, 0.50 for every 1,000 steps' that the starts have gained."""
  money = sum(start.money for start in starts)
  steps = starts[-1].to_step - starts[0].from_step
  hours = f'{amount(sum(start.chip_hours for start in starts))} chip-hours'
  return f'{hours}, {amount(money)} in money, {amount(1000 * money / steps)} for every 1,000 steps'


def amount(number: float) -> str:
  """Two decimals, or below one two digits that count."""
  return f'{number:,.2f}' if number >= 1 else f'{number:#.2g}'
