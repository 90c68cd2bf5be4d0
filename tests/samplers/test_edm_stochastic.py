"""Churn on Gaussian data, where a step is an affine map of x and noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import Step, sample
from ddpm_jax.samplers.edm_stochastic import edm
from ddpm_jax.samplers.runge_kutta import heun
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers.orders import DATA, begin, even_in_log_snr

pytestmark = pytest.mark.usefixtures('x64')

MEAN = np.array([0.4, -0.7, 0.1])
POINT = GaussianData(MEAN, np.zeros(3))
PATHS = {
  'vp': schedules.vp,
  'edm': schedules.edm,
  'flow': schedules.flow,
  'interpolated': lambda: schedules.interpolate(schedules.linear(100, 0.001, 0.1)),
}


def moments(sampler, data, schedule, times):
  """Mean and variance at times[-1] of what starts as the marginal at times[0]."""
  start = sampler.init(schedule, times, jnp.zeros((1, 3)))

  def body(carry, step):
    mean, variance = carry

    def update(x, noise):
      state = start._replace(x=x[None])
      denoiser = data.denoiser(schedule)
      return sampler.update(schedule, denoiser, state, step, lambda *_: noise[None]).x[0]

    zero, one = jnp.zeros(3), jnp.ones(3)
    arrived = update(mean, zero)
    gain, scale = update(mean + one, zero) - arrived, update(mean, one) - arrived
    return (arrived, gain**2 * variance + scale**2), None

  first = data.marginal(schedule, times[0])
  begun = first.mean, jnp.broadcast_to(first.variance, (3,))
  steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
  return jax.lax.scan(body, begun, steps)[0]


@pytest.mark.parametrize('path', PATHS)
def test_a_point_keeps_its_marginals_exactly_whatever_the_churn(path):
  # eps is constant along the flow, so that Heun's steps are exact.
  schedule = PATHS[path]()
  times = even_in_log_snr(schedule, 6, -3.0, 3.0)
  mean, variance = jax.jit(partial(moments, edm(2.0), POINT, schedule))(times)
  exact = POINT.marginal(schedule, times[-1])
  np.testing.assert_allclose(mean, exact.mean, rtol=1e-8)
  np.testing.assert_allclose(variance, np.full(3, exact.variance), rtol=1e-8)


@pytest.mark.parametrize(
  ('churn', 'gamma'), [(0.5, 0.25), (0.1, 0.05), (40.0, np.sqrt(2) - 1)], ids=str
)
@pytest.mark.parametrize('noise_scale', [1.0, 1.1])
def test_the_noise_is_raised_by_gamma(churn, gamma, noise_scale):
  # Two times, so that N = 2. For a point at zero y is noise, which Heun's step scales by n_s / n̂.
  schedule, (t, s) = schedules.vp(), (0.5, 0.3)
  n_t, n_s = (np.exp(-schedule.log_snr(time) / 2) for time in (t, s))
  high = (1 + gamma) * n_t
  expected = (n_s / high) ** 2 * (n_t**2 + noise_scale**2 * (high**2 - n_t**2))
  sampler = edm(churn, noise_scale=noise_scale)
  _, variance = moments(sampler, POINT, schedule, jnp.array([t, s]))
  np.testing.assert_allclose(variance, schedule.alpha(s) ** 2 * expected, rtol=1e-8)


@pytest.mark.parametrize(
  ('range_of_noise', 'churned'),
  [((0.0, np.inf), True), ((0.9, 1.1), True), ((0.0, 0.9), False), ((1.1, np.inf), False)],
  ids=str,
)
def test_noise_is_raised_within_its_range_alone(range_of_noise, churned):
  schedule, t = schedules.vp(), schedules.vp().time(0.0)  # n = 1
  noise_min, noise_max = range_of_noise
  sampler = edm(1.0, noise_min, noise_max, noise_scale=2.0)
  _, variance = moments(sampler, POINT, schedule, jnp.array([t, 0.1]))
  raised = variance > 1.01 * schedule.sigma(0.1) ** 2
  assert raised.all() == raised.any() == churned


@pytest.mark.parametrize('path', PATHS)
def test_where_no_noise_is_raised_it_is_heun(path):
  schedule = PATHS[path]()
  times = even_in_log_snr(schedule, 6, -3.0, 3.0)
  xT, keys = begin(schedule, times[0]), jax.random.split(jax.random.key(0), 2)

  @partial(jax.jit, static_argnums=0)
  def run(sampler):
    return sample(sampler, DATA.denoiser(schedule), schedule, times, xT, keys)

  for sampler in (edm(3.0, noise_min=1e6), edm(0.0)):
    np.testing.assert_allclose(run(sampler), run(heun()), rtol=1e-12)
  assert not np.isclose(run(edm(3.0)), run(heun()), rtol=1e-3).any()


def test_each_step_draws_anew_though_the_ways_up_overlap():
  # A path of noise along the way alone would serve overlapping ways with the same increments.
  schedule, times, seen = schedules.edm(), jnp.array([3.0, 2.5, 2.2]), []
  sampler, xt = edm(40.0), jnp.ones((1, 3))

  def noise(t, s, draw=0):
    seen.append((float(t), float(s), int(draw)))
    return xt

  state = sampler.init(schedule, times, xt)
  for index in (0, 1):
    step = Step(times[index], times[index + 1], jnp.array(index))
    state = sampler.update(schedule, DATA.denoiser(schedule), state, step, noise)
  (t, _, first), (_, raised, second) = seen
  assert raised > t
  assert first != second


def test_it_says_when_it_draws_noise():
  assert edm(1.0).stochastic and edm(1.0).between
  assert not edm(0.0).stochastic and not edm(0.0).between


def slope(sampler, schedule, grid, counts):
  """-d log error / d log n, of the mean and deviation of all samples."""
  errors = []
  for count in counts:
    times = grid(schedule, count)
    mean, variance = jax.jit(partial(moments, sampler, DATA, schedule))(times)
    exact = DATA.marginal(schedule, times[-1])
    off = np.array([mean - exact.mean, np.sqrt(variance) - np.sqrt(exact.variance)])
    errors.append(np.sqrt(np.mean(off**2)))
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


def test_mean_and_deviation_err_by_second_order():
  assert edm().order == 2
  grid = partial(even_in_log_snr, first=-4.0, last=4.0)
  assert 1.9 < slope(edm(5.0), schedules.vp(), grid, (40, 113, 320)) < 3.2


def test_much_churn_keeps_the_marginals_to_second_order_on_the_papers_grid():
  def grid(schedule, count):
    ends = schedule.t_max ** (1 / 7), schedule.t_min ** (1 / 7)
    return jnp.linspace(*ends, count) ** 7

  assert 1.9 < slope(edm(40.0), schedules.edm(), grid, (128, 256, 512)) < 3.2


@pytest.mark.parametrize('path', ['vp', 'flow', 'edm'])
def test_noise_is_never_raised_above_the_paths_own(path):
  # At t_max nothing is left to raise; for `flow` the SNR there is zero.
  schedule = PATHS[path]()
  times = jnp.array([1.0, 0.7]) * schedule.t_max
  xT, steps = begin(schedule, times[0]), Step(*times, jnp.array(0))

  def update(sampler):
    state = sampler.init(schedule, times, xT)
    return sampler.update(
      schedule, DATA.denoiser(schedule), state, steps, lambda *_: jnp.ones_like(xT)
    )

  np.testing.assert_allclose(update(edm()).x, update(heun()).x, rtol=1e-12)
  np.testing.assert_allclose(update(edm()).x0, update(heun()).x0, rtol=1e-12)


@pytest.mark.parametrize(
  ('options', 'field'),
  [
    ({'churn': -1.0}, 'churn: -1.0 is outside'),
    ({'churn': float('nan')}, 'churn: nan is'),
    ({'noise_min': -0.1}, 'noise_min: -0.1 is outside'),
    ({'noise_min': 2.0, 'noise_max': 1.0}, 'noise_min: 2.0 is not below noise_max = 1.0'),
    ({'noise_scale': 0.0}, 'noise_scale: 0.0 is outside'),
  ],
  ids=str,
)
def test_bad_settings_are_refused_by_their_name(options, field):
  with pytest.raises(ValueError, match=rf'^{field}'):
    edm(**options)
