import numpy as np
import pytest

from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.distances import DISTANCES, Features, frechet, measured, mmd


def normal(seed, count=2000, dims=4, mean=0.0, scale=1.0):
  return mean + scale * np.random.default_rng(seed).normal(size=(count, dims))


@pytest.fixture
def whitened():
  """Points (400, 3) with mean zero and the identity for their covariance, exactly."""
  x = normal(0, 400, 3)
  x -= x.mean(0)
  return x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T


def test_frechet_is_the_closed_form_for_given_moments(whitened):
  # Commuting covariances diag(a²), diag(b²): |m|² + Σ (a - b)².
  a, b, shift = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.5]), np.array([0.3, 0.0, -1.0])
  truth = np.sum(shift**2) + np.sum((a - b) ** 2)
  assert frechet(a * whitened, b * whitened + shift) == pytest.approx(truth, rel=1e-9)


def test_frechet_does_not_depend_on_the_axes_or_the_order(whitened):
  rotation = np.linalg.qr(normal(1, 3, 3))[0]
  x, y = whitened * [1.0, 2.0, 0.5], (whitened @ rotation) * [3.0, 1.0, 0.5] + 0.2
  there = frechet(x, y)
  assert frechet(y, x) == pytest.approx(there, rel=1e-9)
  assert frechet(x @ rotation, y @ rotation) == pytest.approx(there, rel=1e-9)
  assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_mmd_is_the_mean_over_all_pairs_of_different_points():
  x, y = normal(0, 5, 2), normal(1, 4, 2)

  def k(a, b):
    return (1 + a @ b / 2) ** 3

  def pairs(a):
    return np.mean([k(p, q) for i, p in enumerate(a) for j, q in enumerate(a) if i != j])

  truth = pairs(x) + pairs(y) - 2 * np.mean([k(p, q) for p in x for q in y])
  assert mmd(x, y) == pytest.approx(truth, rel=1e-12)


def test_mmd_of_one_law_is_zero_on_average():
  found = [mmd(normal(2 * n, 100), normal(2 * n + 1, 100)) for n in range(60)]
  assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(60)
  assert min(found) < 0


@pytest.mark.parametrize('name', DISTANCES)
@pytest.mark.parametrize('counts', [(1, 9), (9, 1), (0, 9)])
def test_a_single_image_is_at_no_distance(name, counts):
  x, y = (normal(0, count) for count in counts)
  with pytest.raises(Unavailable, match='it takes two (drawn|held-out) images'):
    measured(DISTANCES[name], x, y)


def test_features_of_one_class_are_none():
  with pytest.raises(Unavailable, match='fewer than two classes'):
    Features(normal(0, 9), np.zeros(9, int))


@pytest.mark.parametrize('name', DISTANCES)
def test_the_error_is_the_spread_over_other_samples(name):
  y = normal(999, 600)
  found = [measured(DISTANCES[name], normal(n, 200, mean=0.3), y) for n in range(40)]
  spread = np.std([one.value for one in found], ddof=1)
  assert np.sqrt(np.mean([one.error**2 for one in found])) == pytest.approx(spread, rel=0.4)


def test_features_tell_digits_from_other_digits(digits):
  train, test = digits.train[:], digits.test[:]
  features = Features(train['x'] / 8.0 - 1, train['cond']['label'])
  x, y = (features(split['x'] / 8.0 - 1) for split in (train, test))
  assert x.shape == (len(digits.train), 64) and (x >= 0).all()
  noise = features(np.random.default_rng(0).uniform(-1, 1, test['x'].shape))
  threes = features(test['x'][test['cond']['label'] == 3] / 8.0 - 1)
  for distance in DISTANCES.values():
    assert 5 * distance(y, x) < min(distance(threes, x), distance(noise, x))
