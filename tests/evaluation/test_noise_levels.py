import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import Arrays, Dataset
from ddpm_jax.diffusion import SCHEDULES
from ddpm_jax.evaluation.noise_levels import EDGES, bins_of, make_bin_errors, midpoints
from ddpm_jax.theory import oracle

PATHS = {
  'cosine': SCHEDULES['cosine'](1000),
  'linear': SCHEDULES['linear'](1000),
  'flow': SCHEDULES['flow'](),
}


@pytest.mark.parametrize('name', PATHS)
def test_the_best_denoiser_of_gaussian_data_has_the_closed_form(as_run, experiment, name):
  """Of data N(0, c²) the least eps error at SNR e^λ is c² e^λ / (1 + c² e^λ), whatever the path.

  Its mean over λ in [a, b] is log((1 + c² e^b) / (1 + c² e^a)) / (b - a).
  """
  spread = 0.3
  x0 = spread * jax.random.normal(jax.random.key(0), (512, 8, 8, 1))
  split = Arrays(np.zeros((512, 8, 8, 1), np.uint8))
  path = PATHS[name]
  best = oracle.GaussianData(jnp.zeros((8, 8, 1)), jnp.full((8, 8, 1), spread**2))
  exact = experiment.codec._replace(encode=lambda params, x, keys: x0)  # no level is rounded to
  judged = as_run(dataclasses.replace(experiment, schedule=path, codec=exact), {})
  use = judged.use._replace(denoiser=lambda params, cond, schedule: best.denoiser(schedule))
  judged = dataclasses.replace(judged, use=use)
  errors = make_bin_errors(judged, Dataset('none', split, split, (8, 8, 1), 256))()
  c = spread**2
  for (a, b), error in errors.items():
    exact = np.log((1 + c * np.exp(b)) / (1 + c * np.exp(a))) / (b - a)
    # 512 · 64 squares at each of 8 levels: sqrt(2 / 32,768) = 0.8 %, less where levels average;
    # x0 is the same at all of them, so no better than that in the worst case.
    assert error == pytest.approx(exact, rel=4 * 0.008)
  assert len(errors) >= 8


def test_bins_are_those_inside_the_path():
  path = PATHS['linear']
  low, high = float(path.log_snr(1000)), float(path.log_snr(1))
  bins = bins_of(path)
  assert all(low <= a < b <= high for a, b in bins)
  outside = [edge for edge in EDGES if not low <= edge <= high]
  assert len(bins) == len(EDGES) - 1 - len(outside)


def test_midpoints_are_even():
  np.testing.assert_allclose(midpoints([(0, 2), (4, 6)], 2), [0.5, 1.5, 4.5, 5.5])
