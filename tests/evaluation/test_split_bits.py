"""The mean of a split and the error of its draws, where both are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.split_bits import estimate, split_bits
from ddpm_jax.training.task import Measure, load_frozen

COUNT, SPREAD = 30, 0.5


@pytest.fixture(scope='module')
def few():
  """Images of one pixel, whose level is their number."""
  split = data.Arrays(np.arange(COUNT).reshape(COUNT, 1, 1, 1))
  return data.Dataset('few', split, split, (1, 1, 1), 256)


@jax.jit
def noisy(params, frozen, key, batch):
  """The level of an image, and normal noise of its own in each replicate."""
  keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch['index'])
  noise = jax.vmap(jax.random.normal)(keys)
  return params * batch['x'].reshape(-1) + frozen * noise


def measured(few, **options):
  given = {'seed': 0, 'batch_size': 16, 'tolerance': 0.0} | options
  measure = Measure(noisy, 'level and noise')
  return split_bits(measure, jnp.float32(2), jnp.float32(SPREAD), few, few.test, **given)


def test_the_mean_and_its_error_have_the_closed_form(few):
  """The mean of R replicates of N examples has the error SPREAD / sqrt(R N)."""
  error = SPREAD / np.sqrt(50 * COUNT)
  found = measured(few, most=50)
  assert found.replicates == 50
  # The variance of 49 · 30 degrees of freedom is known to sqrt(2 / 1470) = 4 %, its root to 2 %.
  assert found.error == pytest.approx(error, rel=4 * 0.02)
  assert abs(found.mean - 2 * np.arange(COUNT).mean()) < 4 * error


def test_another_seed_draws_anew_and_the_same_repeats(few):
  assert measured(few, most=2) == measured(few, most=2)
  assert measured(few, most=2).mean != measured(few, most=2, seed=1).mean


def test_replicates_stop_at_the_tolerance(few):
  loose = measured(few, tolerance=1e9)
  assert loose.replicates == 2
  tolerance = loose.error / 2
  tight = measured(few, tolerance=tolerance, most=100)
  assert tight.error <= tolerance
  assert tight.replicates == pytest.approx(8, abs=4), 'the error goes with 1 / sqrt(replicates)'


def test_an_empty_split_has_none(few):
  none = data.Arrays(np.zeros((0, 1, 1, 1)))
  with pytest.raises(Unavailable, match='no held-out image'):
    split_bits(Measure(noisy, ''), 1.0, 1.0, few, none, seed=0, batch_size=8)


@pytest.mark.parametrize('name', ['chain', 'continuous'])
def test_padding_and_batches_change_nothing(as_run, experiment, params, digits, name):
  run = as_run(experiment, params)
  (measure,) = run.use.bits([name], 'small').values()
  batch = digits.test[:27]
  split, frozen, done = data.Arrays(batch['x'], batch['cond']), load_frozen(run.task), []

  def bits(size, **options):
    return split_bits(
      measure, run.trained, frozen, digits, split, seed=0, batch_size=size, most=2, **options
    )

  padded, whole = bits(16, advance=done.append), bits(32)
  assert sum(done) == 2 * 27
  assert padded.mean == pytest.approx(whole.mean, rel=1e-5)
  assert padded.error == pytest.approx(whole.error, rel=1e-4)


def test_estimate_by_hand():
  """Two replicates of two examples: s² = 2 and 0, hence sqrt((2 + 0) / 2) / 2."""
  found = estimate(np.array([[1.0, 5.0], [3.0, 5.0]]))
  assert found == (3.5, 0.5, 2)
