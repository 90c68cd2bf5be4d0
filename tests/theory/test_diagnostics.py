"""Diagnostics against closed forms on AR(1) chains, and beside blackjax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax import diagnostics as blackjax

from ddpm_jax.theory.diagnostics import (
  acceptance_rate,
  autocovariance,
  effective_sample_size,
  split_r_hat,
  standard_error,
)

ess, r_hat = jax.jit(effective_sample_size), jax.jit(split_r_hat)

CHAINS, SIZE = 16, 4000


def autoregressive(rho, seed=0, chains=CHAINS, size=SIZE):
  """x_i = rho x_{i-1} + √(1 - rho²) eps_i from its limit N(0, 1)."""
  eps = np.random.default_rng(seed).normal(size=(size, chains))
  rows = [eps[0]]
  for row in eps[1:]:
    rows.append(rho * rows[-1] + np.sqrt(1 - rho**2) * row)
  return jnp.asarray(np.stack(rows, axis=1))


@pytest.mark.parametrize('rho', [-0.5, 0.0, 0.3, 0.6, 0.9])
def test_effective_sample_size_of_an_ar1_chain(x64, rho):
  draws = autoregressive(rho)
  expected = CHAINS * SIZE * (1 - rho) / (1 + rho)
  assert ess(draws) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize('rho', [-0.5, 0.0, 0.9])
def test_standard_error_is_the_spread_of_the_mean(x64, rho):
  draws = autoregressive(rho, chains=400, size=1000).reshape(200, 2, 1000)
  errors = jax.jit(jax.vmap(standard_error))(draws)
  # The spread of 200 means is known to 5 %, 1 / √400; each error of theirs is a little off too.
  assert float(np.mean(errors)) == pytest.approx(float(draws.mean(axis=(1, 2)).std()), rel=0.2)


@pytest.mark.parametrize(
  ('rho', 'shift', 'size'), [(0.0, 0.0, 999), (0.9, 0.3, 999), (0.6, 0.0, SIZE)]
)
def test_effective_sample_size_beside_blackjax(x64, rho, shift, size):
  # They add half of a last lag where the sequence ends: of no weight in long chains.
  draws = autoregressive(rho, size=size) + shift * jnp.arange(CHAINS)[:, None]
  expected = float(jax.jit(blackjax.effective_sample_size)(draws))
  assert ess(draws) == pytest.approx(expected, rel=0.02)


def test_chains_that_disagree_are_worth_little(x64):
  # All of a chain's draws then tell of one number, its place: as many draws as chains at most.
  apart = autoregressive(0.5) + 100.0 * jnp.arange(CHAINS)[:, None]
  assert ess(apart) < 2 * CHAINS
  assert ess(autoregressive(0.5)) > 1000 * CHAINS


def test_one_chain_is_enough_for_its_ess(x64):
  draws = autoregressive(0.6, chains=1, size=60_000)
  assert ess(draws) == pytest.approx(60_000 / 4, rel=0.1)


def test_antithetic_draws_are_worth_more_than_independent_ones_but_not_without_end(x64):
  draws = jnp.tile(jnp.array([1.0, -1.0]), (2, 500))
  assert ess(draws) == pytest.approx(2000 * np.log10(2000))


def test_autocovariance_is_the_sum_of_products(x64):
  x = np.random.default_rng(0).normal(size=37)
  centered = x - x.mean()
  expected = np.correlate(centered, centered, 'full')[36:] / 37
  np.testing.assert_allclose(autocovariance(jnp.asarray(x)), expected, atol=1e-14)


def test_r_hat_of_mixed_chains_is_one(x64):
  for rho in (0.0, 0.9):
    assert r_hat(autoregressive(rho)) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('shift', [0.1, 1.0])
def test_r_hat_of_separated_chains(x64, shift):
  # Each chain's two halves share its place: B / n tends to the variance of those 2 · 16 places.
  places = shift * np.arange(CHAINS)
  expected = np.sqrt(1 + np.var(np.repeat(places, 2), ddof=1))
  draws = autoregressive(0.0) + jnp.asarray(places)[:, None]
  assert r_hat(draws) == pytest.approx(expected, rel=0.02)


def test_r_hat_sees_a_drift_that_all_chains_share(x64):
  draws = autoregressive(0.0) + jnp.linspace(-1, 1, SIZE)[None]
  assert r_hat(draws) > 1.1
  assert jax.jit(blackjax.potential_scale_reduction)(draws) < 1.01  # it doesn't split


@pytest.mark.parametrize('size', [SIZE, 1001])
def test_r_hat_is_blackjaxs_of_the_halves(x64, size):
  draws = autoregressive(0.9, size=size) + 0.2 * jnp.arange(CHAINS)[:, None]
  half = size // 2
  halves = jnp.concatenate([draws[:, :half], draws[:, half : 2 * half]])
  expected = float(jax.jit(blackjax.potential_scale_reduction)(halves))
  assert r_hat(draws) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize('diagnostic', [effective_sample_size, split_r_hat])
def test_units_and_the_order_of_chains_do_not_matter(x64, diagnostic):
  draws = autoregressive(0.7) + 0.1 * jnp.arange(CHAINS)[:, None]
  quick = jax.jit(diagnostic)
  expected = float(diagnostic(draws))
  assert quick(1000 - 37 * draws[::-1]) == pytest.approx(expected, rel=1e-8)
  assert quick(draws) == pytest.approx(expected, rel=1e-10)
  both = jax.jit(jax.vmap(diagnostic, in_axes=-1))(jnp.stack([draws, draws**2], axis=-1))
  np.testing.assert_allclose(both, [expected, quick(draws**2)], rtol=1e-10)


def test_draws_that_never_change_say_nothing():
  still = jnp.zeros((3, 10))
  assert np.isnan(ess(still))
  assert np.isnan(r_hat(still))
  assert r_hat(still + jnp.arange(3.0)[:, None]) == np.inf


def test_acceptance_is_of_each_chain():
  accepted = jnp.array([[True, True, False, True], [False, False, False, False]])
  np.testing.assert_array_equal(acceptance_rate(accepted), [0.75, 0])
  np.testing.assert_allclose(acceptance_rate(jnp.array([[0.2, 0.4]])), [0.3], rtol=1e-6)


@pytest.mark.parametrize('diagnostic', [acceptance_rate, effective_sample_size, split_r_hat])
def test_other_shapes_are_refused(diagnostic):
  for shape in ((10,), (2, 3, 10), (2, 0)):
    with pytest.raises(ValueError, match='draws has shape'):
      diagnostic(jnp.zeros(shape))
