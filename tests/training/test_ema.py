import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import ema


def run(params, decay, warmup, start=0.0):
  """The average after each of `params`, by the code under test."""
  average, path = jnp.float32(start), []
  for n, value in enumerate(params):
    average = ema.update(average, jnp.float32(value), ema.rate(decay, jnp.int32(n), warmup))
    path.append(float(average))
  return np.array(path)


def test_an_impulse_halves_at_decay_one_half():
  path = run([1.0, 0.0, 0.0, 0.0], 0.5, warmup=False)
  np.testing.assert_array_equal(path, [0.5, 0.25, 0.125, 0.0625])


def test_a_step_is_approached_geometrically():
  path = run(np.ones(200), 0.98, warmup=False)
  np.testing.assert_allclose(path, 1 - 0.98 ** np.arange(1, 201), rtol=1e-5)


def test_warm_up_forgets_the_start_polynomially():
  # While (1 + n) / (10 + n) rules, the start's share after N updates is the product of those
  # fractions, which telescopes: prod (1 + n) / (10 + n) = N! 9! / (N + 9)!.
  path = run(np.zeros(12), 0.9999, warmup=True, start=1.0)
  numerators = [np.prod(np.arange(1, 10) / (n + np.arange(1, 10))) for n in range(1, 13)]
  np.testing.assert_allclose(path, numerators, rtol=1e-5)


def test_warm_up_ends_at_the_decay():
  # (1 + n) / (10 + n) passes 0.9 at n = 80.
  rates = [float(ema.rate(0.9, jnp.int32(n))) for n in (79, 80, 81, 10**6)]
  assert rates[0] > rates[1]
  np.testing.assert_allclose(rates[1:], 0.1, rtol=1e-6)


def test_a_slow_decay_keeps_its_digits():
  # 1 - float32(0.9999) would be off by 1e-4 of its value.
  assert float(ema.rate(0.9999, jnp.int32(10**9))) == pytest.approx(1e-4, rel=1e-6)


def test_bfloat16_parameters_are_averaged_in_float32():
  average = {'w': jnp.zeros(4, jnp.float32)}
  params = {'w': jnp.ones(4, jnp.bfloat16)}
  for n in range(100):
    average = ema.update(average, params, ema.rate(0.999, jnp.int32(n), warmup=False))
  assert jax.tree.leaves(average)[0].dtype == jnp.float32
  np.testing.assert_allclose(average['w'], 1 - 0.999**100, rtol=1e-4)
