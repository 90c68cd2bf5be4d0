"""Gaussian oracles, and a sampler's update as the affine map that it is at one of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import Step, stability
from ddpm_jax.theory.oracle import GaussianData

MEAN = (0.4, -0.7, 0.1)


class Affine(NamedTuple):
  """xs = gain xt + offset + scale noise."""

  gain: np.ndarray
  offset: np.ndarray
  scale: np.ndarray


class World(NamedTuple):
  """Gaussian data, a chain, and what is exact about them."""

  schedule: schedules.Discrete
  data: GaussianData

  @property
  def denoiser(self):
    return self.data.denoiser(self.schedule)

  def marginal(self, t):
    """The moments of xt."""
    marginal = self.data.marginal(self.schedule, int(t))
    return np.asarray(marginal.mean), np.broadcast_to(marginal.variance, len(MEAN))

  def flow(self, x, t, s):
    """The probability-flow map: it moves a Gaussian to a Gaussian, quantile by quantile."""
    (mean_t, var_t), (mean_s, var_s) = self.marginal(t), self.marginal(s)
    return mean_s + np.sqrt(var_s / var_t) * (np.asarray(x) - mean_t)

  def begin(self, t, count, seed=0):
    """Exact draws of xt."""
    mean, variance = self.marginal(t)
    eps = np.asarray(jax.random.normal(jax.random.key(seed), (count, len(MEAN))))
    return jnp.asarray(mean + np.sqrt(variance) * eps)

  def affine(self, sampler, t, s):
    """The update from t to s, found by probing it with zeros and ones."""
    times, zero, one = jnp.array([t, s]), jnp.zeros((1, len(MEAN))), jnp.ones((1, len(MEAN)))
    step = Step(times[0], times[1], jnp.array(0))

    def probe(x, noise):
      state = sampler.init(self.schedule, times, x)
      state = sampler.update(self.schedule, self.denoiser, state, step, lambda *_: noise)
      return np.asarray(state.x[0])

    offset = probe(zero, zero)
    return Affine(probe(one, zero) - offset, offset, probe(zero, one) - offset)


@pytest.fixture(autouse=True)
def unwatched(monkeypatch):
  """Leaves out the look at a run's stability, which test_stability is about: it takes a second."""
  monkeypatch.setattr(stability, 'warn', lambda *_: None)


@pytest.fixture
def make_world(x64):
  """Makes a chain of T steps with data of the given mean and variance."""

  def make(variance=0.3, mean=MEAN, num_steps=50):
    schedule = schedules.linear(num_steps, 0.1 / num_steps, 10 / num_steps)
    return World(schedule, GaussianData(jnp.asarray(mean), jnp.asarray(variance)))

  return make


@pytest.fixture
def make_keys():
  return lambda count, seed=1: jax.random.split(jax.random.key(seed), count)
