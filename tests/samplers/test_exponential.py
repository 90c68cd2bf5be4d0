"""What holds of every exponential integrator."""

import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import precision
from scipy.integrate import quad

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers import Sampler, ddim, sample
from ddpm_jax.samplers.dpm import dpm_solver
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2s, dpmpp_3m
from ddpm_jax.samplers.exponential import moments, phis
from ddpm_jax.samplers.unified_corrector import VARIANTS, unipc
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers import orders
from tests.samplers.bent import PATHS, bent, times_at, walk

pytestmark = pytest.mark.usefixtures('x64')


class Method(NamedTuple):
  """A sampler and what its theory says.

  Attributes:
    sampler: the sampler.
    order: of convergence.
    of: the prediction that its polynomial approximates.
    degree: of the polynomials in λ that, being predicted, are integrated exactly.
    seeded: how many updates fill its history.
  """

  sampler: Sampler
  order: int
  of: str
  degree: int
  seeded: int = 0


METHODS = {
  'dpm_solver_1': Method(dpm_solver(1), 1, 'eps', 0),
  'dpm_solver_2': Method(dpm_solver(2), 2, 'eps', 0),
  'dpm_solver_3': Method(dpm_solver(3), 3, 'eps', 1),
  'dpm_solver_3, r1 = 0.6': Method(dpm_solver(3, r1=0.6), 3, 'eps', 1),
  'dpm_solver_2m': Method(dpm_solver(2, multistep=True), 2, 'eps', 0, seeded=1),
  'dpm_solver_3m': Method(dpm_solver(3, multistep=True), 3, 'eps', 2, seeded=2),
  'dpmpp_2s': Method(dpmpp_2s(), 2, 'x0', 0),
  'dpmpp_2s, r1 = 0.3': Method(dpmpp_2s(0.3), 2, 'x0', 0),
  'dpmpp_2m': Method(dpmpp_2m(), 2, 'x0', 0, seeded=1),
  'dpmpp_3m': Method(dpmpp_3m(), 3, 'x0', 2, seeded=2),
  # The derivation's order 3 is lost with half of the second derivative, which a line doesn't have.
  'dpmpp_3m, published': Method(dpmpp_3m(published=True), 2, 'x0', 1, seeded=2),
  'unip_2, bh1': Method(unipc(2, 'bh1', corrector=False), 2, 'x0', 0, seeded=1),
  **{
    f'unipc_{order}, {variant}': Method(
      unipc(order, variant), order + 1, 'x0', 2 if order == 3 else 0, seeded=order
    )
    for order in (1, 2, 3)
    for variant in VARIANTS
  },
}

# One of each way to have a history or points between.
FEW = ('dpm_solver_2', 'dpm_solver_3', 'dpm_solver_3m', 'dpmpp_2s', 'dpmpp_3m', 'unipc_3, bh2')


def each(names=tuple(METHODS)):
  return pytest.mark.parametrize('method', [pytest.param(METHODS[n], id=n) for n in names])


def test_each_sampler_says_its_order_and_cost():
  for method in METHODS.values():
    assert method.sampler.order == method.order
    assert not method.sampler.stochastic
    assert method.sampler.between == (method.sampler.evaluations > 1)
  assert [METHODS[n].sampler.evaluations for n in FEW] == [2, 3, 1, 2, 1, 1]


@each()
def test_an_update_costs_the_evaluations_that_it_says(method):
  schedule, calls = schedules.vp(), []

  def counting(xt, t):
    calls.append(t)
    return bent(schedule)(xt, t)

  walk(method.sampler, counting, schedule, times_at(schedule, [-2.0, -1.0, 0.0]), jnp.ones((1, 2)))
  assert len(calls) == 2 * method.sampler.evaluations


# Orders.


def evenly(schedule, n):
  """Even in log-SNR, away from where the leading errors of some methods almost cancel."""
  return orders.even_in_log_snr(schedule, n, -4.0, 3.0)


def backwards(schedule, n):
  return orders.even_in_log_snr(schedule, n, 3.0, -4.0)


def unevenly(schedule, n):
  """Smoothly uneven: the longest step is four times the shortest."""
  u = jnp.linspace(0.0, 1.0, n + 1)
  warped = u + 0.6 * jnp.sin(2 * jnp.pi * u) / (2 * jnp.pi)
  return jax.vmap(schedule.time)(-4.0 + 7.0 * warped)


COUNTS = (80, 160, 320)


@functools.cache
def compiled(name):
  """One program for each number of steps, whatever the grid and the seeding."""
  return jax.jit(functools.partial(orders.error, METHODS[name].sampler, schedules.flow()))


def slope(name, grid, seeded):
  errors = [compiled(name)(grid(schedules.flow(), n), seeded) for n in COUNTS]
  return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


@pytest.mark.parametrize('name', METHODS)
@pytest.mark.parametrize('grid', [evenly, unevenly, backwards])
def test_with_exact_history_it_converges_at_its_order(name, grid):
  order = METHODS[name].order
  assert order - 0.1 < slope(name, grid, METHODS[name].seeded) < order + 0.3


@pytest.mark.parametrize('name', [name for name in METHODS if METHODS[name].seeded])
@pytest.mark.parametrize('grid', [evenly, unevenly])
def test_by_its_own_start_it_converges_at_order_two_at_least(name, grid):
  assert slope(name, grid, 0) > min(METHODS[name].order, 2) - 0.1


# Exactness.


def polynomial(schedule, of, degree):
  """A denoiser that predicts (λ + 1)^degree, as x0 or as eps, and its flow by quadrature."""

  def curve(lam):
    return (lam + 1.0) ** degree

  def denoiser(xt, t):
    value = jnp.full_like(xt, curve(schedule.log_snr(t) / 2))
    if of == 'x0':
      return Denoised(value)
    return Denoised((xt - schedule.sigma(t) * value) / schedule.alpha(t))

  def flow(x, t, s):
    first, last = (float(schedule.log_snr(time)) / 2 for time in (t, s))
    # d(x / sigma) = e^λ x0 dλ and d(x / alpha) = -e^-λ eps dλ.
    sign, level = (1.0, schedule.sigma) if of == 'x0' else (-1.0, schedule.alpha)
    travelled = quad(lambda lam: sign * math.exp(sign * lam) * curve(lam), first, last)[0]
    return level(s) * (x / level(t) + travelled)

  return denoiser, flow


@each()
@pytest.mark.parametrize('path', ['flow', 'sub_vp'])
def test_polynomials_in_the_log_snr_are_integrated_exactly(method, path):
  schedule = PATHS[path]()
  times = times_at(schedule, [-3.0, -2.5, -0.9, 0.1, 1.0, 2.2])
  xT = jnp.array([[0.3, -1.2]])
  for degree in range(method.degree + 2):
    denoiser, flow = polynomial(schedule, method.of, degree)

    def put_right(s, index, x, flow=flow):
      return flow(xT, times[0], s) if index < method.seeded else x

    x = walk(method.sampler, denoiser, schedule, times, xT, put_right)[-1].x
    error = np.abs(x - flow(xT, times[0], times[-1])).max()
    if degree <= method.degree:
      assert error < 1e-12
    else:
      assert error > 1e-4


@each()
@pytest.mark.parametrize('path', PATHS)
def test_a_point_is_reached_in_one_step_either_way(method, path):
  # At a point mass both predictions stay as they are along the flow.
  schedule, mean, eps = PATHS[path](), jnp.array([[0.5, -2.0]]), jnp.array([[1.5, -0.3]])
  point = GaussianData(mean[0], jnp.array(0.0))
  for ends in ([-4.0, 5.0], [3.0, -2.0]):
    t, s = times_at(schedule, ends)
    xt = schedule.alpha(t) * mean + schedule.sigma(t) * eps
    x = walk(method.sampler, point.denoiser(schedule), schedule, [t, s], xt)[-1].x
    np.testing.assert_allclose(x, schedule.alpha(s) * mean + schedule.sigma(s) * eps, rtol=1e-10)


# Identities.


@each(FEW)
def test_paths_with_one_log_snr_give_one_trajectory_but_for_the_scale(method):
  log_snrs, y = [-5.0, -4.0, -1.5, 0.2, 1.0, 4.0], jnp.array([[2.0, -7.0, 0.5]])
  runs = []
  for make in PATHS.values():
    schedule = make()
    times = times_at(schedule, log_snrs)
    states = walk(method.sampler, bent(schedule), schedule, times, schedule.alpha(times[0]) * y)
    pairs = zip(states, times[1:], strict=True)
    runs.append(jnp.stack([state.x / schedule.alpha(s) for state, s in pairs]))
  for run in runs[1:]:
    np.testing.assert_allclose(run, runs[0], rtol=1e-9)


@pytest.mark.parametrize('sampler', [dpmpp_2s, functools.partial(dpm_solver, 2)])
def test_single_step_of_order_two_tends_to_taylors_method_as_its_point_comes_near(sampler):
  # The flow's own derivative of the prediction, by forward differentiation along it.
  schedule = schedules.vp()
  t, s = times_at(schedule, [-1.0, 0.5])
  xt = jnp.array([[0.4, -0.9, 2.0]])
  taylor = taylors(schedule, xt, t, s, sampler == dpmpp_2s)
  near, nearer = (
    np.abs(walk(sampler(r1=r1), bent(schedule), schedule, [t, s], xt)[-1].x - taylor).max()
    for r1 in (1e-3, 1e-4)
  )
  assert 0 < nearer < 1e-4
  assert near / nearer == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize('sampler', [dpmpp_2m, functools.partial(dpm_solver, 2, multistep=True)])
def test_multistep_of_order_two_tends_to_it_as_the_step_before_becomes_short(sampler):
  schedule, xt = schedules.vp(), jnp.array([[0.4, -0.9, 2.0]])
  differences = []
  for short in (1e-3, 1e-4):
    times = times_at(schedule, [-1.0 - short, -1.0, 0.5])
    first, last = walk(sampler(), bent(schedule), schedule, times, xt)
    taylor = taylors(schedule, first.x, times[1], times[2], sampler == dpmpp_2m)
    differences.append(np.abs(last.x - taylor).max())
  assert 0 < differences[1] < 1e-4
  assert differences[0] / differences[1] == pytest.approx(10, rel=0.05)


def taylors(schedule, xt, t, s, of_data):
  """The first-order step and ½ h (1 - e^-h) alpha_s dx0/dλ, or its like for the noise."""
  lam, end = (float(schedule.log_snr(time)) / 2 for time in (t, s))
  h = end - lam

  def predictions(x, lam):
    time = schedule.time(2 * lam)
    x0 = bent(schedule)(x, time).x0
    return x0, (x - schedule.alpha(time) * x0) / schedule.sigma(time)

  def levels(lam):
    time = schedule.time(2 * lam)
    return schedule.alpha(time), schedule.sigma(time)

  x0, eps = predictions(xt, lam)
  dalpha, dsigma = jax.jvp(levels, (lam,), (1.0,))[1]
  dx0, deps = jax.jvp(predictions, (xt, lam), (dalpha * x0 + dsigma * eps, 1.0))[1]
  first = schedule.alpha(s) * x0 + schedule.sigma(s) * eps
  if of_data:
    return first + schedule.alpha(s) * h * (1 - math.exp(-h)) / 2 * dx0
  return first - schedule.sigma(s) * h * (math.exp(h) - 1) / 2 * deps


@each([name for name in METHODS if not METHODS[name].sampler.between])
def test_a_chain_is_its_continuous_reading_where_nothing_is_asked_between(method):
  chain = schedules.linear(60, 0.002, 0.2)
  continuous = schedules.interpolate(chain)
  times, xT = jnp.array([60, 44, 31, 12, 3]), jnp.array([[0.3, -1.7]])
  on_chain = walk(method.sampler, bent(chain), chain, times, xT)
  between = walk(method.sampler, bent(continuous), continuous, times.astype(float), xT)
  np.testing.assert_allclose(on_chain[-1].x, between[-1].x, rtol=1e-9)


@each([name for name in FEW if METHODS[name].sampler.between])
def test_a_chain_predicts_between_at_its_nearest_time_and_loses_little(method):
  chain = schedules.linear(1000)
  continuous = schedules.interpolate(chain)
  times, xT = jnp.linspace(1000, 10, 12).astype(int), jnp.array([[0.3, -1.7]])
  on_chain, between = (
    walk(method.sampler, bent(schedule), schedule, times, xT)[-1].x
    for schedule in (chain, continuous)
  )
  np.testing.assert_allclose(on_chain, between, atol=1e-3)


# Ends.


def zero_terminal():
  return {
    'flow': (schedules.flow(), jnp.array([1.0, 0.8, 0.5, 0.2])),
    'chain': (
      schedules.zero_terminal_snr(schedules.linear(60, 0.002, 0.2)),
      jnp.array([60, 44, 31, 12]),
    ),
  }


@each()
@pytest.mark.parametrize('path', zero_terminal())
def test_the_step_from_zero_snr_is_of_first_order_and_is_forgotten(method, path):
  schedule, times = zero_terminal()[path]
  data, xT = orders.DATA.denoiser(schedule), jnp.array([[1.3, -0.2, 0.7]])
  assert np.isneginf(schedule.log_snr(times[0]))
  states, first_order = (walk(s, data, schedule, times, xT) for s in (method.sampler, ddim()))
  np.testing.assert_allclose(states[0].x, first_order[0].x, rtol=1e-12)
  # Then it goes on as if it began there.
  fresh = walk(method.sampler, data, schedule, times[1:], states[0].x)
  for state, expected in zip(states[1:], fresh, strict=True):
    np.testing.assert_allclose(state.x, expected.x, rtol=1e-10)


@each(FEW)
def test_the_step_to_zero_snr_is_of_first_order(method):
  schedule = schedules.flow()
  times, x = jnp.array([0.3, 0.6, 1.0]), jnp.array([[1.3, -0.2, 0.7]])
  before, last = walk(method.sampler, orders.DATA.denoiser(schedule), schedule, times, x)
  if METHODS['unipc_3, bh2'] is not method:
    expected = walk(ddim(), orders.DATA.denoiser(schedule), schedule, times[1:], before.x)[-1].x
    np.testing.assert_allclose(last.x, expected, rtol=1e-12)
  assert np.isfinite(last.x).all()


@each(FEW)
def test_gradients_through_zero_snr_are_those_of_the_affine_run(method):
  schedule, times = zero_terminal()['flow']
  keys, xT = jax.random.split(jax.random.key(0), 1), jnp.array([[1.3, -0.2, 0.7]])

  def run(x):
    return sample(method.sampler, orders.DATA.denoiser(schedule), schedule, times, x, keys)

  np.testing.assert_allclose(
    jax.grad(lambda x: jnp.sum(run(x)))(xT), run(xT + 1) - run(xT), rtol=1e-9
  )


@each(FEW)
def test_single_precision_keeps_its_digits_over_many_steps(method):
  # Differences of nearly equal predictions over nearly equal times do not grow.
  results = []
  for x64 in (False, True):
    with precision(x64):
      schedule = schedules.vp()
      times = jnp.asarray(np.linspace(1.0, 0.01, 1000))
      xT = jnp.asarray([[1.3, -0.2, 0.7]])
      keys = jax.random.split(jax.random.key(0), 1)
      x = sample(method.sampler, bent(schedule), schedule, times, xT, keys, final='keep')
      results.append(np.asarray(x, float))
  np.testing.assert_allclose(results[0], results[1], atol=2e-4)


# The functions that the family is made of.

POINTS = (1e-9, 1e-4, 0.1, 1.0, 1.999, 2.001, 7.0, 20.0)


@pytest.mark.parametrize('z', [sign * z for z in POINTS for sign in (-1, 1)])
@pytest.mark.parametrize(('x64', 'rtol'), [(True, 4e-14), (False, 3e-6)])
def test_phi_is_the_integral_that_defines_it(z, x64, rtol):
  def phi(k):
    def weight(u):
      return math.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1)

    return quad(weight, 0, 1, epsabs=0, epsrel=2e-14)[0]

  with precision(x64):
    z = float(jnp.asarray(z))
    np.testing.assert_allclose(phis(jnp.asarray(z), 4), [phi(k) for k in range(1, 5)], rtol=rtol)


def test_steps_of_no_length_have_finite_coefficients_and_derivatives():
  for sign in (-1.0, 1.0):
    zero = jnp.array(0.0)
    assert list(moments(zero, sign, 4)) == [0.0] * 4
    np.testing.assert_allclose(phis(zero, 4), [1, 1 / 2, 1 / 6, 1 / 24])
    slopes = jax.jacfwd(lambda h, sign=sign: jnp.stack(moments(h, sign, 4)))(zero)
    np.testing.assert_allclose(slopes, [1, 0, 0, 0])


def test_every_option_is_a_setting_of_plain_type():
  for factory in (dpm_solver, dpmpp_2s, dpmpp_2m, dpmpp_3m, unipc):
    for parameter in inspect.signature(factory).parameters.values():
      assert parameter.default is not parameter.empty
