import itertools

import numpy as np
import pytest

from ddpm_jax.evaluation.baselines import gaussian_bits, histogram_bits

MODELS = {'histogram': histogram_bits, 'gaussian': gaussian_bits}


@pytest.mark.parametrize('name', MODELS)
def test_probabilities_of_all_images_sum_to_one(name):
  train = np.random.default_rng(0).integers(0, 4, (50, 3, 1, 1))
  train[:, 1] = np.clip(train[:, 0] + train[:, 1] // 3, 0, 3)
  every = np.array(list(itertools.product(range(4), repeat=3))).reshape(-1, 3, 1, 1)
  bits = MODELS[name](train, every, 4)
  assert np.exp2(-3 * bits).sum() == pytest.approx(1, abs=1e-9)


def test_histogram_by_hand():
  """One pixel, levels 0, 0, 1 of three: (2 + 1) / 6, (1 + 1) / 6, (0 + 1) / 6."""
  train, test = np.array([[0], [0], [1]], np.uint8), np.array([[0], [1], [2]], np.uint8)
  np.testing.assert_allclose(histogram_bits(train, test, 3), -np.log2([1 / 2, 1 / 3, 1 / 6]))


def test_gaussian_of_fine_levels_has_the_differential_entropy():
  """Bits of level -> entropy / D - log2(bin width), at a bin width of one level."""
  rng = np.random.default_rng(0)
  mixing = np.array([[100.0, 0, 0], [60, 80, 0], [-50, 30, 90]])

  def draw(count):
    return np.rint(rng.standard_normal((count, 3)) @ mixing.T + 1000).astype(int)

  determinant = np.linalg.slogdet(2 * np.pi * np.e * mixing @ mixing.T)[1]
  found = gaussian_bits(draw(20_000), draw(20_000), 2001)
  error = found.std() / np.sqrt(20_000)
  assert abs(found.mean() - determinant / 2 / 3 / np.log(2)) < 5 * error


def test_gaussian_sees_what_pixels_share_and_the_histogram_does_not():
  rng = np.random.default_rng(0)

  def draw(count):
    return np.repeat(rng.integers(0, 16, (count, 1)), 4, axis=1)

  train, test = draw(5000), draw(500)
  assert histogram_bits(train, test, 16).mean() == pytest.approx(4, abs=0.02)
  assert gaussian_bits(train, test, 16).mean() < 2.5


def test_gaussian_keeps_its_digits_in_the_tails():
  train = np.full((20, 1), 10)
  bits = gaussian_bits(train, np.array([[10], [30], [0]]), 256)
  assert np.isfinite(bits).all()
  assert bits[0] < 0.2 < 100 < bits[1]
