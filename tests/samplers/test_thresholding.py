"""Thresholding of predictions that are known, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codec import pixels
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers.thresholding import THRESHOLDS, clip_x0, dynamic_threshold


def predicting(x0):
  """A denoiser that says x0, of variance 0.1, whatever it sees."""
  return lambda xt, t: Denoised(x0, jnp.full_like(x0, 0.1), jnp.full_like(x0, 0.5))


def run(wrapper, x0, **options):
  return wrapper(predicting(jnp.asarray(x0)), **options)(jnp.zeros_like(x0), 20)


def pictures(spread, count=4, size=(10, 10, 1)):
  return spread * jax.random.normal(jax.random.key(0), (count, *size))


def test_clipping_leaves_what_is_inside_and_stops_the_rest_at_the_ends():
  x0 = np.asarray(pictures(1.0))
  clipped = np.asarray(run(clip_x0, x0).x0)
  beyond = np.abs(x0) > 1
  assert beyond.any()
  assert not beyond.all()
  np.testing.assert_array_equal(clipped[~beyond], x0[~beyond])
  np.testing.assert_array_equal(clipped[beyond], np.sign(x0[beyond]))


def test_clipping_takes_other_ranges():
  x0 = run(clip_x0, pictures(1.0), low=0.0, high=0.5).x0
  assert (x0.min(), x0.max()) == (0.0, 0.5)


@pytest.mark.parametrize('wrapper', [clip_x0, dynamic_threshold])
def test_what_is_in_range_stays_and_the_variances_do_too(wrapper):
  x0 = pictures(0.2)
  denoised = run(wrapper, x0)
  np.testing.assert_array_equal(denoised.x0, x0)
  assert (denoised.x0_variance == 0.1).all()
  assert (denoised.fraction == 0.5).all()


@pytest.mark.parametrize('percentile', [0.5, 0.9, 1.0])
def test_the_quantile_becomes_one_and_the_rest_keeps_its_proportion(percentile):
  x0 = np.asarray(pictures(4.0))
  thresholded = np.asarray(run(dynamic_threshold, x0, percentile=percentile).x0)
  for before, after in zip(x0, thresholded, strict=True):
    saturated = np.abs(after) == 1
    # One of a hundred values is a hundredth; the quantile lies between two values.
    assert abs(saturated.mean() - (1 - percentile)) <= 0.011
    assert np.abs(after).max() <= 1
    (scale,) = {round(float(r), 4) for r in (before / after)[~saturated]}
    assert scale > 1
    assert np.abs(before)[saturated].min(initial=np.inf) >= scale - 1e-3
    np.testing.assert_array_equal(np.sign(after), np.sign(before))


def test_an_example_is_thresholded_by_itself():
  # Contrasts from within the range to far beyond.
  x0 = pictures(1.0) * jnp.array([0.1, 1.0, 3.0, 30.0])[:, None, None, None]
  together = run(dynamic_threshold, x0, percentile=0.9).x0
  for i in range(4):
    alone = run(dynamic_threshold, x0[i : i + 1], percentile=0.9).x0
    np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-6)
  np.testing.assert_array_equal(together[0], x0[0])


@pytest.mark.parametrize('percentile', [0.0, -0.5, 1.01, float('nan')])
def test_a_percentile_that_is_none_is_refused(percentile):
  with pytest.raises(ValueError, match=rf'^percentile: {percentile} is outside'):
    dynamic_threshold(predicting(jnp.zeros((1, 2))), percentile)


# The table, whose entries are told the data's bounds.


@pytest.mark.parametrize('name', THRESHOLDS)
def test_data_without_bounds_is_left_alone_or_refused(name):
  denoiser = predicting(pictures(30.0))
  if name == 'dynamic':
    with pytest.raises(ValueError, match=r"^threshold: 'dynamic' is for data in \[-1, 1\]"):
      THRESHOLDS[name](denoiser, None)
  else:
    assert THRESHOLDS[name](denoiser, None) is denoiser


@pytest.mark.parametrize('bounds', [(-1, 1), (-1.0, 1.0), (0.0, 0.5)])
def test_clip_keeps_to_the_bounds_that_the_data_has(bounds):
  x0 = pictures(3.0)
  found = run(THRESHOLDS['clip'], x0, bounds=bounds)
  np.testing.assert_array_equal(found.x0, np.clip(x0, *bounds))
  assert (found.x0_variance == 0.1).all()


@pytest.mark.parametrize('bounds', [(0.0, 1.0), (-2.0, 2.0), (-1.0, 2.0)])
def test_dynamic_thresholds_are_refused_for_other_bounds(bounds):
  with pytest.raises(ValueError, match=r"^threshold: 'dynamic' is for data in \[-1, 1\]"):
    THRESHOLDS['dynamic'](predicting(pictures(1.0)), bounds)


def test_dynamic_thresholds_are_those_of_pixels():
  x0, bounds = pictures(4.0), pixels((10, 10, 1), 256).bounds
  found = run(THRESHOLDS['dynamic'], x0, bounds=bounds).x0
  np.testing.assert_array_equal(found, run(dynamic_threshold, x0).x0)
  assert np.abs(found).max() == 1


def test_none_leaves_what_has_bounds_alone():
  denoiser = predicting(pictures(3.0))
  assert THRESHOLDS['none'](denoiser, (-1.0, 1.0)) is denoiser
