import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.keys import PURPOSES, example_keys, for_purpose, step_key


def draws(seed, step, index, purpose):
  """One number for each example of the batch."""
  keys = for_purpose(example_keys(step_key(seed, step), jnp.asarray(index)), purpose)
  return np.asarray(jax.vmap(jax.random.normal)(keys))


@pytest.mark.parametrize('purpose', PURPOSES)
def test_a_draw_does_not_depend_on_the_layout_of_the_batch(purpose):
  together = draws(0, 3, range(8), purpose)
  halves = [draws(0, 3, range(4), purpose), draws(0, 3, range(4, 8), purpose)]
  shuffled = np.random.default_rng(0).permutation(8)
  np.testing.assert_array_equal(together, np.concatenate(halves))
  np.testing.assert_array_equal(together[shuffled], draws(0, 3, shuffled, purpose))


def test_every_seed_step_index_and_purpose_has_its_own_draw():
  grid = itertools.product(range(3), range(4), PURPOSES)
  values = np.concatenate([draws(seed, step, range(6), purpose) for seed, step, purpose in grid])
  assert np.unique(values).size == values.size


def test_a_step_made_in_a_loop_has_the_same_key():
  traced = jax.jit(lambda step: jax.random.key_data(step_key(5, step)))(7)
  np.testing.assert_array_equal(traced, jax.random.key_data(step_key(5, 7)))


@pytest.mark.parametrize('purpose', PURPOSES)
def test_one_key_and_a_batch_of_keys_agree(purpose):
  keys = jax.random.split(jax.random.key(1), 3)
  one_by_one = jnp.stack([for_purpose(key, purpose) for key in keys])
  np.testing.assert_array_equal(
    jax.random.key_data(for_purpose(keys, purpose)), jax.random.key_data(one_by_one)
  )


def test_a_purpose_is_no_step_and_no_example():
  # fold_in(key, 1) is the key of step 1, or of example 1: no purpose may be that number.
  key = jax.random.key(0)
  numbered = jax.random.key_data(example_keys(key, jnp.arange(1000)))
  for purpose in PURPOSES:
    data = np.asarray(jax.random.key_data(for_purpose(key, purpose)))
    assert not (np.asarray(numbered) == data).all(axis=-1).any()
