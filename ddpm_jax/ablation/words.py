"""Numbers as they are shown: as many digits as their error leaves them."""

from __future__ import annotations

import math

from ddpm_jax.ablation.statistics import Difference, Mean

NONE = '–'


def decimals(value: float, error: float) -> int:
  """Decimal places that show two digits of the error, or four of the value where there is none."""
  known = math.isfinite(error) and error > 0
  size, digits = (error, 2) if known else (abs(value), 4)
  usable = math.isfinite(size) and size > 0
  return max(0, digits - 1 - math.floor(math.log10(size))) if usable else digits


def number(value: float, places: int) -> str:
  """A number with so many decimal places and a real minus sign."""
  if not math.isfinite(value):
    return '∞' if value == math.inf else NONE
  rounded = round(value, places) or 0.0  # and not -0.0
  return f'{rounded:.{places}f}'.replace('-', '−')


def show_mean(mean: Mean) -> str:
  """'3.258 ± 0.012', without an error for one seed."""
  places = decimals(mean.mean, mean.error)
  if not math.isfinite(mean.error):
    return number(mean.mean, places)
  return f'{number(mean.mean, places)} ± {number(mean.error, places)}'


def show_interval(found: Difference) -> tuple[str, str]:
  """('−0.12', '[−0.20, −0.04]'); the second is empty for one seed."""
  half = (found.high - found.low) / 2
  places = decimals(found.mean, half)
  mean = number(found.mean, places)
  signed = mean if mean[0] == '−' or not math.isfinite(found.mean) else f'+{mean}'
  if not math.isfinite(half):
    return signed, ''
  return signed, f'[{number(found.low, places)}, {number(found.high, places)}]'
