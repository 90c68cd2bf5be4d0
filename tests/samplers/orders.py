"""Measures orders of convergence, on Gaussian data where every trajectory is known."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import Step
from ddpm_jax.theory.oracle import GaussianData

COUNTS = (40, 80, 160, 320)
DATA = GaussianData(jnp.array([0.4, -0.7, 0.1]), jnp.array([0.05, 0.3, 2.0]))


def flow(schedule, x, t, s, data=DATA):
  """The probability flow's map from t to s of a batch x (B, D), quantile by quantile."""
  at_t, at_s = data.marginal(schedule, t), data.marginal(schedule, s)
  ratio = jnp.sqrt(at_s.variance / at_t.variance)
  return at_s.mean[None] + ratio[None] * (x - at_t.mean[None])


def begin(schedule, t, data=DATA):
  """Two points (2, D) of the marginal at t: a standard deviation above its mean, half one below."""
  marginal = data.marginal(schedule, t)
  return jnp.stack([marginal.mean + z * jnp.sqrt(marginal.variance) for z in (1.0, -0.5)])


def error(sampler, schedule, times, seeded, count=None, data=DATA):
  """The root mean square error of a run whose first `seeded` updates are put right.

  What a sampler remembers of those updates is then exact, as is where the rest begins. The run
  goes to times[count], the last if not given. It has no noise: these are orders of the flow.
  """
  count = len(times) - 1 if count is None else count
  xT = begin(schedule, times[0], data)

  def body(index, state):
    step = Step(times[index], times[index + 1], index)
    state = sampler.update(schedule, data.denoiser(schedule), state, step, None)
    exact = flow(schedule, xT, times[0], step.s, data)
    return state._replace(x=jnp.where(index < seeded, exact, state.x))

  state = jax.lax.fori_loop(0, count, body, sampler.init(schedule, times, xT))
  exact = flow(schedule, xT, times[0], times[count], data)
  return jnp.sqrt(jnp.mean(jnp.square(state.x - exact)))


error_of = jax.jit(error, static_argnums=0)


def slope(sampler, schedule, grid, seeded=0, counts=COUNTS, data=DATA):
  """-d log error / d log n by least squares, for runs of n updates over grid(schedule, n)."""
  # Grids of one length, of which the run takes the first n steps: one program for all.
  longest = max(counts) + 1
  grids = [np.resize(grid(schedule, n), longest) for n in counts]
  runs = zip(grids, counts, strict=True)
  errors = [float(error_of(sampler, schedule, times, seeded, n, data)) for times, n in runs]
  assert all(small < large for large, small in itertools.pairwise(errors)), errors
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@jax.jit
def times_of(schedule, log_snrs):
  """The times of all these log-SNRs, compiled once for a path and a number of them."""
  return jax.vmap(schedule.time)(log_snrs)


def even_in_log_snr(schedule, n, first=-6.0, last=6.0):
  """n + 1 times, evenly spaced in log-SNR."""
  return times_of(schedule, np.linspace(first, last, n + 1))


def even_in_sigma(schedule, n, first=8.0, last=0.1):
  """n + 1 times, evenly spaced in sigma / alpha."""
  return times_of(schedule, -2 * np.log(np.linspace(first, last, n + 1)))


def even_in_root(schedule, n, first=-1.5, last=2.5, rho=7.0):
  """n + 1 times, evenly spaced in (sigma / alpha)^(1 / rho), from one log-SNR to another."""
  ends = np.exp(-np.array([first, last]) / (2 * rho))
  return times_of(schedule, -2 * rho * np.log(np.linspace(*ends, n + 1)))


def trailing(schedule, n):
  """T - i T / (n + 1): the grid of that name, whose end comes nearer to the data with n."""
  return schedule.t_max * (1 - np.arange(n + 1) / (n + 1))
