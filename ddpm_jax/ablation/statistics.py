"""What a few seeds say: means with standard errors, and intervals of paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95


class Mean(NamedTuple):
  """A mean over seeds and its standard error, which is nan for one seed."""

  mean: float
  error: float
  count: int


class Difference(NamedTuple):
  """A mean difference and its confidence interval, which is nan for one pair."""

  mean: float
  low: float
  high: float
  count: int

  @property
  def excludes_zero(self) -> bool:
    """Whether the interval lies on one side of zero."""
    return self.low > 0 or self.high < 0


def mean_error(values: Sequence[float]) -> Mean:
  """The mean of n values and s / sqrt(n), with s² = Σ (value - mean)² / (n - 1)."""
  x = np.asarray(values, np.float64)
  if not np.isfinite(x).all() or not x.size:
    return Mean(math.nan, math.nan, x.size)
  error = float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
  return Mean(float(x.mean()), error, x.size)


def paired(values: Sequence[float], baseline: Sequence[float], level: float = LEVEL) -> Difference:
  """The mean of d_s = value_s - baseline_s and mean ± q s_d / sqrt(n).

  q is the quantile (1 + level) / 2 of Student's t with n - 1 degrees of freedom. What is common to
  a seed's runs (its data order, noise and initial parameters) cancels in d_s. Exact where the d_s
  are independent and normal; it corrects for no number of comparisons.

  Reference: Student 1908, https://doi.org/10.1093/biomet/6.1.1.
  """
  mean, error, count = mean_error([a - b for a, b in zip(values, baseline, strict=True)])
  if count < 2:
    return Difference(mean, math.nan, math.nan, count)
  half = float(stats.t.ppf((1 + level) / 2, count - 1)) * error
  return Difference(mean, mean - half, mean + half, count)
