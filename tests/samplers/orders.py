"""Measures orders of convergence, on Gaussian data where every trajectory is known."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.oracle import GaussianData
from ddpm_jax.samplers import NOISES, Step

COUNTS = (40, 80, 160, 320)
DATA = GaussianData(jnp.array([0.4, -0.7, 0.1]), jnp.array([0.05, 0.3, 2.0]))


def flow(schedule, x, t, s):
  """The probability flow's map from t to s: a Gaussian goes to a Gaussian, quantile by quantile."""
  at_t, at_s = DATA.marginal(schedule, t), DATA.marginal(schedule, s)
  return at_s.mean + jnp.sqrt(at_s.variance / at_t.variance) * (x - at_t.mean)


def error(sampler, schedule, times, seeded):
  """The root mean square error at times[-1] of a run whose first `seeded` updates are put right.

  What a sampler remembers of those updates is then exact, as is where the rest begins.
  """
  first = DATA.marginal(schedule, times[0])
  xT = first.mean + jnp.sqrt(first.variance) * jnp.array([[1.0], [-0.5]])
  keys = jax.random.split(jax.random.key(0), len(xT))

  def body(state, step):
    noise = NOISES['white'](schedule, keys, xT, step)
    state = sampler.update(schedule, DATA.denoiser(schedule), state, step, noise)
    exact = flow(schedule, xT, times[0], step.s)
    return state._replace(x=jnp.where(step.index < seeded, exact, state.x)), None

  steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
  state, _ = jax.lax.scan(body, sampler.init(schedule, times, xT), steps)
  return jnp.sqrt(jnp.mean(jnp.square(state.x - flow(schedule, xT, times[0], times[-1]))))


def slope(sampler, schedule, grid, seeded=0, counts=COUNTS):
  """-d log error / d log n by least squares, for runs of n updates over grid(schedule, n)."""
  compiled = jax.jit(lambda times: error(sampler, schedule, times, seeded))
  errors = [compiled(grid(schedule, n)) for n in counts]
  assert all(small < large for large, small in itertools.pairwise(errors)), errors
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def even_in_log_snr(schedule, n, first=-6.0, last=6.0):
  """n + 1 times, evenly spaced in log-SNR."""
  return jax.vmap(schedule.time)(jnp.linspace(first, last, n + 1))


def even_in_sigma(schedule, n, first=8.0, last=0.1):
  """n + 1 times, evenly spaced in sigma / alpha."""
  return jax.vmap(schedule.time)(-2 * jnp.log(jnp.linspace(first, last, n + 1)))
