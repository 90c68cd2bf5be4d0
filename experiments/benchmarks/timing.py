"""Comparing speeds.

They drift with all else that a machine does, so what is compared is run in alternating blocks, and
it is the ratio within each block that counts.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

Time = TypeVar('Time')


class Spread(NamedTuple):
  """The median of some measurements and their quartiles."""

  median: float
  low: float
  high: float


def spread(values: Sequence[float]) -> Spread:
  """Median and quartiles; quartiles between two measurements are interpolated."""
  low, high = np.percentile(values, (25, 75))
  return Spread(statistics.median(values), float(low), float(high))


def shown(spread: Spread, factor: float, form: str) -> tuple[str, str]:
  """Median and quartiles in words."""
  median, low, high = (format(factor * value, form) for value in spread)
  return median, f'{low} to {high}'


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
  """The spread of above[i] / below[i]."""
  return spread([a / b for a, b in zip(above, below, strict=True)])


def alternate(runs: Mapping[str, Callable[[], Time]], blocks: int) -> dict[str, list[Time]]:
  """What each of `runs` returns, `blocks` times over, in turn.

  Every other round goes backward: a steady drift then favors none.
  """
  times: dict[str, list[Time]] = {name: [] for name in runs}
  for block in range(blocks):
    for name in list(runs)[:: -1 if block % 2 else 1]:
      times[name].append(runs[name]())
  return times
