"""What a likelihood is to be read beside: two simple models of images, as proper probabilities.

Both give each image of integer levels 0 … L-1 a probability, and these sum to one over all images.
Results are bits/dim, (N,) for N images.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import log_ndtr


def histogram_bits(train: np.ndarray, test: np.ndarray, num_levels: int) -> np.ndarray:
  """Independent pixels: p_d(k) = (count of level k at d in train + 1) / (N + L).

  Args:
    train: integer levels (N, …), to fit.
    test: integer levels (M, …), to rate.
    num_levels: L.
  """
  train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
  counts = np.stack([np.sum(train == level, axis=0) for level in range(num_levels)])
  log2_p = np.log2((counts + 1) / (len(train) + num_levels))
  return -np.take_along_axis(log2_p, test.astype(int), axis=0).mean(axis=1)


def gaussian_bits(train: np.ndarray, test: np.ndarray, num_levels: int) -> np.ndarray:
  """A Gaussian with full covariance, taken pixel by pixel: p(k_d | k_1 … k_{d-1}) is the mass of
  bin k_d under the Gaussian's conditional, the outer bins with the tails.

  With S = C Cᵀ the covariance (Cholesky) and y = C⁻¹ (k - m), the conditional is
  N(k_d - C_dd y_d, C_dd²). S is the sample covariance + 1/12: the variance of a value known only
  to its bin, without which a constant pixel's variance would be zero. Bins are one level wide.

  Args:
    train: integer levels (N, …), to fit.
    test: integer levels (M, …), to rate.
    num_levels: L.
  """
  train = train.reshape(len(train), -1).astype(np.float64)
  test = test.reshape(len(test), -1).astype(np.float64)
  mean = train.mean(axis=0)
  covariance = np.atleast_2d(np.cov(train, rowvar=False)) + np.eye(train.shape[1]) / 12
  factor = np.linalg.cholesky(covariance)
  y = np.linalg.solve(factor, (test - mean).T).T
  scale = np.diag(factor)
  lower = np.where(test == 0, -np.inf, y - 0.5 / scale)
  upper = np.where(test == num_levels - 1, np.inf, y + 0.5 / scale)
  return -log_mass(lower, upper).mean(axis=1) / math.log(2)


def log_mass(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
  """log(Φ(upper) - Φ(lower)), from the tail where Φ keeps its digits."""
  above = lower > 0
  a, b = np.where(above, -upper, lower), np.where(above, -lower, upper)
  return log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b)))
