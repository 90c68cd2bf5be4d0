"""The tables: presets, their factors by name, and the distances."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import hyperu, ndtri

from ddpm_jax.codec import pixels
from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.keys import Keys, example_keys
from ddpm_jax.losses import (
  DISTANCES,
  FACTORS,
  LOSSES,
  PRESETS,
  LossContext,
  make_factors,
  start,
  starts_with,
)


def huber_mean(delta):
  """E z² inside ± delta, and E 2 delta |z| - delta² outside, by parts."""
  inside = 1 - 2 * stats.norm.sf(delta) - 2 * delta * stats.norm.pdf(delta)
  return inside + 4 * delta * stats.norm.pdf(delta) - 2 * delta**2 * stats.norm.sf(delta)


def pseudo_huber_mean(c):
  """E sqrt(z² + c²) is an integral of Tricomi's function."""
  return 2 * c * (c**2 / np.sqrt(2) * hyperu(0.5, 2, c**2 / 2) - c)


# The mean over a standard normal, and the degree in its argument and in its own scale together.
MOMENTS = {
  'l2': (1.0, 2),
  'l1': (np.sqrt(2 / np.pi), 1),
  'huber': (huber_mean(1.0), 2),
  'pseudo_huber': (pseudo_huber_mean(1.0), 2),
}
SCALES = {'huber': 'delta', 'pseudo_huber': 'c'}


@pytest.mark.parametrize('name', DISTANCES)
def test_a_distances_mean_over_a_standard_normal(name):
  z = ndtri((np.arange(100_000) + 0.5) / 100_000)
  np.testing.assert_allclose(jnp.mean(DISTANCES[name](jnp.asarray(z))), MOMENTS[name][0], rtol=1e-3)


@pytest.mark.parametrize('name', DISTANCES)
def test_a_distance_is_even_homogeneous_and_elementwise(name):
  distance, degree = DISTANCES[name], MOMENTS[name][1]
  z = jnp.linspace(-2, 2, 12).reshape(3, 4)
  scaled = {SCALES[name]: 3.0} if name in SCALES else {}
  np.testing.assert_allclose(distance(-3 * z, **scaled), 3**degree * distance(z), rtol=1e-6)
  np.testing.assert_array_equal(distance(z)[1], distance(z[1]))
  assert (distance(z) > 0).all()
  assert distance(jnp.zeros(())) == 0


@pytest.mark.parametrize(('name', 'option'), SCALES.items())
def test_a_bent_distance_is_l2_near_and_l1_far(name, option):
  distance = functools.partial(DISTANCES[name], **{option: 0.1})
  np.testing.assert_allclose(distance(jnp.array([1e-4, -1e-3])), [1e-8, 1e-6], rtol=1e-3)
  np.testing.assert_allclose(jax.grad(distance)(50.0), 2 * 0.1, rtol=1e-4)
  assert jax.grad(distance)(0.0) == 0


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
  context = types.SimpleNamespace(factors=make_factors('simple'), schedule=None)
  assert start(LOSSES['simple'], context, {}, jax.random.key(0)) == ({}, ())


def test_a_loss_starts_with_what_its_init_makes_of_its_own_options():
  def init(context, params, key, *, width):
    return {'scale': jnp.ones(width)}, params['network']

  @starts_with(init)
  def loss(context, params, state, batch, keys, *, width):
    raise NotImplementedError

  bound = functools.partial(loss, width=3)
  own, state = start(bound, None, {'network': 'teacher'}, jax.random.key(0))
  assert own['scale'].shape == (3,)
  assert state == 'teacher'


@pytest.mark.parametrize('loss', ['hybrid', 'variational', 'elbo'])
def test_a_probability_of_the_data_needs_a_codec_that_keeps_it_whole(loss):
  def network(params, x, *rest):
    return jnp.concatenate([x, x], axis=-1) if loss == 'hybrid' else x

  lossy = pixels((2, 3), 5)._replace(num_levels=None)
  eps, factors = PARAMETERIZATIONS['eps'](), make_factors('hybrid')
  context = LossContext(network, schedules.linear(4), eps, factors, 3, codec=lossy)
  batch = {'x': jnp.zeros((3, 2, 3)), 'cond': {}, 'index': jnp.arange(3)}
  key = jax.random.key(0)
  keys = Keys(key, example_keys(key, batch['index']))
  with pytest.raises(ValueError, match=r'^codec\.name: the .*bound is a probability of the data'):
    LOSSES[loss](context, {'network': ()}, (), batch, keys)
