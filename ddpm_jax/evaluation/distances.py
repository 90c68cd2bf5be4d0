"""How far samples are from the data, in the features of a classifier, with error bars."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.neural_network import MLPClassifier

from ddpm_jax.evaluation.available import Unavailable

Distance = Callable[[np.ndarray, np.ndarray], float]


class Measured(NamedTuple):
  """A distance, and the standard error that the number of samples leaves it."""

  value: float
  error: float


class Features:
  """The hidden layer of a small network that has learned to classify; images are floats (N, …)."""

  def __init__(self, images: np.ndarray, labels: np.ndarray, width: int = 64, seed: int = 0):
    """Trains it: to be given real training images alone.

    Raises:
      Unavailable: they are of fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
      raise Unavailable('the training images are of fewer than two classes')
    network = MLPClassifier((width,), max_iter=400, random_state=seed)
    self._network = network.fit(images.reshape(len(images), -1), labels)

  def __call__(self, images: np.ndarray) -> np.ndarray:
    """(N, width), after the ReLU."""
    weights, biases = self._network.coefs_[0], self._network.intercepts_[0]
    pixels = images.reshape(len(images), weights.shape[0])  # also where there are no images
    return np.maximum(pixels @ weights + biases, 0.0)


def frechet(x: np.ndarray, y: np.ndarray) -> float:
  """|m_x - m_y|² + tr(S_x + S_y - 2 (S_x S_y)^½): of the normal laws with their moments.

  The trace of the root is the sum of the roots of the eigenvalues of S_x S_y, which are those of a
  matrix similar to a symmetric one. It is biased upwards by O(1 / N): compare equal numbers.

  Reference: Dowson and Landau 1982, https://doi.org/10.1016/0047-259X(82)90077-X; Heusel et al.
  2017, https://arxiv.org/abs/1706.08500.

  Args:
    x: (N, D).
    y: (M, D).
  """
  check_pairs(x, y)
  of_x, of_y = np.cov(x.T), np.cov(y.T)
  values, vectors = np.linalg.eigh(of_x)
  half = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  roots = np.sqrt(np.maximum(np.linalg.eigvalsh(half @ of_y @ half), 0))
  shift = np.sum((x.mean(0) - y.mean(0)) ** 2)
  return float(shift + np.trace(of_x) + np.trace(of_y) - 2 * roots.sum())


def mmd(x: np.ndarray, y: np.ndarray) -> float:
  """E k(x, x') + E k(y, y') - 2 E k(x, y) over pairs of different rows: unbiased, so maybe below 0.

  With k(x, y) = (1 + x·y / D)³ it is the kernel inception distance, on these features.

  Reference: Gretton et al. 2012, http://jmlr.org/papers/v13/gretton12a.html; Bińkowski et al. 2018,
  https://arxiv.org/abs/1801.01401.

  Args:
    x: (N, D).
    y: (M, D).
  """
  check_pairs(x, y)

  def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (1 + a @ b.T / a.shape[1]) ** 3

  def within(a: np.ndarray) -> float:
    values = kernel(a, a)
    return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

  return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def check_pairs(x: np.ndarray, y: np.ndarray) -> None:
  """Raises Unavailable where either is a single row or none, which has no spread."""
  for rows, kind in ((x, 'drawn'), (y, 'held-out')):
    if len(rows) < 2:
      count = 'one' if len(rows) else 'none'
      raise Unavailable(f'it takes two {kind} images, and there is {count}')


DISTANCES: dict[str, Distance] = {
  'frechet': frechet,
  'mmd': mmd,
}


def measured(distance: Distance, x: np.ndarray, y: np.ndarray, blocks: int = 10) -> Measured:
  """The distance of x (N, D) from y, its error by the jackknife over `blocks` parts of x.

  Reference: Quenouille 1956, https://doi.org/10.2307/2332914.
  """
  value, blocks = distance(x, y), min(blocks, len(x))
  parts = np.array_split(np.random.default_rng(0).permutation(len(x)), blocks)
  without = np.array([distance(np.delete(x, part, axis=0), y) for part in parts])
  error = np.sqrt((blocks - 1) * np.mean((without - without.mean()) ** 2))
  return Measured(value, float(error))
