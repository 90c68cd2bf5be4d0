import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codec import pixels, quantize, scale, to_uint8


@pytest.mark.parametrize('num_levels', [2, 17, 256])
def test_every_level_survives_the_round_trip(num_levels):
  levels = jnp.arange(num_levels, dtype=jnp.uint8)
  x = scale(levels, num_levels)
  assert x.dtype == jnp.float32
  np.testing.assert_array_equal(quantize(x, num_levels), levels)
  assert (x[0], x[-1]) == (-1, 1)
  np.testing.assert_allclose(jnp.diff(x), 2 / (num_levels - 1), rtol=1e-4)


@pytest.mark.parametrize('num_levels', [2, 17, 256])
def test_quantize_gives_the_nearest_level(num_levels):
  x = jnp.linspace(-1.5, 1.5, 999)
  distance = abs(x[:, None] - scale(jnp.arange(num_levels), num_levels)[None, :])
  got = jnp.take_along_axis(distance, quantize(x, num_levels)[:, None].astype(int), axis=1)[:, 0]
  np.testing.assert_allclose(got, distance.min(axis=1), atol=1e-6)


def test_to_uint8_at_known_points():
  x = jnp.array([-jnp.inf, -1.01, -1, 0.2, 1, 3])
  np.testing.assert_array_equal(to_uint8(x), [0, 0, 0, 153, 255, 255])


def test_pixels_come_back_from_their_code():
  codec = pixels((2, 3, 1), 256)
  x = jnp.arange(240, dtype=jnp.uint8).reshape(40, 2, 3, 1)
  z = jax.jit(codec.encode)(codec.load(), x, jax.random.split(jax.random.key(0), 40))
  assert z.shape == (40, *codec.shape)
  np.testing.assert_array_equal(codec.decode(codec.load(), z), x)


def test_pixels_lie_within_their_bounds_and_what_does_not_is_clipped():
  codec = pixels((1, 1, 1), 17)
  low, high = codec.bounds
  z = codec.encode({}, jnp.arange(17).reshape(17, 1, 1, 1), None)
  assert (z.min(), z.max()) == (low, high)
  np.testing.assert_array_equal(codec.clip(jnp.array([-3.0, 0.25, 3.0])), [low, 0.25, high])
  endless = codec._replace(bounds=None)
  np.testing.assert_array_equal(endless.clip(jnp.array([-3.0, 3.0])), [-3, 3])


def test_only_a_codec_that_keeps_all_has_levels_for_a_probability():
  codec = pixels((1, 1, 1), 17)
  assert codec.levels('the bound') == 17
  with pytest.raises(ValueError, match='^codec.name: the bound is a probability of the data'):
    codec._replace(num_levels=None).levels('the bound')
