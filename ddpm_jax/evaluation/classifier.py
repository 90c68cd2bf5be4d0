"""Do samples look like the class asked for? A classifier of real images says."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from sklearn.svm import SVC

from ddpm_jax.evaluation.available import Unavailable


class Share(NamedTuple):
  """A share of `count` cases, and its binomial standard error.

  The error is sqrt(p (1 - p) / count) with p = (hits + 1) / (count + 2), which isn't zero where all
  were hits.
  """

  mean: float
  error: float
  count: int


class Classifier:
  """A support vector machine with a Gaussian kernel, on pixels. Images are floats (N, …)."""

  def __init__(self, images: np.ndarray, labels: np.ndarray):
    """Trains it: to be given real training images alone.

    Raises:
      Unavailable: they are of fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
      raise Unavailable('the training images are of fewer than two classes')
    self._machine = SVC(C=10.0).fit(images.reshape(len(images), -1), labels)

  def accuracy(self, images: np.ndarray, labels: np.ndarray) -> Share:
    """The share of images that it reads as their labels; Unavailable of no images."""
    if not len(images):
      raise Unavailable('there is no image to read')
    read = self._machine.predict(images.reshape(len(images), -1))
    return share(read == labels)


def share(hits: np.ndarray) -> Share:
  """The share of true values, (N,)."""
  count, total = len(hits), int(np.sum(hits))
  p = (total + 1) / (count + 2)
  return Share(total / count, math.sqrt(p * (1 - p) / count), count)
