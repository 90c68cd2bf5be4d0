import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data import random_flip


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
