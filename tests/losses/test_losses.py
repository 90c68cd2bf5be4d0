"""The tables: presets, their factors by name, and the distances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from ddpm_jax.losses import (
  DISTANCES,
  FACTORS,
  LOSSES,
  PRESETS,
  make_factors,
  start,
  starts_with,
)

# The mean over a standard normal, and the degree in its argument.
MOMENTS = {'l2': (1.0, 2), 'l1': (np.sqrt(2 / np.pi), 1)}


@pytest.mark.parametrize('name', DISTANCES)
def test_a_distances_mean_over_a_standard_normal(name):
  z = ndtri((np.arange(100_000) + 0.5) / 100_000)
  np.testing.assert_allclose(jnp.mean(DISTANCES[name](jnp.asarray(z))), MOMENTS[name][0], rtol=1e-3)


@pytest.mark.parametrize('name', DISTANCES)
def test_a_distance_is_even_homogeneous_and_elementwise(name):
  distance, degree = DISTANCES[name], MOMENTS[name][1]
  z = jnp.linspace(-2, 2, 12).reshape(3, 4)
  np.testing.assert_allclose(distance(-3 * z), 3**degree * distance(z), rtol=1e-6)
  np.testing.assert_array_equal(distance(z)[1], distance(z[1]))
  assert (distance(z) > 0).all()
  assert distance(jnp.zeros(())) == 0


def test_every_preset_belongs_to_a_loss_and_has_factors_of_the_tables():
  assert set(PRESETS) <= set(LOSSES)
  for name in PRESETS:
    for factor, function in make_factors(name)._asdict().items():
      assert function in FACTORS[factor].values()


@pytest.mark.parametrize('factor', FACTORS)
def test_a_factor_that_is_given_replaces_the_presets_and_no_other(factor):
  for function in FACTORS[factor].values():
    assert make_factors('simple', **{factor: function}) == make_factors('simple')._replace(
      **{factor: function}
    )


def test_a_plug_in_starts_from_the_simple_loss():
  assert make_factors('my.module:loss') == make_factors('simple')


def test_a_misspelt_factor_is_no_factor():
  with pytest.raises(ValueError, match='wieght'):
    make_factors('simple', wieght=jnp.abs)


def test_a_loss_that_keeps_nothing_starts_with_nothing():
  assert start(LOSSES['simple'], None, {}, jax.random.key(0)) == ({}, ())


def test_a_loss_starts_with_what_its_init_makes_of_its_own_options():
  def init(problem, params, key, *, width):
    return {'scale': jnp.ones(width)}, params['network']

  @starts_with(init)
  def loss(problem, params, state, batch, keys, *, width):
    raise NotImplementedError

  bound = functools.partial(loss, width=3)
  own, state = start(bound, None, {'network': 'teacher'}, jax.random.key(0))
  assert own['scale'].shape == (3,)
  assert state == 'teacher'
