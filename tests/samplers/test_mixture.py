"""Every sampler on data with modes: means, covariances, masses and distances of what it draws.

The denoiser is exact, so that all error is the sampler's and that of chance: 4096 draws know a mass
to 0.0078 and a mean of unit variance to 0.016. Each gets about 60 evaluations, even in log-SNR, but
for annealed Langevin, whose chains cannot follow the noise down in so few.
"""

import functools

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import SAMPLERS, prior_sample, sample, time_grid
from ddpm_jax.theory.oracle import GaussianMixture

COUNT = 4096
EVALUATIONS = dict.fromkeys(SAMPLERS, 60) | {'annealed_langevin': 600}
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[-1.0, -0.5], [1.0, -0.4], [0.2, 1.2]])
COVARIANCES = np.array([[[0.04, 0.02], [0.02, 0.05]], [[0.09, 0.0], [0.0, 0.02]], np.eye(2) * 0.03])

# What is added to chance: Euler's method at 61 times, and Langevin's at any, are not exact.
ERRORS = dict.fromkeys(('ddim', 'euler', 'ancestral', 'euler_ancestral'), 0.03) | {
  'reverse_diffusion': 0.03,
  'predictor_corrector': 0.05,
  'annealed_langevin': 0.05,
}
# A mean of the data is no consistency function: nothing converges, as its docstring says.
OTHERS = sorted(set(SAMPLERS) - {'consistency'})


def mixture():
  return GaussianMixture(WEIGHTS, MEANS, COVARIANCES)


@functools.cache
def truth():
  """As many exact draws."""
  return np.asarray(jax.vmap(mixture().sample)(jax.random.split(jax.random.key(9), COUNT)))


def sliced_wasserstein(x, y, directions=16):
  """The mean over directions of the distance W1 between projections of as many points."""
  angles = np.pi * np.arange(directions) / directions
  rays = np.stack([np.cos(angles), np.sin(angles)])
  return np.abs(np.sort(x @ rays, axis=0) - np.sort(y @ rays, axis=0)).mean()


@functools.cache
def drawn(name, evaluations=None):
  sampler, path = SAMPLERS[name](), schedules.vp(t_min=1e-4)
  num_steps = 1 + (evaluations or EVALUATIONS[name]) // sampler.evaluations
  times = time_grid('log_snr', path, num_steps)
  keys = jax.random.split(jax.random.key(2), COUNT)

  @jax.jit
  def run(keys):
    xT = prior_sample(path, times[0], keys, (2,))
    return sample(sampler, mixture().denoiser(path), path, times, xT, keys)

  return np.asarray(run(keys))


@pytest.mark.slow
@pytest.mark.parametrize('name', OTHERS)
def test_the_draws_are_the_mixtures(name):
  x, error, chance = drawn(name), ERRORS.get(name, 0.005), 1 / np.sqrt(COUNT)
  assert np.abs(masses(x) - WEIGHTS).max() < 4 * 0.5 * chance + error
  assert np.abs(x.mean(0) - WEIGHTS @ MEANS).max() < 4 * chance + error
  spread = np.einsum('k,kij->ij', WEIGHTS, COVARIANCES) + np.cov(MEANS.T, aweights=WEIGHTS, ddof=0)
  assert np.abs(np.cov(x.T) - spread).max() < 4 * np.sqrt(2) * chance + error
  # Two exact sets of draws are 0.9 chance apart.
  assert sliced_wasserstein(x, truth()) < 2 * chance + error


def test_too_few_steps_are_found_out():
  x = drawn('ddim', evaluations=6)
  assert sliced_wasserstein(x, truth()) > 0.1


def masses(x):
  """The share of points nearest to each mean."""
  return np.bincount(np.argmin(((x[:, None] - MEANS) ** 2).sum(-1), axis=1), minlength=3) / COUNT
