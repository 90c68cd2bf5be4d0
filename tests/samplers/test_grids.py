import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.bound import bound_term
from ddpm_jax.diffusion.schedules import CONTINUOUS
from ddpm_jax.samplers import TIME_GRIDS, time_grid
from ddpm_jax.samplers.grids import LOWEST_LOG_SNR, bound_costs, cheapest_path, karras
from ddpm_jax.theory.oracle import GaussianData

# The first and the last time of N on a chain of T, for the grids that are even in time.
EVEN = {
  'linspace': lambda last, n: (last, 1 if n > 1 else last),
  'trailing': lambda last, n: (last, round(last / n)),
  'leading': lambda last, n: (1 + (n - 1) * (last // n), 1),
}
# What the others are even in, from t_max to t_min: of t and log_snr(t).
EVEN_IN = {
  'quadratic': lambda t, log_snr: np.sqrt(t),
  'log_snr': lambda t, log_snr: log_snr,
  'karras': lambda t, log_snr: np.exp(-log_snr / 14),
  'information': lambda t, log_snr: np.log1p(np.exp(log_snr)),
}


def test_no_grid_is_left_out():
  assert set(TIME_GRIDS) == set(EVEN) | set(EVEN_IN)


@pytest.mark.parametrize('name', EVEN)
@pytest.mark.parametrize('last', [1, 7, 40, 101])
def test_n_times_strictly_decrease_within_the_chain_for_every_n(name, last):
  schedule = schedules.linear(last)
  for n in range(1, last + 1):
    times = np.asarray(time_grid(name, schedule, n))
    assert times.shape == (n,)
    assert (np.diff(times) < 0).all()
    assert (times[0], times[-1]) == EVEN[name](last, n)
    assert times[-1] >= 1
    assert times[0] <= last


@pytest.mark.parametrize('name', EVEN)
def test_a_full_grid_is_the_whole_chain(name):
  np.testing.assert_array_equal(
    time_grid(name, schedules.linear(30), 30), np.arange(30, 0, -1), strict=False
  )


@pytest.mark.parametrize(('name', 'slack'), [('linspace', 1), ('trailing', 1), ('leading', 0)])
def test_strides_are_even_to_rounding(name, slack):
  for n in range(2, 101):
    strides = -np.diff(time_grid(name, schedules.linear(101), n))
    assert np.ptp(strides) <= slack


@pytest.mark.parametrize(
  ('name', 'times'),
  [
    ('leading', [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    ('linspace', [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
    ('trailing', [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
  ],
)
def test_ten_of_a_thousand_are_the_published(name, times):
  # Lin et al. 2023, https://arxiv.org/abs/2305.08891, table 2, whose index begins at 1 as here.
  np.testing.assert_array_equal(time_grid(name, schedules.linear(), 10), times, strict=False)


@pytest.mark.parametrize('num_steps', [-1, 0, 41])
@pytest.mark.parametrize('name', TIME_GRIDS)
def test_more_times_than_the_chain_has_are_refused_by_the_argument(name, num_steps):
  message = "more than the chain's 40" if num_steps > 40 else r'outside \[1, 1000000\]$'
  with pytest.raises(ValueError, match=rf'^num_steps: {num_steps} is {message}'):
    time_grid(name, schedules.linear(40), num_steps)


def test_an_unknown_grid_names_the_argument_and_the_nearest():
  with pytest.raises(ValueError, match=r"^name: 'trialing' .*'trailing'\?$"):
    time_grid('trialing', schedules.linear(40), 4)


PATHS = {**CONTINUOUS, 'interpolated': lambda: schedules.interpolate(schedules.linear(40))}


@pytest.mark.parametrize('name', EVEN)
@pytest.mark.parametrize('path', PATHS)
def test_continuous_grids_are_even_and_within_the_path(name, path):
  schedule = PATHS[path]()
  last = schedule.t_max
  for n in (1, 2, 3, 17):
    times = np.asarray(time_grid(name, schedule, n), float)
    assert times.shape == (n,)
    assert times.dtype.kind == 'f'
    assert np.all(np.isfinite([schedule.sigma(np.float32(t)) for t in times]))
    np.testing.assert_allclose(np.diff(times), times[1] - times[0] if n > 1 else 0, rtol=2e-4)
    ends = {
      'linspace': (last, schedule.t_min if n > 1 else last),
      'trailing': (last, last / n),
      'leading': (last - (last - schedule.t_min) / n if n > 1 else schedule.t_min, schedule.t_min),
    }
    np.testing.assert_allclose((times[0], times[-1]), ends[name], rtol=1e-6)
    assert np.all(np.diff(times) < 0)


def test_continuous_grids_refuse_what_leads_below_the_first_time():
  with pytest.raises(ValueError, match=r'num_steps: 60 leads below t_min = 1.0'):
    time_grid('trailing', schedules.interpolate(schedules.linear(40)), 60)
  with pytest.raises(ValueError, match=r'num_steps: 0 is outside'):
    time_grid('linspace', schedules.vp(), 0)


@pytest.mark.parametrize('name', EVEN_IN)
@pytest.mark.parametrize('path', PATHS)
def test_the_others_are_even_in_what_they_say_on_every_path(x64, name, path):
  schedule = PATHS[path]()
  times = time_grid(name, schedule, 9)
  assert times.shape == (9,)
  assert (times[0], times[-1]) == (schedule.t_max, schedule.t_min)
  assert np.all(np.diff(times) < 0)
  log_snr = np.asarray(jax.vmap(schedule.log_snr)(times))
  log_snr = np.where(np.isneginf(log_snr), LOWEST_LOG_SNR, log_snr)
  strides = np.diff(EVEN_IN[name](np.asarray(times), log_snr))
  np.testing.assert_allclose(strides, strides[0], rtol=1e-6)


@pytest.mark.parametrize('name', EVEN_IN)
def test_one_time_is_the_last_and_two_are_both_ends(name):
  schedule = schedules.edm()
  np.testing.assert_array_equal(time_grid(name, schedule, 1), [80.0])
  np.testing.assert_allclose(time_grid(name, schedule, 2), [80.0, 0.002], rtol=1e-6)


@pytest.mark.parametrize('name', EVEN_IN)
def test_on_a_chain_they_take_the_nearest_times(name):
  # Halfway between two times in log-SNR, or in the time itself, is as far as one can be.
  schedule = schedules.linear(1000)
  exact = np.asarray(time_grid(name, schedules.interpolate(schedule), 10))
  times = np.asarray(time_grid(name, schedule, 10))
  assert (times[0], times[-1]) == (1000, 1)
  assert np.abs(times - exact).max() <= 0.5 + 1e-3
  assert (np.abs(times - exact) > 0.1).any()


@pytest.mark.parametrize('name', TIME_GRIDS)
@pytest.mark.parametrize('schedule', [schedules.linear(40), schedules.edm()], ids=['chain', 'edm'])
def test_a_grid_may_be_made_inside_a_compiled_function(name, schedule):
  inside = jax.jit(lambda: time_grid(name, schedule, 6))()
  np.testing.assert_allclose(inside, time_grid(name, schedule, 6), rtol=1e-6)


def test_log_snr_steps_are_exponential_in_sigma_over_alpha():
  schedule = schedules.flow()
  times = time_grid('log_snr', schedule, 12)[1:]
  ratio = np.array([schedule.sigma(t) / schedule.alpha(t) for t in times])
  np.testing.assert_allclose(ratio[1:] / ratio[:-1], ratio[1] / ratio[0], rtol=1e-4)


# Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5 with 18 levels from 80 to 0.002.
EDM_SIGMAS = """
80 57.5859847 40.7855738 28.3745846 19.352453 12.9100824 8.40093531 5.31519452 3.25682152
1.92333984 1.08817064 .585348123 .296442284 .139516469 .0599473112 .0229345184 .00752801996 .002
"""


def test_the_karras_grid_of_edm_is_the_published():
  # To nine digits; the log-SNR through which the time is found is rounded to single precision.
  sigmas = np.array(EDM_SIGMAS.split(), float)
  np.testing.assert_allclose(time_grid('karras', schedules.edm(), 18), sigmas, rtol=2e-6)
  with jax.enable_x64(True):
    np.testing.assert_allclose(time_grid('karras', schedules.edm(), 18), sigmas, rtol=2e-8)


def test_rho_leads_from_even_in_sigma_to_even_in_its_logarithm(x64):
  schedule = schedules.edm()
  np.testing.assert_allclose(
    karras(schedule, 9, rho=1), time_grid('linspace', schedule, 9), rtol=1e-9
  )
  far = karras(schedule, 9, rho=1e6)
  np.testing.assert_allclose(far, time_grid('log_snr', schedule, 9), rtol=1e-4)


@pytest.mark.parametrize('name', EVEN_IN)
@pytest.mark.parametrize('chain', [schedules.linear(40), schedules.cosine(1000)])
def test_times_that_fall_together_are_refused_with_the_mend(name, chain):
  n = chain.num_steps
  with pytest.raises(
    ValueError,
    match=rf"num_steps: of {n} times of '{name}' some .*; fewer steps, or schedules.interpolate$",
  ):
    time_grid(name, chain, n)


def test_where_continuous_times_fall_together_only_fewer_steps_help():
  with pytest.raises(ValueError, match='some fall together; fewer steps$'):
    time_grid('log_snr', schedules.cosine_log_snr(), 200_000)


@pytest.mark.parametrize('name', EVEN_IN)
@pytest.mark.parametrize(
  'schedule',
  [schedules.flow(shift=3.0), schedules.zero_terminal_snr(schedules.linear(1000))],
  ids=['flow', 'zero terminal'],
)
def test_zero_terminal_snr_is_the_first_time_and_the_others_have_some(name, schedule):
  times = time_grid(name, schedule, 12)
  log_snr = np.array([schedule.log_snr(t) for t in times])
  assert np.isneginf(log_snr[0])
  assert np.isfinite(log_snr[1:]).all()
  assert (np.diff(log_snr[1:]) > 0).all()


def test_the_costs_of_steps_are_the_terms_of_the_bound(x64):
  schedule, data = schedules.linear(60), GaussianData(jnp.zeros(3), jnp.array([0.1, 1.0, 4.0]))
  times = jnp.array([60, 31, 12, 2])
  errors = [jnp.sum(data.posterior(schedule, data.mean, t).variance) for t in times]
  costs = bound_costs(schedule, times, errors)
  count = 40_000
  x0 = jax.vmap(data.sample)(jax.random.split(jax.random.key(0), count))
  eps = jax.random.normal(jax.random.key(1), x0.shape)

  @jax.jit
  def draws(s, t):
    s, t = jnp.full(count, s), jnp.full(count, t)
    return bound_term(schedule, data.denoiser(schedule), x0, s, t, eps, 'small')

  for i, j in itertools.combinations(range(4), 2):
    terms = draws(times[j], times[i])
    error = jnp.std(terms) / np.sqrt(count)
    assert abs(jnp.mean(terms) - costs[i, j]) < 4 * error
    assert error < 0.02 * costs[i, j]
  assert np.isinf(costs[np.tril_indices(4)]).all()


def every_path(places, num_steps):
  inner = itertools.combinations(range(1, places - 1), num_steps - 2)
  return [(0, *path, places - 1) for path in inner]


@pytest.mark.parametrize('num_steps', [2, 3, 5, 9])
def test_the_cheapest_path_is_the_cheapest_of_all(num_steps):
  costs = np.triu(np.random.default_rng(0).uniform(size=(9, 9)), 1)
  costs[np.tril_indices(9)] = np.inf
  paths = every_path(9, num_steps)
  sums = [sum(costs[i, j] for i, j in itertools.pairwise(path)) for path in paths]
  assert tuple(cheapest_path(costs, num_steps)) == paths[np.argmin(sums)]


def test_the_information_grid_has_the_best_bound_on_standard_normal_data(x64):
  # The dynamic program chooses among 108 times, among them the grid's own.
  schedule = schedules.vp(t_min=1e-3)
  chosen = time_grid('information', schedule, 9)
  others = time_grid('log_snr', schedule, 101)
  times = jnp.sort(jnp.concatenate([chosen[1:-1], others]), descending=True)
  snr = jnp.exp(jax.vmap(schedule.log_snr)(times))
  costs = bound_costs(schedule, times, 1 / (1 + snr))
  best = times[cheapest_path(costs, 9)]
  np.testing.assert_allclose(best, chosen, rtol=1e-9)


@pytest.mark.parametrize('num_steps', [1, 6])
def test_paths_of_no_such_length_are_refused(num_steps):
  with pytest.raises(ValueError, match=rf'num_steps: {num_steps} is not in 2 … 5, the places'):
    cheapest_path(np.ones((5, 5)), num_steps)
  with pytest.raises(ValueError, match='no path of 3 places goes from the first to the last'):
    cheapest_path(np.full((5, 5), np.inf), 3)
