"""Figures that can be had, and why others cannot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Figures = dict[str, Any]
LEFT_OUT = 'left_out'


class Unavailable(ValueError):
  """A figure cannot be had from these images; the message says why."""


def merge(*parts: Figures) -> Figures:
  """All the figures of several parts, and the reasons for those left out."""
  found = {name: value for part in parts for name, value in part.items() if name != LEFT_OUT}
  reasons = {name: why for part in parts for name, why in part.get(LEFT_OUT, {}).items()}
  return found | ({LEFT_OUT: reasons} if reasons else {})


def collect(makers: Mapping[str, Callable[[], Any]]) -> Figures:
  """What each maker returns; None for a figure that cannot be had or is not finite.

  Under the key LEFT_OUT, where there are any, is the reason for each of those.
  """
  found: Figures = {}
  reasons: dict[str, str] = {}
  for name, make in makers.items():
    try:
      found[name] = make()
    except Unavailable as error:
      found[name], reasons[name] = None, str(error)
    if isinstance(found[name], float) and not math.isfinite(found[name]):
      reasons[name] = 'infinite' if math.isinf(found[name]) else 'not a number'
      found[name] = None
  return found | ({LEFT_OUT: reasons} if reasons else {})
