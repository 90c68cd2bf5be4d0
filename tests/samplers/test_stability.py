"""Runs that blow up are told of, exactly where they do, and what is advised does not."""

import functools
import itertools
import pathlib
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import (
  SAMPLERS,
  TIME_GRIDS,
  ancestral,
  ddim,
  heun,
  pndm,
  prior_sample,
  repaint,
  sample,
  stability,
  time_grid,
)
from ddpm_jax.samplers.stability import LIMIT, complaint, enlargement
from ddpm_jax.theory.oracle import GaussianData
from experiments.benchmarks.stability import PATHS, stable_from

DATA = GaussianData(jnp.zeros(4), jnp.ones(4))
COUNT = 4096


@pytest.fixture(autouse=True)
def unwatched():
  """Nothing is left out here."""


@functools.cache
def path():
  return schedules.ve()


def places(grid, count):
  return path(), time_grid(grid, path(), count)


def test_a_heun_step_in_closed_form():
  # eps = n y / (1 + n²); the start has the deviation sqrt(1 + n_t²), the last x0 is y / (1 + n_s²).
  for high, low in ((80.0, 0.5), (3.0, 1.0), (1000.0, 0.01)):
    y = np.sqrt(1 + high**2)
    first = high / (1 + high**2) * y
    second = low / (1 + low**2) * (y + (low - high) * first)
    expected = abs(y + (low - high) * (first + second) / 2) / (1 + low**2)
    found = enlargement(heun(), schedules.edm(0.002, 1000.0), jnp.array([high, low]))
    assert found == pytest.approx(expected, rel=1e-4)


def test_an_ancestral_run_in_closed_form():
  # V ← (gain)² V + variance: the reverse chain's own moments, on data N(0, 1) with x0 = alpha xt.
  chain = schedules.linear(1000)
  times = time_grid('trailing', chain, 7)
  alpha = np.asarray(chain.alphas, np.float64)[np.asarray(times)]
  variance = 1.0
  for a_t, a_s in itertools.pairwise(alpha):
    r = 1 - (a_t / a_s) ** 2 * (1 - a_s**2) / (1 - a_t**2)
    gain = a_s * r * a_t + a_t / a_s * (1 - a_s**2) / (1 - a_t**2)
    variance = gain**2 * variance + (1 - a_s**2) * r
  expected = np.sqrt(alpha[-1] ** 2 * variance)
  assert enlargement(ancestral(), chain, times) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('grid', TIME_GRIDS)
def test_ddim_never_enlarges(grid):
  for name in ('ve', 'flow', 'edm'):
    schedule = schedules.SCHEDULES[name]()
    for count in (1, 2, 3, 5, 20):
      assert enlargement(ddim(), schedule, time_grid(grid, schedule, count)) <= 1 + 1e-4


def measured(make, schedule, count):
  """times -> the deviation of draws by `sample`, compiled, relative to the data's."""
  keys = jax.random.split(jax.random.key(3), COUNT)

  @jax.jit
  def run(times):
    xT = prior_sample(schedule, times[0], keys, (4,))
    x = sample(make(), DATA.denoiser(schedule), schedule, times, xT, keys)
    return jnp.sqrt(jnp.mean(jnp.square(x)))

  return lambda grid: float(run(time_grid(grid, schedule, count)))


def agrees(found, told):
  """Whether a line is there exactly where the draws say so; 4 deviations off the limit."""
  return (found > LIMIT) == told or abs(found / LIMIT - 1) < 4 / np.sqrt(2 * 4 * COUNT)


def check_cells(name, schedule, count):
  make = SAMPLERS[name]
  run, plain = measured(make, schedule, count), measured(ddim, schedule, count)
  for grid in TIME_GRIDS:

    def places(grid, count):
      return schedule, time_grid(grid, schedule, count)

    line = complaint(make(), *places(grid, count), places, grid)
    assert agrees(run(grid), line is not None), (name, grid, run(grid), line)
    if line is None:
      continue
    for other in re.findall(r"the grid '(\w+)'", line):
      assert other != grid and agrees(run(other), False), (name, grid, other)
    for more, same in re.findall(r"(\d+) steps over '(\w+)'", line):
      assert same == grid
      assert agrees(measured(make, schedule, int(more))(grid), False), (name, grid, more)
    assert line.endswith('the sampler ddim') and plain(grid) < 1.05


@pytest.mark.parametrize('name', ['pndm', 'dpmpp_2m'])
def test_a_run_is_told_of_exactly_where_its_draws_blow_up(name):
  check_cells(name, schedules.ve(), 4)


WIDE = {
  'cosine': lambda: schedules.interpolate(schedules.cosine()),
  'linear': lambda: schedules.interpolate(schedules.linear()),
  've': schedules.ve,
  'flow': schedules.flow,
}


@pytest.mark.slow
@pytest.mark.parametrize('which', WIDE)
@pytest.mark.parametrize('name', SAMPLERS)
def test_so_it_is_for_every_sampler_over_every_grid(name, which):
  for count in (2, 3, 5, 9):
    check_cells(name, WIDE[which](), count)


def draw(sampler, num_steps, **options):
  times = time_grid('trailing', path(), num_steps)
  keys = jax.random.split(jax.random.key(0), 2)
  xT = prior_sample(path(), times[0], keys, (4,))
  return sample(sampler, DATA.denoiser(path()), path(), times, xT, keys, **options)


def test_sample_warns_where_all_is_concrete_and_names_what_is_stable():
  with pytest.warns(UserWarning, match='blows up in 2 steps') as caught:
    draw(pndm(), 2)
  (line,) = [str(warning.message) for warning in caught]
  assert caught[0].filename == __file__
  assert "the grid 'leading'" in line and 'the sampler ddim' in line
  with pytest.warns(UserWarning, match=r"5 steps over 'trailing'"):
    draw(heun(), 2)


def test_nothing_is_said_of_stable_runs_under_jit_or_of_samplers_that_know_a_picture():
  with warnings.catch_warnings():
    warnings.simplefilter('error', UserWarning)
    draw(ddim(), 2)
    jax.jit(lambda: draw(pndm(), 2))()
    draw(repaint(pndm(), jnp.ones((1, 4)), jnp.ones((1, 4), bool), 1), 2)


def test_samplers_made_alike_share_a_program():
  enlargement(heun(), *places('trailing', 4))
  before = stability.compiled.cache_info()
  for grid, count in (('leading', 9), ('linspace', 50)):
    enlargement(heun(), *places(grid, count))
  after = stability.compiled.cache_info()
  assert (after.misses, after.hits) == (before.misses, before.hits + 2)
  enlargement(ddim(0.3), *places('trailing', 4))
  enlargement(ddim(0.4), *places('trailing', 4))
  assert stability.compiled.cache_info().misses == before.misses + 2


def test_samplers_that_differ_in_a_default_alone_are_run_apart():
  def make(gain):
    def update(schedule, denoiser, state, step, noise, *, gain=gain):
      return state._replace(x=gain * state.x)

    return ddim()._replace(update=update)

  one, two = (enlargement(make(gain), *places('trailing', 3)) for gain in (1.0, 2.0))
  assert two == pytest.approx(4 * one, rel=1e-5)


def test_the_table_has_the_least_number_from_which_on_all_are_stable():
  sizes = [enlargement(heun(), *places('linspace', count)) for count in range(2, 9)]
  (found,) = {int(stable_from(heun(), path(), 'linspace', most)) for most in (7, 8)}
  assert sizes[found - 3] > LIMIT and max(sizes[found - 2 :]) <= LIMIT
  assert stable_from(heun(), path(), 'linspace', found - 1) == '–'
  assert stable_from(ddim(), path(), 'linspace', 4) == '2'
  # Of a chain that ends at zero SNR there is no continuous reading, and so no such grid.
  assert stable_from(ddim(), schedules.zero_terminal_snr(schedules.cosine()), 'karras', 4) == ''


def test_a_run_that_is_not_a_number_is_told_of():
  broken = ddim()._replace(
    update=lambda *arguments: arguments[2]._replace(x=jnp.nan * arguments[2].x)
  )
  assert enlargement(broken, *places('trailing', 4)) == np.inf
  assert 'ends inf times' in complaint(broken, *places('trailing', 4), places, 'trailing')


def documented(name):
  """The rows of the page's table of a path, sampler -> cells."""
  page = (pathlib.Path(__file__).parents[2] / 'docs' / 'samplers.md').read_text()
  _, table = page.split(f'| {name} | ', 1)
  rows = [line.strip('| ').split(' | ') for line in table.split('\n\n')[0].splitlines()]
  assert [cell.strip('`') for cell in rows[0]] == list(TIME_GRIDS)
  return {sampler.strip('`'): cells for sampler, *cells in rows[2:]}


@pytest.mark.slow
@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('name', ['cosine', 've'])
def test_every_cell_of_the_documented_table_is_found(name, sampler):
  path = PATHS[name]()
  cells = [stable_from(SAMPLERS[sampler](), path, grid, 50) for grid in TIME_GRIDS]
  always = all(cell in ('2', '') for cell in cells)
  assert documented(name).get(sampler) == (None if always else cells)
