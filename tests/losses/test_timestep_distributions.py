import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion import schedules
from ddpm_jax.keys import step_key
from ddpm_jax.losses import TIMESTEP_DISTRIBUTIONS
from ddpm_jax.losses.timestep_distributions import memory, probabilities, stratified, time_of

NUM_STEPS = 12
ESTIMATES = ('uniform', 'stratified', 'low_discrepancy', 'antithetic', 'importance')


def times(distribution, index, batch_size, step=0, num_steps=NUM_STEPS):
  schedule = schedules.linear(num_steps)
  kept = memory(TIMESTEP_DISTRIBUTIONS[distribution])
  state = kept.init(schedule) if kept else ()
  return TIMESTEP_DISTRIBUTIONS[distribution](
    step_key(0, step), jnp.asarray(index), batch_size, schedule, state
  )


def over_steps(distribution, index, batch_size, num_steps=NUM_STEPS, steps=4000):
  """Times and corrections (steps, B) of one batch's places, over many steps."""
  run = jax.vmap(lambda step: times(distribution, index, batch_size, step, num_steps))
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


@pytest.mark.parametrize('distribution', ESTIMATES)
def test_a_batchs_mean_estimates_the_mean_over_the_chain(distribution):
  # 1000 steps shared by 16 examples: parts do not end at whole times.
  t, correction = over_steps(distribution, range(16), 16, num_steps=1000)
  means = np.mean(correction * t**2, axis=1)
  truth = np.mean(np.arange(1, 1001.0) ** 2)
  assert abs(means.mean() - truth) < 5 * means.std() / np.sqrt(means.size)


def test_stratified_shrinks_the_variance_by_the_batch_squared():
  # Of a mean of t: within a part of width T/B the variance is T²/12B², hence B² times smaller.
  def variance(distribution):
    t, _ = over_steps(distribution, range(16), 16, num_steps=1000)
    return np.var(np.mean(t, axis=1))

  np.testing.assert_allclose(variance('uniform') / variance('stratified'), 16**2, rtol=0.1)


def variance_of_the_mean_square(distribution, batch_size):
  """Var[mean of u²], u in [0, 1]. Of (i + v)/B, v uniform: Var[v² + 2 i v] = 4/45 + (i² + i)/3."""
  i, square = np.arange(batch_size), 4 / 45
  return {
    'uniform': square / batch_size,
    # Of a pair u² + (1 - u)², which is 1/2 + 2 (u - 1/2)².
    'antithetic': 1 / 90 / batch_size,
    'stratified': np.sum(square + (i**2 + i) / 3) / batch_size**6,
    # All with one v: Var[B v² + B (B - 1) v].
    'low_discrepancy': (square + (batch_size**2 - 1) / 12) / batch_size**4,
  }[distribution]


@pytest.mark.parametrize('distribution', ['uniform', 'antithetic', 'stratified', 'low_discrepancy'])
def test_a_distributions_variance_is_its_closed_form(distribution):
  batch_size, path = 16, types.SimpleNamespace(t_min=0.0, t_max=1.0)

  def mean_square(step):
    index = jnp.arange(batch_size)
    t, _ = TIMESTEP_DISTRIBUTIONS[distribution](step_key(0, step), index, batch_size, path, ())
    return jnp.mean(t**2)

  found = np.var(np.asarray(jax.jit(jax.vmap(mean_square))(jnp.arange(4000)), np.float64))
  # A variance of 4000 draws has a relative error of about sqrt(2 / 4000) = 2 %.
  np.testing.assert_allclose(
    found, variance_of_the_mean_square(distribution, batch_size), rtol=0.12
  )


@pytest.mark.parametrize('distribution', TIMESTEP_DISTRIBUTIONS)
def test_times_depend_on_step_and_index_and_not_on_the_layout(distribution):
  together = times(distribution, range(8), 8, num_steps=1000)[0]
  halves = [times(distribution, half, 8, num_steps=1000)[0] for half in (range(4), range(4, 8))]
  np.testing.assert_array_equal(together, np.concatenate(halves))
  assert (together != times(distribution, range(8), 8, step=1, num_steps=1000)[0]).any()


def test_the_shares_zero_and_almost_one_are_the_ends():
  schedule = schedules.linear(1000)
  almost = np.nextafter(np.float32(1), np.float32(0))
  np.testing.assert_array_equal(time_of(schedule, jnp.array([0.0, almost, 1.0])), [1, 1000, 1000])


def test_continuous_time_is_stratified_over_its_interval():
  continuous = types.SimpleNamespace(t_min=2.0, t_max=6.0)
  t, _ = stratified(step_key(0, 0), jnp.arange(40), 40, continuous, None)
  np.testing.assert_array_equal(np.floor((t - 2.0) * 10), np.arange(40))


# Distributions of log-SNR. Their cumulative functions are SciPy's.
PATH = schedules.cosine_log_snr()
DRAWN = {
  'log_normal': stats.norm(2.4, 2.4),
  'logit_normal': stats.norm(0, 2),
  'cosine': stats.hypsecant(scale=2),
  'log_snr': stats.uniform(-15, 30),
  'laplace': stats.laplace(scale=0.5),
}


def test_every_distribution_estimates_or_draws():
  assert set(ESTIMATES) | set(DRAWN) == set(TIMESTEP_DISTRIBUTIONS)


@pytest.mark.parametrize('distribution', DRAWN)
def test_a_distribution_of_log_snr_has_its_distribution(distribution):
  t, correction = TIMESTEP_DISTRIBUTIONS[distribution](
    step_key(0, 0), jnp.arange(20_000), 20_000, PATH, ()
  )
  log_snr = np.asarray(jax.vmap(PATH.log_snr)(t))
  assert stats.kstest(log_snr, DRAWN[distribution].cdf).pvalue > 1e-6
  assert (correction == 1).all()


@pytest.mark.parametrize('schedule', [schedules.cosine(50), PATH])
@pytest.mark.parametrize('distribution', ['log_normal', 'logit_normal', 'cosine', 'log_snr'])
def test_a_distribution_that_is_told_to_estimate_gives_the_uniform_mean(distribution, schedule):
  # A function that the tails do not decide: the distributions hardly go there.
  def f(t):
    return np.exp(-0.5 * (np.asarray(jax.vmap(schedule.log_snr)(t)) - 1) ** 2)

  t, correction = TIMESTEP_DISTRIBUTIONS[distribution](
    step_key(0, 0), jnp.arange(40_000), 40_000, schedule, (), estimate=True
  )
  values = correction * f(t)
  discrete = isinstance(schedule, schedules.Discrete)
  every = jnp.arange(1, 51) if discrete else (jnp.arange(4000) + 0.5) / 4000
  assert abs(values.mean() - f(every).mean()) < 5 * values.std() / np.sqrt(values.size)


def test_one_offset_puts_all_times_at_even_distances():
  continuous = types.SimpleNamespace(t_min=0.0, t_max=1.0)
  t, _ = TIMESTEP_DISTRIBUTIONS['low_discrepancy'](
    step_key(0, 3), jnp.arange(64), 64, continuous, ()
  )
  np.testing.assert_allclose(np.diff(np.sort(t)), 1 / 64, atol=1e-6)


def test_antithetic_pairs_mirror_each_other():
  t, _ = times('antithetic', range(64), 64, num_steps=1000)
  np.testing.assert_array_equal(t[::2] + t[1::2], 1001)
  assert len(set(np.asarray(t).tolist())) > 50


def remembered(values, schedule, history=3):
  """The memory after every time has had `history` losses of |value|."""
  kept = memory(functools.partial(TIMESTEP_DISTRIBUTIONS['importance'], history=history))
  t = jnp.tile(jnp.arange(1, values.size + 1), history)
  return kept.update(kept.init(schedule), schedule, t, jnp.tile(jnp.asarray(values), history))


def test_importance_draws_by_the_root_mean_square_and_has_no_variance_where_it_is_exact():
  schedule, losses = schedules.linear(5), np.array([1.0, 2.0, 4.0, 1.0, 8.0])
  distribution = functools.partial(TIMESTEP_DISTRIBUTIONS['importance'], history=3, floor=1e-9)
  state = remembered(losses, schedule)
  t, correction = distribution(step_key(0, 0), jnp.arange(40_000), 40_000, schedule, state)
  counts = np.bincount(np.asarray(t) - 1, minlength=5)
  assert stats.chisquare(counts, 40_000 * losses / losses.sum()).pvalue > 1e-6
  # L_t / (T p_t) is the mean itself at every t: less variance there cannot be.
  np.testing.assert_allclose(correction * losses[t - 1], losses.mean(), rtol=1e-5)


def test_importance_waits_for_its_history_and_keeps_a_floor():
  schedule, losses = schedules.linear(4), np.array([0.0, 0.0, 0.0, 1.0])
  state = remembered(losses, schedule)
  np.testing.assert_allclose(probabilities(state, 3, 0.1), [0.025, 0.025, 0.025, 0.925], rtol=1e-5)
  np.testing.assert_allclose(probabilities(state, 4, 0.1), 0.25)


def test_the_history_is_that_of_one_loss_after_another():
  """Against a list for each time that is appended to by hand."""
  schedule, kept = schedules.linear(3), memory(TIMESTEP_DISTRIBUTIONS['importance'])
  state, lists = kept.init(schedule), [[], [], []]
  rng = np.random.default_rng(0)
  for _ in range(4):
    t, values = rng.integers(1, 4, 20), rng.normal(size=20).astype(np.float32)
    state = kept.update(state, schedule, jnp.asarray(t), jnp.asarray(values))
    for time, value in zip(t, values, strict=True):
      lists[time - 1].append(value)
  for row, losses in zip(np.asarray(state['losses']), lists, strict=True):
    np.testing.assert_array_equal(np.sort(row), np.sort(losses[-10:]))
  np.testing.assert_array_equal(state['count'], [len(losses) for losses in lists])


def test_importance_in_continuous_time_estimates_the_uniform_mean():
  path = types.SimpleNamespace(t_min=0.0, t_max=2.0)
  distribution = functools.partial(TIMESTEP_DISTRIBUTIONS['importance'], history=1, bins=4)
  kept = memory(distribution)
  middles = jnp.array([0.25, 0.75, 1.25, 1.75])
  state = kept.update(kept.init(path), path, middles, middles**2)
  t, correction = distribution(step_key(0, 0), jnp.arange(20_000), 20_000, path, state)
  values = np.asarray(correction * t**2)
  assert abs(values.mean() - 4 / 3) < 5 * values.std() / np.sqrt(values.size)
  assert values.std() < 0.5 * np.sqrt(16 / 5 - (4 / 3) ** 2)  # that of uniform times
