"""Runge-Kutta methods; and what holds of all the deterministic methods on dy/dn = eps."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import precision

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers import Step, ddim, num_evaluations, sample, time_grid
from ddpm_jax.samplers.multistep import deis, ipndm, lms, plms, pndm
from ddpm_jax.samplers.runge_kutta import HEUN, dpm2, euler, heun, rk4, runge_kutta
from tests.samplers.orders import DATA, begin, even_in_log_snr, even_in_sigma, flow, slope

pytestmark = pytest.mark.usefixtures('x64')

RUNGE_KUTTA = {'euler': euler(), 'heun': heun(), 'dpm2': dpm2(), 'rk4': rk4()}
ORDERS = {'euler': 1, 'heun': 2, 'dpm2': 2, 'rk4': 4}
MULTISTEP = {'lms': lms(), 'deis': deis(), 'ipndm': ipndm(), 'plms': plms(), 'pndm': pndm()}
CLASSICAL = RUNGE_KUTTA | MULTISTEP
# Those that look at nothing but y and n.
PATHLESS = {**CLASSICAL, 'deis': deis(3, 'log_sigma')}
del PATHLESS['pndm']

PATHS = {
  'edm': schedules.edm,
  'vp': schedules.vp,
  'flow': schedules.flow,
  've': schedules.ve,
  'interpolated': lambda: schedules.interpolate(schedules.linear(50, 0.002, 0.2)),
}
GRIDS = {'log': even_in_log_snr, 'sigma': even_in_sigma}
LENGTH = 101  # of most grids here, so that they share their programs


@partial(jax.jit, static_argnums=0)
def path_of(sampler, schedule, times, xT):
  """Every x from xT on, (N, B, D)."""
  denoiser = DATA.denoiser(schedule)
  return sample(sampler, denoiser, schedule, times, xT, None, return_path=True, final='keep')[1]


@partial(jax.jit, static_argnums=(0, 3))
def rises(sampler, schedule, times, function):
  """y_s - y_t of every step where eps = function(log n): the flow is then an integral over n."""

  def denoiser(xt, t):
    eps = function(-schedule.log_snr(t) / 2)
    return Denoised((xt - schedule.sigma(t) * eps) / schedule.alpha(t))

  xT = jnp.ones((1, 1))
  path = sample(sampler, denoiser, schedule, times, xT, None, return_path=True, final='keep')[1]
  return jnp.diff(path[:, 0, 0] / jax.vmap(schedule.alpha)(times))


def power(degree):
  return lambda log_sigma: jnp.exp(degree * log_sigma)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('name', RUNGE_KUTTA)
def test_errors_fall_with_the_order(name, grid):
  sampler = RUNGE_KUTTA[name]
  assert sampler.order == ORDERS[name]
  assert ORDERS[name] - 0.1 < slope(sampler, schedules.vp(), GRIDS[grid]) < ORDERS[name] + 1.2


@pytest.mark.parametrize('name', RUNGE_KUTTA)
def test_backwards_errors_fall_with_the_order_too(name):
  # From data to noise: what inverts a sampler, to that order.
  def grid(schedule, n):
    return even_in_log_snr(schedule, n)[::-1]

  measured = slope(RUNGE_KUTTA[name], schedules.vp(), grid)
  assert ORDERS[name] - 0.1 < measured < ORDERS[name] + 1.2


@pytest.mark.parametrize('path', PATHS)
def test_euler_is_deterministic_ddim(path):
  schedule = PATHS[path]()
  times = even_in_log_snr(schedule, LENGTH - 1, -3.0, 4.0)
  xT = begin(schedule, times[0])
  np.testing.assert_allclose(
    path_of(RUNGE_KUTTA['euler'], schedule, times, xT),
    path_of(ddim(), schedule, times, xT),
    atol=1e-12,
  )


@pytest.mark.parametrize('name', PATHLESS)
def test_all_paths_are_one_in_y_and_n(name):
  def run(path):
    schedule = PATHS[path]()
    times = even_in_log_snr(schedule, LENGTH - 1, -3.0, 4.0)
    scale = jax.vmap(schedule.alpha)(times)
    y = jnp.array([[10.0, -3.0, 2.0], [1.0, 0.0, -7.0]])
    return path_of(PATHLESS[name], schedule, times, y * scale[0]) / scale[:, None, None]

  edm, vp, flow = run('edm'), run('vp'), run('flow')
  assert np.ptp(edm) > 1
  np.testing.assert_allclose(vp, edm, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(flow, edm, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(('name', 'degree'), [('euler', 0), ('heun', 1), ('dpm2', 0), ('rk4', 3)])
def test_they_integrate_polynomials_in_n(name, degree):
  schedule = schedules.edm()
  n = np.geomspace(9, 0.1, 6)
  for k in range(degree + 2):
    exact = np.diff(n ** (k + 1)) / (k + 1)
    seen = rises(RUNGE_KUTTA[name], schedule, jnp.asarray(n), power(k))
    assert np.allclose(seen, exact, rtol=1e-8) == (k <= degree)


def test_dpm2_looks_at_the_middle_of_log_n():
  # ∫ dn / n by the value in the middle is 2 sinh(h/2) where h is the step of log n.
  schedule = schedules.flow()
  times = even_in_log_snr(schedule, 4, -3.0, 5.0)
  seen = rises(RUNGE_KUTTA['dpm2'], schedule, times, power(-1))
  np.testing.assert_allclose(seen, -2 * np.sinh(0.5), rtol=1e-9)


@pytest.mark.parametrize('name', CLASSICAL)
def test_they_cost_what_they_say(name):
  sampler, schedule = CLASSICAL[name], schedules.vp()
  calls = []

  def counting(xt, t):
    jax.debug.callback(lambda _: calls.append(1), t)
    return Denoised(xt)

  times = time_grid('linspace', schedule, 8)
  jax.jit(lambda xT: sample(sampler, counting, schedule, times, xT, None))(jnp.ones((1, 1)))
  jax.effects_barrier()
  assert len(calls) == num_evaluations(sampler, 8)


@pytest.mark.parametrize('name', CLASSICAL)
def test_from_noise_alone_the_first_step_is_of_first_order_and_all_is_finite(name):
  sampler, schedule = CLASSICAL[name], schedules.flow()
  assert schedule.alpha(1.0) == 0
  times = jnp.linspace(1.0, 0.01, LENGTH)
  xT = begin(schedule, 1.0)
  x = path_of(sampler, schedule, times, xT)
  # All of xT is noise, and x0 is any data.
  straight = (1 - times[1]) * DATA.mean[None] + times[1] * xT
  np.testing.assert_allclose(x[1], straight, rtol=1e-12)
  np.testing.assert_allclose(x[-1], flow(schedule, xT, 1.0, 0.01), atol=0.03)


@pytest.mark.parametrize('name', ['heun', 'deis', 'pndm'])
def test_gradients_reach_the_start_from_noise_alone(name):
  schedule, times = schedules.flow(), jnp.linspace(1.0, 0.1, 6)
  run = jax.jit(
    jax.value_and_grad(lambda xT: jnp.sum(path_of(CLASSICAL[name], schedule, times, xT)[-1]))
  )
  xT = begin(schedule, 1.0)
  (value, slopes), (moved, _) = run(xT), run(xT + 1)
  # It is affine: a difference is the slope.
  np.testing.assert_allclose(jnp.sum(slopes), moved - value, rtol=1e-9)


@pytest.mark.parametrize('name', ['heun', 'rk4', 'deis', 'pndm'])
def test_chains_that_end_in_noise_alone_are_sampled(name):
  schedule = schedules.zero_terminal_snr(schedules.linear(1000))
  times = time_grid('trailing', schedule, 50)
  xT = begin(schedule, 1000)
  end = path_of(CLASSICAL[name], schedule, times, xT)[-1]
  np.testing.assert_allclose(end, flow(schedule, xT, 1000, times[-1]), atol=0.06)


@pytest.mark.parametrize('name', CLASSICAL)
def test_inversion_goes_all_the_way_to_noise_alone(name):
  schedule, times = schedules.flow(), jnp.linspace(0.01, 1.0, LENGTH)
  x = begin(schedule, times[0])
  end = path_of(CLASSICAL[name], schedule, times, x)[-1]
  np.testing.assert_allclose(end, flow(schedule, x, times[0], 1.0), atol=0.1)


@pytest.mark.parametrize('name', CLASSICAL)
def test_single_precision_costs_no_more_than_its_rounding(name):
  schedule = schedules.flow()
  times = np.linspace(1.0, 0.01, LENGTH)
  xT = np.asarray(begin(schedule, 1.0))
  double = path_of(CLASSICAL[name], schedule, jnp.asarray(times), jnp.asarray(xT))
  with precision(double=False):
    single = path_of(CLASSICAL[name], schedule, jnp.asarray(times), jnp.asarray(xT))
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, double, atol=1e-4)


@pytest.mark.parametrize('name', CLASSICAL)
def test_the_state_keeps_the_prediction_at_x(name):
  sampler, schedule = CLASSICAL[name], schedules.vp()
  times = jnp.array([0.9, 0.8])
  xt, denoiser = begin(schedule, times[0]), DATA.denoiser(schedule)

  @jax.jit
  def update(xt):
    state = sampler.init(schedule, times, xt)
    return sampler.update(schedule, denoiser, state, Step(*times, jnp.array(0)), None)

  assert update(xt)._fields[:2] == ('x', 'x0')
  np.testing.assert_allclose(update(xt).x0, denoiser(xt, 0.9).x0, rtol=1e-12)


def test_the_harness_sees_a_wrong_weight():
  skewed = runge_kutta(HEUN._replace(weights=((1.0,), (0.4, 0.6))))
  assert slope(skewed, schedules.vp(), even_in_log_snr) < 1.2
