"""Measures orders of convergence, on Gaussian data where every trajectory is known."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion.oracle import GaussianData
from ddpm_jax.samplers import NOISES, Step

COUNTS = (40, 80, 160, 320)
# NumPy's, which stay as they are whatever precision the importing test has.
DATA = GaussianData(np.array([0.4, -0.7, 0.1]), np.array([0.05, 0.3, 2.0]))


def flow(schedule, x, t, s, data=DATA):
  """The probability flow's map from t to s of a batch x (B, D), quantile by quantile."""
  at_t, at_s = data.marginal(schedule, t), data.marginal(schedule, s)
  ratio = jnp.sqrt(at_s.variance / at_t.variance)
  return at_s.mean[None] + ratio[None] * (x - at_t.mean[None])


def begin(schedule, t, data=DATA):
  """Two points (2, D) of the marginal at t: a standard deviation above its mean, half one below."""
  marginal = data.marginal(schedule, t)
  return jnp.stack([marginal.mean + z * jnp.sqrt(marginal.variance) for z in (1.0, -0.5)])


def error(sampler, schedule, times, seeded, data=DATA):
  """The root mean square error at times[-1] of a run whose first `seeded` updates are put right.

  What a sampler remembers of those updates is then exact, as is where the rest begins.
  """
  xT = begin(schedule, times[0], data)
  keys = jax.random.split(jax.random.key(0), len(xT))

  def body(state, step):
    noise = NOISES['white'](keys, xT, step)
    state = sampler.update(schedule, data.denoiser(schedule), state, step, noise)
    exact = flow(schedule, xT, times[0], step.s, data)
    return state._replace(x=jnp.where(step.index < seeded, exact, state.x)), None

  steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
  state, _ = jax.lax.scan(body, sampler.init(schedule, times, xT), steps)
  return jnp.sqrt(jnp.mean(jnp.square(state.x - flow(schedule, xT, times[0], times[-1], data))))


def weak_error(sampler, schedule, times, draws=1, data=DATA):
  """The root mean square error, at times[-1], of the mean and the deviation of all samples.

  With this data a run is affine in its start and its noises, all of them independent and each
  dimension by itself, so that its moments follow from one derivative: no sampling.

  Args:
    sampler: takes at most `draws` independent noises a step, draw = 0 … draws - 1.
    schedule: the path.
    times: (N,).
    draws: how many.
    data: what is sampled.
  """
  first, last = (data.marginal(schedule, t) for t in (times[0], times[-1]))

  def run(xT, noises):
    def body(state, step):
      drawn = list(noises[step.index])  # a list: a draw beyond the last raises IndexError

      def noise(t, s, draw=0):
        del t, s
        return drawn[draw][None]

      return sampler.update(schedule, data.denoiser(schedule), state, step, noise), None

    steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(body, sampler.init(schedule, times, xT[None]), steps)[0].x[0]

  noises = jnp.zeros((len(times) - 1, draws, *first.mean.shape))
  mean, pull = jax.vjp(run, first.mean, noises)
  of_start, of_noises = pull(jnp.ones_like(mean))
  variance = of_start**2 * first.variance + jnp.sum(of_noises**2, (0, 1))
  off = jnp.array([mean - last.mean, jnp.sqrt(variance) - jnp.sqrt(last.variance)])
  return jnp.sqrt(jnp.mean(jnp.square(off)))


def slope(sampler, schedule, grid, seeded=0, counts=COUNTS):
  """-d log error / d log n by least squares, for runs of n updates over grid(schedule, n)."""
  return fitted(lambda times: error(sampler, schedule, times, seeded), schedule, grid, counts)


def weak_slope(sampler, schedule, grid, draws=1, counts=COUNTS):
  """As `slope`, of the weak error."""
  return fitted(lambda times: weak_error(sampler, schedule, times, draws), schedule, grid, counts)


def fitted(measure, schedule, grid, counts):
  """-d log measure(times) / d log n by least squares; every error must be below the last."""
  compiled = jax.jit(measure)
  errors = [float(compiled(grid(schedule, n))) for n in counts]
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
