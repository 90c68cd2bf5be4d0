"""The mean bits per dimension of a data split, with the error of its draws."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.data.dataset import Dataset, Split
from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.batching import even_size, map_batches, replicate
from ddpm_jax.keys import for_purpose
from ddpm_jax.training.task import Measure


class Estimate(NamedTuple):
  """A mean over examples and the standard error of its Monte-Carlo draws.

  The error says how far another set of draws would land on the same examples; it does not say how
  far another set of examples would.
  """

  mean: float
  error: float
  replicates: int


def split_bits(
  measure: Measure,
  params: Any,
  frozen: Any,
  dataset: Dataset,
  split: Split,
  *,
  seed: int,
  batch_size: int,
  tolerance: float = 0.02,
  most: int = 16,
  advance: Callable[[int], Any] = lambda rows: None,
) -> Estimate:
  """The mean bits/dim of a split.

  Independent replicates of the estimate, two at least, are drawn until its standard error is at
  most `tolerance` or there are `most`.

  Args:
    measure: one of a task's.
    params: the task's.
    frozen: what the task reads besides.
    dataset: of the examples.
    split: the examples, a split of it.
    seed: of the draws.
    batch_size: examples at a time, over all devices.
    tolerance: bits/dim.
    most: replicates.
    advance: told how many more examples are done, in each replicate anew.

  Raises:
    Unavailable: the split is empty.
  """
  if not len(split):
    raise Unavailable('there is no held-out image')
  size = even_size(len(split), batch_size)
  key = for_purpose(jax.random.key(seed), 'bound')
  params, frozen, key = replicate((params, frozen, key))
  replicates: list[np.ndarray] = []
  while len(replicates) < most:
    of_replicate = functools.partial(
      measure.bits, params, frozen, jax.random.fold_in(key, len(replicates))
    )
    batches = data.batches(dataset, split, size)
    replicates.append(map_batches(of_replicate, batches, size, advance))
    if len(replicates) >= 2 and estimate(np.stack(replicates)).error <= tolerance:
      break
  return estimate(np.stack(replicates))


def estimate(values: np.ndarray) -> Estimate:
  """The mean of values (R, N) of R >= 2 independent replicates for each of N examples.

  Its standard error is sqrt(Σ_n s_n² / R) / N, with s_n² the variance over example n's replicates.
  """
  replicates, examples = values.shape
  within = values.astype(np.float64).var(axis=0, ddof=1)
  error = math.sqrt(within.sum() / replicates) / examples
  return Estimate(float(values.mean(dtype=np.float64)), error, replicates)
