"""What a likelihood is to be read beside: two simple models of images, as proper probabilities.

Both give each image of integer levels 0 … L-1 a probability, and these sum to one over all images.
Results are bits/dim, (N,) for N images.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import solve_triangular
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


FEWEST = 10  # images to fit a Gaussian to: of fewer the covariance says next to nothing
BLOCK = 256  # pixels at a time


class Gaussian(NamedTuple):
  """N(mean, W Wᵀ + diag(noise)), of D pixels.

  Attributes:
    mean: (D,), in levels.
    loadings: W, (D, R).
    noise: variances (D,), in squares of levels.
  """

  mean: np.ndarray
  loadings: np.ndarray
  noise: np.ndarray


def gaussian_bits(train: np.ndarray, test: np.ndarray, num_levels: int) -> np.ndarray:
  """A Gaussian, taken pixel by pixel: p(k_d | k_1 … k_{d-1}) is the mass of bin k_d under the
  Gaussian's conditional, the outer bins with the tails. Bins are one level wide.

  It is a `shrunk_gaussian`, with or without the variance of an image of uniform levels, whichever
  does better where half of the training images is fitted and the other half rated. Where neither
  beats uniform levels there, or there are fewer than FEWEST images, the law is uniform: log2(L)
  bits/dim.

  Args:
    train: integer levels (N, …), to fit.
    test: integer levels (M, …), to rate.
    num_levels: L.
  """
  train, test = (x.reshape(len(x), -1).astype(np.float64) for x in (train, test))
  halves = train[::2], train[1::2]

  def tried(extra: float) -> float:
    """The bits/dim of each half under what is fitted to the other."""
    folds = ((halves[0], halves[1]), (halves[1], halves[0]))
    laws = ((shrunk_gaussian(fitted, extra), rated[:500]) for fitted, rated in folds)
    return float(np.mean([conditional_bits(*each, num_levels).mean() for each in laws]))

  uniform = math.log2(num_levels)
  extras = (0.0, (num_levels**2 - 1) / 12) if len(train) >= FEWEST else ()
  bits, extra = min(((tried(extra), extra) for extra in extras), default=(math.inf, 0.0))
  if bits >= uniform:
    return np.full(len(test), uniform)
  return conditional_bits(shrunk_gaussian(train, extra), test, num_levels)


def shrunk_gaussian(train: np.ndarray, extra: float = 0.0) -> Gaussian:
  """N(m, (N ((1 - ρ) S + ρ diag S) + extra I) / (N + 1) + I / 12), with m and S the mean and the
  covariance of N images; without the part with N + 1 where `extra` is 0.

  ρ = Σ_ij Var(S_ij) / Σ_ij S_ij² over i ≠ j leaves the shrunk covariance the least squared error.
  So the law is a proper one of more pixels than images, too. `extra` is the variance of a further
  image. 1/12 is that of a value known only to its bin: else a constant pixel's would be zero.

  Reference: Schäfer and Strimmer 2005, https://doi.org/10.2202/1544-6115.1175, table 2, target D.

  Args:
    train: levels (N, D).
    extra: in squares of levels.
  """
  count, mean = len(train), train.mean(axis=0)
  x = train - mean
  powers = x**2
  variances = powers.mean(axis=0)
  products = np.sum(powers.sum(axis=1) ** 2) - np.sum(powers**2)  # Σ_n Σ_ij (x_ni x_nj)², i ≠ j
  if count > x.shape[1]:
    x = np.linalg.qr(x, mode='r')  # xᵀx alone matters from here
  x /= math.sqrt(count)
  squares = np.sum((x @ x.T) ** 2) - np.sum(variances**2)  # Σ_ij S_ij²
  uncertain = (products / count - squares) / count  # Σ_ij Var(S_ij)
  shrinkage = min(1.0, max(0.0, uncertain / squares)) if squares > 0 else 1.0
  share = count / (count + 1) if extra else 1.0
  noise = share * shrinkage * variances + (1 - share) * extra + 1 / 12
  return Gaussian(mean, math.sqrt(share * (1 - shrinkage)) * x.T, noise)


def conditional_bits(law: Gaussian, test: np.ndarray, num_levels: int) -> np.ndarray:
  """The bits/dim of levels (M, D), pixel by pixel: (M,).

  A pixel is mean + W z + noise with z ~ N(0, I). Blocks of pixels come one after another, each with
  N(center, spread) of z given those before. In a block, whose covariance is C Cᵀ (Cholesky), the
  conditional of pixel d is N(k_d - C_dd y_d, C_dd²), where y = C⁻¹ (k - its mean).
  """
  rank = law.loadings.shape[1]
  center, spread, nats = np.zeros((len(test), rank)), np.eye(rank), np.zeros(len(test))
  for start in range(0, test.shape[1], BLOCK):
    part = slice(start, start + BLOCK)
    loadings, levels = law.loadings[part], test[:, part]
    shared = loadings @ spread
    factor = np.linalg.cholesky(shared @ loadings.T + np.diag(law.noise[part]))
    residual = levels - law.mean[part] - center @ loadings.T
    y = np.asarray(solve_triangular(factor, residual.T, lower=True)).T
    half = 0.5 / np.diag(factor)
    lower = np.where(levels == 0, -np.inf, y - half)
    upper = np.where(levels == num_levels - 1, np.inf, y + half)
    nats -= log_mass(lower, upper).sum(axis=1)
    gain = np.asarray(solve_triangular(factor, shared, lower=True))
    center += y @ gain
    spread -= gain.T @ gain
  return nats / test.shape[1] / math.log(2)


def log_mass(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
  """log(Φ(upper) - Φ(lower)), from the tail where Φ keeps its digits."""
  above = lower > 0
  a, b = np.where(above, -upper, lower), np.where(above, -lower, upper)
  return log_ndtr(b) + np.log(-np.expm1(log_ndtr(a) - log_ndtr(b)))
