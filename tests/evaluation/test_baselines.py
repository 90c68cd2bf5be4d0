import itertools
import tracemalloc

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from ddpm_jax.evaluation import baselines
from ddpm_jax.evaluation.baselines import (
  Gaussian,
  conditional_bits,
  gaussian_bits,
  histogram_bits,
  shrunk_gaussian,
)

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


def test_blocks_of_pixels_make_the_density_of_the_whole(monkeypatch):
  """Where a bin is narrow its mass is the density, which scipy has."""
  rng = np.random.default_rng(0)
  loadings, noise = 300 * rng.normal(size=(7, 3)), rng.uniform(1e3, 1e4, 7)
  mean = rng.uniform(4000, 6000, 7)
  covariance = loadings @ loadings.T + np.diag(noise)
  levels = np.rint(rng.multivariate_normal(mean, covariance, 50))
  truth = -multivariate_normal(mean, covariance).logpdf(levels) / 7 / np.log(2)
  for block in (1, 2, 7, 100):
    monkeypatch.setattr(baselines, 'BLOCK', block)
    found = conditional_bits(Gaussian(mean, loadings, noise), levels, 10_000)
    np.testing.assert_allclose(found, truth, atol=1e-3)


@pytest.mark.parametrize('count', [6, 40])  # fewer than pixels, and more
def test_the_covariance_is_shrunk_as_published(count):
  """Schäfer and Strimmer 2005, target D, pair by pair."""
  x = np.random.default_rng(0).normal(size=(count, 8)) @ np.diag(np.arange(1.0, 9.0)) + 5
  x[:, 1] += x[:, 0]
  x -= x.mean(0)
  products = x[:, :, None] * x[:, None, :]
  covariance = products.mean(0)
  others = ~np.eye(8, dtype=bool)
  variance = products.var(axis=0)[others].sum() / count
  rho = min(1, variance / (covariance[others] ** 2).sum())
  assert 0 < rho < 1
  law = shrunk_gaussian(x)
  found = law.loadings @ law.loadings.T + np.diag(law.noise - 1 / 12)
  np.testing.assert_allclose(found, np.where(others, (1 - rho) * covariance, covariance), atol=1e-9)


@pytest.mark.parametrize('count', [1, 2, 3, 5, 9, 10, 20, 40, 100])
def test_gaussian_of_few_images_is_never_worse_than_uniform(digits, count):
  images, test = digits.train[:]['x'], digits.test[:]['x']
  rows = np.random.default_rng(count).permutation(len(images))[:count]
  bits = gaussian_bits(images[rows], test, 17).mean()
  assert bits <= np.log2(17) + 1e-9
  assert count < 20 or bits < 3, 'as soon as there are a few it beats uniform by far'


def test_gaussian_of_noise_is_uniform():
  noise = np.random.default_rng(0).integers(0, 256, (60, 16))
  np.testing.assert_array_equal(gaussian_bits(noise[:50], noise[50:], 256), np.full(10, 8.0))


def test_gaussian_of_large_images_needs_little_memory(monkeypatch):
  monkeypatch.setattr(baselines, 'BLOCK', 64)
  rng = np.random.default_rng(0)
  images = 100 + 20 * rng.normal(size=(24, 1)) + rng.normal(size=(24, 1500))
  images = np.rint(images).astype(np.uint8)
  tracemalloc.start()
  bits = gaussian_bits(images[:20], images[20:], 256)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert bits.mean() < 5, 'pixels share nearly all that they are'
  assert peak < 6e6, 'a covariance would take 1.8e7 bytes'
