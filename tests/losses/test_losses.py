"""The tables: presets, their factors by name, and the distances."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ndtri

from ddpm_jax.errors import InputError
from ddpm_jax.losses import DISTANCES, FACTORS, LOSSES, PRESETS, Factors, make_factors

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


def test_every_preset_belongs_to_a_loss_and_names_factors_that_exist():
  assert set(PRESETS) <= set(LOSSES)
  for name, preset in PRESETS.items():
    assert make_factors(name) == Factors(**{f: FACTORS[f][preset[f]] for f in preset})


@pytest.mark.parametrize('factor', FACTORS)
def test_a_factor_given_by_name_replaces_the_presets_and_no_other(factor):
  for name, function in FACTORS[factor].items():
    assert make_factors('simple', **{factor: name}) == make_factors('simple')._replace(
      **{factor: function}
    )


def test_a_plug_in_starts_from_the_simple_loss():
  assert make_factors('my.module:loss', weight=None) == make_factors('simple')


@pytest.mark.parametrize('factor', FACTORS)
def test_an_unknown_factor_names_its_field_and_the_nearest(factor):
  name = max(FACTORS[factor], key=len)
  with pytest.raises(InputError, match=rf"^config\.loss\.{factor}: '{name}x' .*'{name}'\?$"):
    make_factors('simple', **{factor: f'{name}x'})


def test_a_misspelt_factor_is_no_factor():
  with pytest.raises(TypeError, match='wieght'):
    make_factors('simple', wieght='output')
