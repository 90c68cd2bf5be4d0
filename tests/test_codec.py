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
  codec = pixels((2, 4, 1), 256)
  x = jnp.arange(256, dtype=jnp.uint8).reshape(32, 2, 4, 1)
  z = jax.jit(codec.encode)(codec.load(), x, jax.random.split(jax.random.key(0), 32))
  assert z.shape == (32, *codec.shape)
  assert np.unique(z).size == 256
  np.testing.assert_array_equal(codec.decode(codec.load(), z), x)


@pytest.mark.parametrize('num_levels', [2, 17, 256])
def test_pictures_of_few_levels_spread_over_all_that_a_byte_holds(num_levels):
  codec, x = pixels((1, 1, 1), num_levels), np.arange(num_levels).reshape(-1, 1, 1, 1)
  picture = codec.decode({}, codec.encode({}, jnp.asarray(x), None))
  assert picture.dtype == np.uint8
  assert np.abs(np.asarray(picture, int) - x * (255 / (num_levels - 1))).max() <= 0.5


def test_pixels_draw_nothing_and_have_no_parameters():
  codec, x = pixels((2, 4, 1), 256), jnp.arange(32, dtype=jnp.uint8).reshape(4, 2, 4, 1)
  one, other = (codec.encode({}, x, jax.random.split(jax.random.key(seed), 4)) for seed in (0, 1))
  np.testing.assert_array_equal(one, other)
  assert not jax.tree.leaves(codec.load())
  assert codec.source == ''


def test_pixels_lie_within_their_bounds_and_what_does_not_is_clipped():
  codec = pixels((1, 1, 1), 17)
  low, high = codec.bounds
  z = codec.encode({}, jnp.arange(17).reshape(17, 1, 1, 1), None)
  assert (z.min(), z.max()) == (low, high)
  np.testing.assert_array_equal(codec.clip(jnp.array([-3.0, 0.25, 3.0])), [low, 0.25, high])
  narrow = codec._replace(bounds=(0.0, 0.5))
  np.testing.assert_array_equal(narrow.clip(jnp.array([-3.0, 0.25, 3.0])), [0, 0.25, 0.5])
  endless, z = codec._replace(bounds=None), jnp.array([-3.0, 3.0])
  assert endless.clip(z) is z


def test_only_a_codec_that_keeps_all_has_levels_for_a_probability():
  codec = pixels((1, 1, 1), 17)
  codes = codec.encode({}, jnp.arange(17).reshape(17, 1, 1, 1), None)
  assert codec.levels('the bound') == np.unique(codes).size == 17
  with pytest.raises(ValueError, match='^codec.name: the bound is a probability of the data'):
    codec._replace(num_levels=None).levels('the bound')
