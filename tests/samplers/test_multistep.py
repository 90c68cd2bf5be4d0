"""Linear multistep methods: their weights, their orders, how they begin."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers.multistep import VARIABLES, deis, ipndm, lms, mean_basis, plms, pndm
from ddpm_jax.samplers.runge_kutta import euler
from tests.samplers.orders import begin, even_in_log_snr, even_in_sigma, slope
from tests.samplers.test_runge_kutta import path_of, power, rises

pytestmark = pytest.mark.usefixtures('x64')

# Each method, with the steps after which its history is full.
EXACT = {
  **{f'lms{order}': (lms(order), order) for order in (2, 3, 4)},
  **{f'deis{order}': (deis(order), order) for order in (2, 3, 4)},
  'deis3 in log n': (deis(3, 'log_sigma'), 3),
}
FIXED = {
  **{f'ipndm{order}': (ipndm(order), order) for order in (1, 2, 3, 4)},
  **{f'plms{order}': (plms(order), order) for order in (2, 3)},
  **{f'pndm{order}': (pndm(order), order) for order in (2, 4)},
}
# Where the steps are small against the data's narrowest deviation, 0.22, from n = 40 on.
LOG_SNR = partial(even_in_log_snr, first=-1.5, last=1.5)
SIGMA = partial(even_in_sigma, first=2.0, last=1.0)


def uneven(count=9):
  """Values of n."""
  return np.geomspace(9.0, 0.1, count) * (1 + 0.1 * np.sin(np.arange(count)))


@pytest.mark.parametrize('name', EXACT)
def test_with_exact_history_errors_fall_with_the_order_on_any_grid(name):
  sampler, order = EXACT[name]
  assert sampler.order == order
  assert order - 0.1 < slope(sampler, schedules.vp(), LOG_SNR, seeded=order - 1) < order + 1.2


@pytest.mark.parametrize('name', FIXED)
def test_with_exact_history_fixed_weights_have_their_order_on_even_grids(name):
  sampler, order = FIXED[name]
  assert (sampler.order, sampler.order_even) == (min(order, 2), order)
  assert order - 0.1 < slope(sampler, schedules.vp(), SIGMA, seeded=order - 1) < order + 1.2


@pytest.mark.parametrize('name', ['ipndm3', 'ipndm4', 'pndm4'])
def test_fixed_weights_are_of_second_order_on_other_grids(name):
  sampler, order = FIXED[name]
  assert 1.9 < slope(sampler, schedules.vp(), LOG_SNR, seeded=order - 1) < 2.2


@pytest.mark.parametrize('name', ['lms4', 'deis4', 'pndm4'])
def test_backwards_errors_fall_too(name):
  def grid(schedule, n):
    return LOG_SNR(schedule, n)[::-1]

  sampler, order = (EXACT | FIXED)[name]
  expected = order if name in EXACT else 2
  assert expected - 0.1 < slope(sampler, schedules.vp(), grid, seeded=order - 1) < expected + 1.2


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_lms_integrates_polynomials_in_n_on_any_grid(order):
  n = uneven()
  for degree in range(order + 1):
    exact = np.diff(n ** (degree + 1)) / (degree + 1)
    seen = rises(lms(order), schedules.edm(), jnp.asarray(n), power(degree))[order - 1 :]
    assert np.allclose(seen, exact[order - 1 :], rtol=1e-7) == (degree < order)


def log_power(degree):
  return lambda log_sigma: log_sigma**degree


# ∫ log(n)^k dn.
LOG_INTEGRALS = [
  lambda n: n,
  lambda n: n * np.log(n) - n,
  lambda n: n * (np.log(n) ** 2 - 2 * np.log(n) + 2),
  lambda n: n * (np.log(n) ** 3 - 3 * np.log(n) ** 2 + 6 * np.log(n) - 6),
]


@pytest.mark.parametrize('order', [2, 3])
def test_deis_integrates_polynomials_in_its_variable(order):
  n = uneven()
  for degree, integral in enumerate(LOG_INTEGRALS[: order + 1]):
    exact = np.diff(integral(n))[order - 1 :]
    sampler = deis(order, 'log_sigma')
    seen = rises(sampler, schedules.edm(), jnp.asarray(n), log_power(degree))[order - 1 :]
    assert np.allclose(seen, exact, rtol=1e-7) == (degree < order)


def test_deis_in_time_integrates_polynomials_in_t():
  # On the path `flow` t = n / (1 + n), whose powers have these integrals over n.
  n = uneven()
  integrals = [n, n - np.log1p(n), n - 2 * np.log1p(n) - 1 / (1 + n)]
  for degree, integral in enumerate(integrals):
    seen = rises(deis(3), schedules.flow(), jnp.asarray(n / (1 + n)), sigmoid_power(degree))
    np.testing.assert_allclose(seen[2:], np.diff(integral)[2:], rtol=1e-9)


def sigmoid_power(degree):
  return lambda log_sigma: jax.nn.sigmoid(log_sigma) ** degree


@pytest.mark.parametrize('sampler', [ipndm(4), ipndm(3)], ids=['ipndm4', 'ipndm3'])
def test_fixed_weights_integrate_polynomials_on_even_grids(sampler):
  order, n = sampler.order_even, np.linspace(9.0, 1.0, 9)
  for degree in range(order + 1):
    exact = np.diff(n ** (degree + 1)) / (degree + 1)
    seen = rises(sampler, schedules.edm(), jnp.asarray(n), power(degree))[order - 1 :]
    assert np.allclose(seen, exact[order - 1 :], rtol=1e-9) == (degree < order)


STARTS = {
  # The steps that miss ∫ n dn, and those that miss ∫ n³ dn.
  'ipndm': (ipndm(), [0], [0, 1, 2]),
  'plms': (plms(), [], [0, 1, 2]),
  'pndm': (pndm(), [], []),
}


@pytest.mark.parametrize('name', STARTS)
def test_the_starts_are_of_the_orders_that_they_claim(name):
  sampler, *misses = STARTS[name]
  n = np.linspace(9.0, 1.0, 9)
  for degree, expected in zip((1, 3), misses, strict=True):
    missed = rises(sampler, schedules.edm(), jnp.asarray(n), power(degree)) - np.diff(
      n ** (degree + 1) / (degree + 1)
    )
    np.testing.assert_array_equal(np.flatnonzero(np.abs(missed) > 1e-9), expected)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (lms(1), euler()),
    (deis(1), euler()),
    (ipndm(1), euler()),
    (deis(3, 'sigma'), lms(3)),
    (plms(2), pndm(2)),
  ],
  ids=['lms1 = euler', 'deis1 = euler', 'ipndm1 = euler', 'deis in n = lms', 'plms2 = pndm2'],
)
def test_they_coincide_where_they_should(one, other):
  schedule = schedules.vp()
  times = even_in_log_snr(schedule, 8, -3.0, 4.0)
  xT = begin(schedule, times[0])
  x = path_of(one, schedule, times, xT)
  np.testing.assert_allclose(x, path_of(other, schedule, times, xT), rtol=1e-12, atol=1e-12)


def test_lms_and_ipndm_coincide_on_even_grids():
  schedule = schedules.vp()
  times = even_in_sigma(schedule, 8)
  xT = begin(schedule, times[0])
  x = path_of(lms(4), schedule, times, xT)
  np.testing.assert_allclose(x, path_of(ipndm(4), schedule, times, xT), atol=1e-10)


@pytest.mark.parametrize('variable', VARIABLES)
def test_a_chain_reads_as_its_interpolation(variable):
  # A chain's time within a step is a whole one, by which the weights of `time` are off.
  chain = schedules.linear(1000)
  times = np.arange(1000, 0, -37)
  paths = []
  for schedule, times_there in (
    (chain, jnp.asarray(times)),
    (schedules.interpolate(chain), jnp.asarray(times, float)),
  ):
    xT = begin(chain, 1000)
    paths.append(path_of(deis(3, variable), schedule, times_there, xT))
  np.testing.assert_allclose(*paths, atol=1e-2 if variable == 'time' else 1e-9)


def test_nodes_at_infinity_do_not_bend_the_polynomial():
  def identity(log_sigma):
    return jnp.exp(log_sigma)

  end = jnp.log(0.5)
  full = mean_basis(identity, jnp.log(jnp.array([1.0, 2.0, 1e9])), end)
  limit = mean_basis(identity, jnp.array([0.0, jnp.log(2.0), jnp.inf]), end)
  np.testing.assert_allclose(full, limit, atol=1e-8)
  # ∫ (2 - n) dn / ½ and ∫ (n - 1) dn / ½ from ½ to 1.
  np.testing.assert_allclose(limit, [1.25, -0.25, 0.0], rtol=1e-12)


@pytest.mark.parametrize('end', [0.0, jnp.inf])
def test_at_an_infinite_end_only_the_last_eps_counts(end):
  log_sigmas = jnp.array([jnp.inf, jnp.inf, jnp.inf]) if end == 0 else jnp.array([0.0, -1.0, -2.0])
  weights = mean_basis(lambda log_sigma: jnp.exp(log_sigma), log_sigmas, jnp.asarray(end))
  np.testing.assert_array_equal(weights[1:], 0)


@pytest.mark.parametrize(
  ('factory', 'order', 'orders'),
  [
    (lms, 0, '1, 2, 3, 4'),
    (deis, 5, '1, 2, 3, 4'),
    (ipndm, 5, '1, 2, 3, 4'),
    (plms, 1, '2, 3, 4'),
    (pndm, 3, '2, 4'),
  ],
)
def test_other_orders_are_refused_by_their_name(factory, order, orders):
  with pytest.raises(ValueError, match=rf'^order: {order} is not one of {orders}$'):
    factory(order)


def test_other_variables_are_refused_by_their_name():
  message = r"^variable: 'tme' is not one of sigma, log_sigma, time; did you mean"
  with pytest.raises(ValueError, match=message):
    deis(2, 'tme')
