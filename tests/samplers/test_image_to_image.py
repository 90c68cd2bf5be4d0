"""Where sampling from a picture begins, and what of a grid is left for it."""

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import ddim, prior_sample, sample, time_grid
from ddpm_jax.samplers.image_to_image import last_part, start_from
from ddpm_jax.theory.oracle import GaussianData


def pictures(count):
  return jnp.linspace(-1.0, 1.0, count)[:, None] * jnp.array([[1.0, -0.5, 0.2]])


@pytest.mark.parametrize(
  ('schedule', 't'),
  [(schedules.linear(), 400), (schedules.ve(), 0.4), (schedules.flow(), 0.7)],
  ids=['chain', 've', 'flow'],
)
def test_the_start_is_the_picture_at_that_noise_level(make_keys, schedule, t):
  count = 20_000
  x0 = pictures(count)
  xt = start_from(schedule, x0, t, make_keys(count))
  z = np.asarray((xt - schedule.alpha(t) * x0) / schedule.sigma(t), np.float64)
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
  assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)


def test_each_start_depends_on_its_own_key_and_picture(make_keys):
  schedule, x0, keys = schedules.linear(), pictures(6), make_keys(6)
  together = start_from(schedule, x0, 300, keys)
  np.testing.assert_array_equal(together[2:4], start_from(schedule, x0[2:4], 300, keys[2:4]))


def test_without_signal_it_is_the_priors_draw(make_keys):
  schedule, keys = schedules.flow(), make_keys(6)
  np.testing.assert_allclose(
    start_from(schedule, pictures(6), 1.0, keys), prior_sample(schedule, 1.0, keys, (3,)), rtol=1e-6
  )


def test_little_noise_leaves_the_picture_and_much_the_data(make_keys):
  # The data's mean is far from the picture: where samples end tells how much of it is left.
  schedule, keys = schedules.linear(), make_keys(64)
  data = GaussianData(jnp.array([3.0, 3.0, 3.0]), jnp.array([1.0, 1.0, 1.0]))
  x0, grid, means = jnp.zeros((64, 3)), time_grid('trailing', schedule, 100), []
  for strength in (0.05, 0.3, 0.6, 1.0):
    times = last_part(grid, strength)
    start = start_from(schedule, x0, times[0], keys)
    means.append(jnp.mean(sample(ddim(), data.denoiser(schedule), schedule, times, start, keys)))
  assert (np.diff(means) > 0.1).all()
  assert means[0] < 0.2
  assert means[-1] > 2.5


@pytest.mark.parametrize(
  ('strength', 'kept'), [(1.0, 50), (0.58, 29), (0.5, 25), (0.02, 1), (0.001, 1)]
)
def test_the_part_of_the_grid_is_to_the_nearest_step_and_never_none(strength, kept):
  # 0.58 · 50 is 28.999999999999996 in floating point, of which the whole part is 28.
  times = jnp.arange(50, 0, -1)
  np.testing.assert_array_equal(last_part(times, strength), np.arange(kept, 0, -1), strict=False)


@pytest.mark.parametrize('strength', [0.0, -0.1, 1.2, float('nan')])
def test_a_strength_outside_its_range_is_refused(strength):
  with pytest.raises(InputError, match=rf'^strength: {strength} is outside \(0, 1\]$'):
    last_part(jnp.arange(5), strength)


def test_pictures_and_keys_are_as_many(make_keys):
  with pytest.raises(InputError, match=r'^init_image: \(3,\) of them, but \(4,\) keys$'):
    start_from(schedules.linear(), jnp.zeros((3, 8)), 10, make_keys(4))
