"""The draws of the mixture against its weights, means and covariances."""

import numpy as np

from ddpm_jax.data import mixture
from ddpm_jax.data.plane import COVARIANCES, MEANS, WEIGHTS


def test_the_draws_have_the_mixtures_moments():
  dataset = mixture(num_train=40_000, num_test=100)
  batch = dataset.train[:]
  x = batch['x'].reshape(-1, 2) / 127.5 - 1
  for k, weight in enumerate(WEIGHTS):
    part = x[batch['cond']['label'] == k]
    assert abs(len(part) / len(x) - weight) < 5 * np.sqrt(weight * (1 - weight) / len(x))
    deviations = np.sqrt(np.diag(COVARIANCES[k]))
    assert (np.abs(part.mean(0) - MEANS[k]) < 5 * deviations / np.sqrt(len(part))).all()
    rounding = (2 / 255) ** 2 / 12 * np.eye(2)
    error = 5 * np.sqrt(2 / len(part)) * np.outer(deviations, deviations)
    assert (np.abs(np.cov(part.T) - COVARIANCES[k] - rounding) < error).all()


def test_splits_differ_and_nothing_is_cut_off():
  dataset = mixture(num_train=1000, num_test=1000)
  train, test = dataset.train[:], dataset.test[:]
  assert not np.array_equal(train['x'], test['x'])
  np.testing.assert_array_equal(train['x'], mixture(num_train=1000).train[:]['x'])
  for part in (train, test):
    assert part['x'].min() > 0 and part['x'].max() < 255
    assert part['x'].shape[1:] == dataset.image_shape and part['x'].dtype == np.uint8
  assert dataset.cond['label'].num_classes == len(WEIGHTS)
