import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data import quantize, random_flip, scale, to_uint8


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


def flip_some(count, seed=0):
  image = jnp.arange(count * 3 * 4 * 2).reshape(count, 3, 4, 2)
  keys = jax.random.split(jax.random.key(seed), count)
  return image, keys, jax.jit(random_flip)(image, keys)


def test_each_image_is_left_or_mirrored_and_half_are():
  image, _, flipped = flip_some(2000)
  mirrored = np.flip(image, axis=2)
  moved = np.array([np.array_equal(a, b) for a, b in zip(flipped, mirrored, strict=True)])
  np.testing.assert_array_equal(flipped[~moved], image[~moved])
  assert abs(moved.mean() - 0.5) < 4 * 0.5 / 2000**0.5


def test_the_same_keys_flip_back():
  image, keys, flipped = flip_some(50)
  assert not np.array_equal(image, flipped)
  np.testing.assert_array_equal(random_flip(flipped, keys), image)


def test_a_flip_depends_on_its_own_key_alone():
  image, keys, flipped = flip_some(50)
  np.testing.assert_array_equal(random_flip(image[7:20], keys[7:20]), flipped[7:20])
