"""Noise that belongs to a key: increments of one Brownian path, whatever the grid."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import CONTINUOUS
from ddpm_jax.samplers import NOISES, Step

pytestmark = pytest.mark.usefixtures('x64')

COUNT = 2000


def noise_of(name, schedule, keys, dims=2, index=0):
  like = jnp.zeros((len(keys), dims))
  return NOISES[name](schedule, keys, like, Step(None, None, jnp.array(index)))


def test_what_two_steps_draw_adds_up_to_what_one_step_draws(make_keys):
  # Weights found by least squares: they fit without a rest and keep the variance at one.
  noise = noise_of('brownian', schedules.vp(), make_keys(COUNT))
  for t, m, s in [(0.9, 0.5, 0.1), (1.0, 0.99, 0.7), (0.3, 0.02, 1e-3)]:
    whole = np.ravel(noise(t, s))
    parts = np.stack([np.ravel(noise(t, m)), np.ravel(noise(m, s))], axis=1)
    weights, *_ = np.linalg.lstsq(parts, whole, rcond=None)
    np.testing.assert_allclose(parts @ weights, whole, atol=1e-9)
    assert weights.min() > 0.05
    assert np.square(weights).sum() == pytest.approx(1, abs=1e-9)


def test_increments_of_a_grid_are_independent_standard_normals(make_keys):
  noise = noise_of('brownian', schedules.vp(), make_keys(COUNT), dims=1)
  times = np.linspace(1, 1e-3, 12)
  z = np.concatenate([noise(t, s) for t, s in itertools.pairwise(times)], axis=1)
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(COUNT)
  assert np.abs(z.T @ z / COUNT - np.eye(11)).max() < 5 * np.sqrt(2 / COUNT)


def test_steps_of_a_chain_of_thousands_are_told_apart(make_keys):
  schedule = schedules.linear(4000, rescale=True)
  noise = noise_of('brownian', schedule, make_keys(COUNT), dims=1)
  z = np.concatenate([noise(t + 1, t) for t in (3999, 3998, 2000, 1999, 2, 1)], axis=1)
  assert np.abs(z.T @ z / COUNT - np.eye(6)).max() < 5 * np.sqrt(2 / COUNT)


@pytest.mark.parametrize('path', [*CONTINUOUS, 'chain', 'zero terminal SNR'])
def test_it_is_finite_from_end_to_end_of_every_path(make_keys, path):
  chain = schedules.linear(20)
  schedule = {
    'chain': chain,
    'zero terminal SNR': schedules.zero_terminal_snr(chain),
    **{name: make() for name, make in CONTINUOUS.items()},
  }[path]
  noise = noise_of('brownian', schedule, make_keys(COUNT))
  first = schedule.t_min if path in CONTINUOUS else 0
  z = np.asarray(noise(schedule.t_max, first))
  assert np.abs(np.cov(z.T) - np.eye(2)).max() < 5 * np.sqrt(2 / COUNT)
  np.testing.assert_array_equal(noise(schedule.t_max, schedule.t_max), 0)


@pytest.mark.parametrize('name', NOISES)
def test_noise_belongs_to_its_key(make_keys, name):
  keys, schedule = make_keys(6), schedules.vp()
  together = noise_of(name, schedule, keys)(0.5, 0.4)
  order = jnp.array([4, 1])
  np.testing.assert_array_equal(noise_of(name, schedule, keys[order])(0.5, 0.4), together[order])
  assert len(np.unique(together)) == 12


def test_every_draw_and_part_and_step_of_white_noise_is_new_and_none_is_the_paths(make_keys):
  # Equal numbers would be equal keys: white's for (step, draw, part), the path's own of a draw.
  keys, schedule = make_keys(1), schedules.vp()
  numbers = [(index, draw, part) for index in range(3) for draw in range(3) for part in range(2)]
  values = [
    noise_of('white', schedule, keys, index=index)(0.5, 0.4, draw, part)
    for index, draw, part in numbers
  ]
  path = [noise_of('brownian', schedule, keys)(1.0, 0.0, draw) for draw in range(3)]
  assert len(np.unique(np.concatenate(values + path))) == 2 * (len(values) + 3)


def test_a_path_goes_by_the_snr_whatever_the_schedule(make_keys):
  keys, log_snrs = make_keys(3), (-4.0, 1.0)
  found = [
    noise_of('brownian', path, keys)(*(path.time(log_snr) for log_snr in log_snrs))
    for path in (schedules.vp(), schedules.edm(), schedules.flow())
  ]
  np.testing.assert_allclose(found[1], found[0], atol=1e-6)
  np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_a_path_knows_neither_steps_nor_parts(make_keys):
  keys, schedule = make_keys(3), schedules.vp()
  first = noise_of('brownian', schedule, keys, index=0)(0.5, 0.4, 0, 0)
  np.testing.assert_array_equal(
    noise_of('brownian', schedule, keys, index=7)(0.5, 0.4, 0, 1), first
  )
