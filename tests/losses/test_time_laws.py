import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion import schedules
from ddpm_jax.keys import step_key
from ddpm_jax.losses import TIME_LAWS
from ddpm_jax.losses.time_laws import stratified, time_of

NUM_STEPS = 12


def times(law, index, batch_size, step=0, num_steps=NUM_STEPS):
  schedule = schedules.linear(num_steps)
  return TIME_LAWS[law](step_key(0, step), jnp.asarray(index), batch_size, schedule, None)


def over_steps(law, index, batch_size, num_steps=NUM_STEPS, steps=4000):
  """Times and corrections (steps, B) of one batch's places, over many steps."""
  run = jax.vmap(lambda step: times(law, index, batch_size, step, num_steps))
  return (np.asarray(x) for x in jax.jit(run)(jnp.arange(steps)))


def assert_uniform(t, low, high):
  """A chi-square test at one in a million."""
  assert t.min() >= low
  assert t.max() <= high
  counts = np.bincount(t.ravel() - low, minlength=high - low + 1)
  assert stats.chisquare(counts).pvalue > 1e-6


def test_uniform_gives_every_time_the_same_share():
  t, correction = times('uniform', range(60_000), 60_000)
  assert_uniform(np.asarray(t), 1, NUM_STEPS)
  assert (correction == 1).all()


def test_uniform_gives_one_example_every_time_over_the_steps():
  t, _ = over_steps('uniform', [5], 1)
  assert_uniform(t, 1, NUM_STEPS)


@pytest.mark.parametrize('strata', [1, 3, 4, 12, 24])
def test_stratified_takes_one_time_from_each_part_of_the_chain(strata):
  # Of 24 examples two fall on each of the 12 times.
  parts = min(strata, NUM_STEPS)
  for step in range(5):
    t, _ = times('stratified', np.arange(strata) + strata * step, strata, step)
    np.testing.assert_array_equal(
      np.bincount((np.asarray(t) - 1) * parts // NUM_STEPS), strata // parts * np.ones(parts)
    )


def test_stratified_is_uniform_within_a_part():
  t, _ = over_steps('stratified', [0, 1, 2], 3)
  for part in range(3):
    assert_uniform(t[:, part], 1 + 4 * part, 4 + 4 * part)


@pytest.mark.parametrize('law', TIME_LAWS)
def test_a_batchs_mean_estimates_the_mean_over_the_chain(law):
  # 1000 steps shared by 16 examples: parts do not end at whole times.
  t, correction = over_steps(law, range(16), 16, num_steps=1000)
  means = np.mean(correction * t**2, axis=1)
  truth = np.mean(np.arange(1, 1001.0) ** 2)
  assert abs(means.mean() - truth) < 5 * means.std() / np.sqrt(means.size)


def test_stratified_shrinks_the_variance_by_the_batch_squared():
  # Of a mean of t: within a part of width T/B the variance is T²/12B², hence B² times smaller.
  def variance(law):
    t, _ = over_steps(law, range(16), 16, num_steps=1000)
    return np.var(np.mean(t, axis=1))

  np.testing.assert_allclose(variance('uniform') / variance('stratified'), 16**2, rtol=0.1)


@pytest.mark.parametrize('law', TIME_LAWS)
def test_times_depend_on_step_and_index_and_not_on_the_layout(law):
  together = times(law, range(8), 8, num_steps=1000)[0]
  halves = [times(law, half, 8, num_steps=1000)[0] for half in (range(4), range(4, 8))]
  np.testing.assert_array_equal(together, np.concatenate(halves))
  assert (together != times(law, range(8), 8, step=1, num_steps=1000)[0]).any()


def test_the_shares_zero_and_almost_one_are_the_ends():
  schedule = schedules.linear(1000)
  almost = np.nextafter(np.float32(1), np.float32(0))
  np.testing.assert_array_equal(time_of(schedule, jnp.array([0.0, almost, 1.0])), [1, 1000, 1000])


def test_continuous_time_is_stratified_over_its_interval():
  continuous = types.SimpleNamespace(t_min=2.0, t_max=6.0)
  t, _ = stratified(step_key(0, 0), jnp.arange(40), 40, continuous, None)
  np.testing.assert_array_equal(np.floor((t - 2.0) * 10), np.arange(40))
