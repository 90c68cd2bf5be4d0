import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import CONTINUOUS
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import TIME_GRIDS, time_grid

# The first and the last time of N on a chain of T.
ENDS = {
  'linspace': lambda last, n: (last, 1 if n > 1 else last),
  'trailing': lambda last, n: (last, round(last / n)),
  'leading': lambda last, n: (1 + (n - 1) * (last // n), 1),
}


@pytest.mark.parametrize('name', TIME_GRIDS)
@pytest.mark.parametrize('last', [1, 7, 40, 101])
def test_n_times_strictly_decrease_within_the_chain_for_every_n(name, last):
  schedule = schedules.linear(last)
  for n in range(1, last + 1):
    times = np.asarray(time_grid(name, schedule, n))
    assert times.shape == (n,)
    assert (np.diff(times) < 0).all()
    assert (times[0], times[-1]) == ENDS[name](last, n)
    assert times[-1] >= 1
    assert times[0] <= last


@pytest.mark.parametrize('name', TIME_GRIDS)
def test_a_full_grid_is_the_whole_chain(name):
  np.testing.assert_array_equal(
    time_grid(name, schedules.linear(30), 30), np.arange(30, 0, -1), strict=False
  )


@pytest.mark.parametrize(('name', 'slack'), [('linspace', 1), ('trailing', 1), ('leading', 0)])
def test_strides_are_even_to_rounding(name, slack):
  for n in range(2, 101):
    strides = -np.diff(time_grid(name, schedules.linear(101), n))
    assert np.ptp(strides) <= slack


@pytest.mark.parametrize('num_steps', [-1, 0, 41])
@pytest.mark.parametrize('name', TIME_GRIDS)
def test_more_times_than_the_chain_has_are_refused_by_the_field(name, num_steps):
  message = rf'^config\.sampler\.num_steps: {num_steps} is not in 1 … 40'
  with pytest.raises(InputError, match=message):
    time_grid(name, schedules.linear(40), num_steps)


def test_an_unknown_grid_names_the_field_and_the_nearest():
  with pytest.raises(InputError, match=r"^config\.sampler\.grid: 'trialing' .*'trailing'\?$"):
    time_grid('trialing', schedules.linear(40), 4)


PATHS = {**CONTINUOUS, 'interpolated': lambda: schedules.interpolate(schedules.linear(40))}


@pytest.mark.parametrize('name', TIME_GRIDS)
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
  with pytest.raises(InputError, match=r'num_steps: 60 leads below t_min = 1.0'):
    time_grid('trailing', schedules.interpolate(schedules.linear(40)), 60)
  with pytest.raises(InputError, match=r'num_steps: 0 is not in 1 …$'):
    time_grid('linspace', schedules.vp(), 0)
