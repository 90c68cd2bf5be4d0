"""Draws of a Gaussian mixture in the plane, whose exact denoiser is known: a testing ground."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval
from scipy.special import ndtri

from ddpm_jax.data.dataset import Arrays, Dataset, labeled

# In [-1, 1], five deviations inside. Levels are 2 / 255 apart, an eighth of the least deviation.
WEIGHTS = np.array([0.4, 0.3, 0.2, 0.1])
MEANS = np.array([[-0.4, -0.35], [0.4, -0.3], [0.05, 0.4], [-0.5, 0.45]])
COVARIANCES = np.array(
  [
    [[0.012, 0.006], [0.006, 0.008]],
    [[0.004, -0.002], [-0.002, 0.012]],
    [[0.014, 0.0], [0.0, 0.004]],
    [[0.005, 0.0], [0.0, 0.005]],
  ]
)

Count = Annotated[int, Interval(ge=2, le=10**7)]


def mixture(num_train: Count = 50_000, num_test: Count = 5_000) -> Dataset:
  """Four Gaussians: examples of 1x2 pixels with 256 levels, whose label is the component.

  The same draws whenever it is asked. `evaluation.exact_mixture` is its denoiser in closed form.

  Args:
    num_train: training examples.
    num_test: held-out examples.
  """
  train, test = (draws(count, stream) for stream, count in enumerate((num_train, num_test)))
  return Dataset('mixture', train, test, (1, 2, 1), 256, labeled(len(WEIGHTS), train, test))


def draws(count: int, stream: int) -> Arrays:
  """Examples (count, 1, 2, 1); streams are independent of each other."""
  # NumPy promises a bit generator's raw output for ever, that of its distributions it does not.
  words = np.random.Philox(key=(0, stream)).random_raw(3 * count).reshape(count, 3)
  uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
  label = np.searchsorted(np.cumsum(WEIGHTS)[:-1], uniform[:, 0])
  roots = np.linalg.cholesky(COVARIANCES)[label]
  x = MEANS[label] + np.einsum('nij,nj->ni', roots, ndtri(uniform[:, 1:]))
  levels = np.clip(np.round((x + 1) / 2 * 255), 0, 255)
  return Arrays(levels.astype(np.uint8).reshape(count, 1, 2, 1), {'label': label})
