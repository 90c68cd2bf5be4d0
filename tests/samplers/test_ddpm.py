import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import VARIANCES
from ddpm_jax.samplers import ancestral, sample, time_grid

STEPS = [(50, 49), (50, 20), (31, 7), (3, 1)]


def moved(affine, mean, variance):
  """The moments after an affine step with fresh noise."""
  return affine.gain * mean + affine.offset, affine.gain**2 * variance + affine.scale**2


@pytest.mark.parametrize(
  ('variance', 'of_data', 'mean'),
  [
    ('optimal', 0.3, (0.4, -0.7, 0.1)),
    ('optimal', 2.5, (0.0, 1.0, 2.0)),
    ('small', 0.0, (0.4, -0.7, 0.1)),
    ('large', 1.0, (0.0, 0.0, 0.0)),
  ],
)
def test_one_step_of_any_length_keeps_the_marginal_that_its_variance_is_for(
  make_world, variance, of_data, mean
):
  # Small is right for a point, large for standard normal data, optimal for every Gaussian.
  world = make_world(of_data, mean)
  for t, s in STEPS:
    arrived = moved(world.affine(ancestral(variance), t, s), *world.marginal(t))
    np.testing.assert_allclose(arrived, world.marginal(s), atol=1e-12)


def test_small_and_large_miss_the_marginal_on_either_side(make_world):
  world = make_world(0.3)
  for t, s in STEPS:
    below, above = (
      moved(world.affine(ancestral(variance), t, s), *world.marginal(t))[1]
      for variance in ('small', 'large')
    )
    truth = world.marginal(s)[1]
    assert (below < truth).all()
    assert (truth < above).all()


@pytest.mark.parametrize('variance', ['small', 'large', 'optimal'])
def test_the_whole_run_follows_the_recursion_of_its_steps(make_world, make_keys, variance):
  world, count = make_world(0.3), 20_000
  times = time_grid('linspace', world.schedule, 8)
  xT = world.begin(50, count)
  x = sample(
    ancestral(variance), world.denoiser, world.schedule, times, xT, make_keys(count), final='keep'
  )
  moments = world.marginal(50)
  for t, s in itertools.pairwise(times):
    moments = moved(world.affine(ancestral(variance), int(t), int(s)), *moments)
  z = (np.asarray(x) - moments[0]) / np.sqrt(moments[1])
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
  assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)


@pytest.mark.parametrize(('fraction', 'same_as'), [(0.0, 'small'), (1.0, 'large')])
def test_a_learned_fraction_ends_at_small_and_large(make_world, make_keys, fraction, same_as):
  world = make_world()

  def learned(xt, t):
    return world.denoiser(xt, t)._replace(fraction=jnp.full_like(xt, fraction))

  times = time_grid('trailing', world.schedule, 10)
  arguments = (world.schedule, times, world.begin(50, 4), make_keys(4))
  x = sample(ancestral('fraction'), learned, *arguments)
  np.testing.assert_allclose(x, sample(ancestral(same_as), learned, *arguments), rtol=1e-9)


def test_half_a_fraction_is_the_geometric_mean_of_the_variances(make_world):
  world = make_world()
  halfway = world._replace(data=HalfLearned(world.data))
  for t, s in STEPS:
    scales = [world.affine(ancestral(v), t, s).scale for v in ('small', 'large')]
    scale = halfway.affine(ancestral('fraction'), t, s).scale
    np.testing.assert_allclose(scale**2, scales[0] * scales[1], rtol=1e-9)


class HalfLearned:
  """An oracle with a learned fraction of one half."""

  def __init__(self, data):
    self.data = data

  def denoiser(self, schedule):
    exact = self.data.denoiser(schedule)
    return lambda xt, t: exact(xt, t)._replace(fraction=jnp.full_like(xt, 0.5))


def test_an_unknown_variance_is_refused_by_its_field():
  with pytest.raises(ValueError, match=r"^variance: 'smal' .*'small'\?$"):
    ancestral('smal')
  for variance in VARIANCES:
    ancestral(variance)
