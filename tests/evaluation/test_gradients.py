import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import data
from ddpm_jax.codec import scale
from ddpm_jax.evaluation.gradients import Tally, gradient_noise, relative_variance, tally
from ddpm_jax.losses import LossOutput
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training.parallel import PARALLEL
from ddpm_jax.training.state import new_state


def tallied(grads):
  optimizer = tally()
  state = optimizer.init(grads[0])
  for grad in grads:
    updates, state = optimizer.update(grad, state)
    assert optax.tree.norm(updates) == 0
  return state


def test_a_quadratic_has_the_closed_form():
  """½ |x - m|² over minibatches of B rows x ~ N(0, s² I_d): g ~ N(-m, s² I / B) at parameter m.

  So tr Cov(g) / |E g|² = d s² / (B |m|²) = 1. Of n gradients the estimate of the numerator errs by
  sqrt(2 / (n d)) = 0.2 % and that of |E g|² by 2 sqrt(s² |m|² / (n B)) / |m|² = 0.4 %.
  """
  d, B, s, n = 50, 4, 0.8, 10_000
  m = np.full(d, s / math.sqrt(B))
  x = s * np.random.default_rng(0).standard_normal((n, B, d)).astype(np.float32)
  grads = x.mean(axis=1) - m
  seen = Tally(jnp.float32(n), jnp.asarray(grads.sum(0)), jnp.asarray(np.square(grads).sum()))
  assert relative_variance(seen) == pytest.approx(1, abs=4 * 0.0045)


def test_both_estimates_are_unbiased():
  """Of three numbers g with mean 1 and variance 4, over many draws of three."""
  g = 1 + 2 * np.random.default_rng(0).standard_normal((200_000, 3))
  total, squares = g.sum(1), np.square(g).sum(1)
  mean_squared = (total**2 - squares) / 6
  by_hand = [
    relative_variance(Tally(3.0, np.array([t]), q))
    for t, q in zip(total[:50], squares[:50], strict=True)
  ]
  pairs = (g[:50, 0] * g[:50, 1] + g[:50, 0] * g[:50, 2] + g[:50, 1] * g[:50, 2]) / 3
  variance = g[:50].var(axis=1, ddof=1)  # mean |g|² less the mean product is the sample variance
  expected = np.where(pairs > 0, variance / pairs, np.inf)
  np.testing.assert_allclose(by_hand, expected, rtol=1e-9)
  assert mean_squared.mean() == pytest.approx(1, abs=0.05)
  assert (squares / 3 - mean_squared).mean() == pytest.approx(4, abs=0.05)


def test_the_tally_counts_every_leaf_and_moves_nothing():
  grads = [{'a': jnp.full((2,), v), 'b': jnp.float32(2 * v)} for v in (1.0, 3.0)]
  seen = tallied(grads)
  # |g|² = 6 v²: 6 + 54; the mean product g_1·g_2 = 6 · 3 = 18, so the ratio is (30 - 18) / 18.
  assert float(seen.squares) == 60 and float(seen.count) == 2
  assert relative_variance(seen) == pytest.approx(12 / 18)


def test_gradients_without_a_common_direction():
  assert relative_variance(tallied([jnp.array([1.0]), jnp.array([-1.0])])) == math.inf


def test_the_training_step_is_what_is_measured(experiment, digits):
  """With the loss p · mean x of one parameter p, the gradient is the batch's mean pixel."""
  params = {'network': jnp.float32(5.0), 'schedule': {}, 'loss': {}}

  def loss(context, params, state, batch, keys):
    return LossOutput(params['network'] * batch['x'].mean((1, 2, 3)), {}, state)

  simple = dataclasses.replace(experiment, loss=loss)
  batches = list(itertools.islice(data.batches(digits, digits.train, 40), 8))
  means = [scale(batch['x'], digits.num_levels).mean() for batch in batches]
  job = make_job(simple)._replace(parallel=PARALLEL['pmap'](jax.devices()))
  state = new_state(job.task, job.config)
  averages = {name: jax.tree.map(jnp.copy, params) for name in state.ema}
  state = state.replace(params=params, ema=averages)
  found = gradient_noise(job, state, batches)
  means = np.asarray(means, np.float64)
  products = (means.sum() ** 2 - (means**2).sum()) / 56
  assert found == pytest.approx(means.var(ddof=1) / products, rel=1e-3)
