"""Are samples as varied as the data? Two ratios; images are floats (N, …) of one range."""

from __future__ import annotations

import math
import statistics

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from ddpm_jax.evaluation.available import Unavailable


def spread_ratio(
  samples: np.ndarray, sample_labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray
) -> float:
  """The samples' standard deviation within a class over the real one's: 1 is ideal, 0 collapse.

  Raises:
    Unavailable: no class has two samples, or two real images that differ.
  """
  ours, theirs = spread(samples, sample_labels), spread(real, real_labels)
  if math.isnan(ours):
    raise Unavailable('no class has two samples')
  if not theirs > 0:
    raise Unavailable('no class has two training images that differ')
  return ours / theirs


def spread(images: np.ndarray, labels: np.ndarray) -> float:
  """sqrt of the variance of a pixel within its class, averaged over pixels, then over classes.

  A class with one image has no variance and does not count: NaN where there are no others. Without
  classes labels are all equal.
  """
  of_class = (images[labels == label] for label in np.unique(labels))
  variances = [rows.var(axis=0, ddof=1).mean() for rows in of_class if len(rows) > 1]
  return math.sqrt(statistics.fmean(variances)) if variances else math.nan


def nearest_ratio(samples: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> float:
  """mean distance of a held-out image to its nearest sample / to its nearest training image.

  Distances are Euclidean, over pixels. Samples that are new draws from the data give about 1, more
  where a mode is missing or samples are poor; the more samples, the smaller, and the numbers of
  samples and of training images are taken as they are, without a correction.

  Raises:
    Unavailable: there is no held-out image, or none that is not a training image too.
  """
  for images, kind in ((heldout, 'held-out'), (train, 'training'), (samples, 'drawn')):
    if not len(images):
      raise Unavailable(f'there is no {kind} image of these classes')
  real = nearest(heldout, train)
  if not real > 0:
    raise Unavailable('every held-out image is among the training images')
  return nearest(heldout, samples) / real


def nearest(images: np.ndarray, among: np.ndarray) -> float:
  """The mean distance from an image to the nearest one among others."""
  images, among = images.reshape(len(images), -1), among.reshape(len(among), -1)
  return float(np.mean(pairwise_distances_argmin_min(images, among)[1]))
