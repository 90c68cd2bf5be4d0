"""Denoising and sliced score matching on Gaussian data, where every expectation is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.losses import WEIGHTS
from tests.losses.test_products import (
  NUM_STEPS,
  PARAMETERIZATIONS,
  VARIANCE,
  always,
  assert_mean,
  chain,
  data,
  evaluate,
  make_context,
)

pytestmark = pytest.mark.usefixtures('x64')


def linear_network(factor):
  """The oracle's eps times a factor."""

  def network(params, x, noise_label, cond, index=None, keys=None):
    t = noise_label.astype(int)
    oracle = data().denoiser(chain())(x, t).x0
    alpha, sigma = (jax.vmap(f)(t).reshape(-1, 1, 1) for f in (chain().alpha, chain().sigma))
    return factor * params * (x - alpha * oracle) / sigma

  return network


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
@pytest.mark.parametrize('weight', ['simple', 'variational'])
def test_denoising_is_half_the_product_of_the_same_weight(name, weight):
  context = make_context(name, weight=WEIGHTS[weight])
  half = evaluate(context, range(8), loss='denoising_score').values
  np.testing.assert_allclose(half, evaluate(context, range(8)).values / 2, rtol=1e-9)


@pytest.mark.parametrize('name', ['eps', 'v', 'x0', 'edm'])
def test_sliced_and_denoising_differ_by_half_the_weight(name):
  values = [
    evaluate(make_context(name), range(20_000), loss=loss).values
    for loss in ('denoising_score', 'sliced_score')
  ]
  assert_mean(values[0] - values[1], 0.5)


@pytest.mark.parametrize('time', [1, 7, NUM_STEPS])
@pytest.mark.parametrize('factor', [1.0, 0.6])
def test_sliced_has_its_closed_form(time, factor):
  # sigma s = -factor sigma (xt - m) / V, V = Var xt: E ½ sigma² s² = ½ factor² sigma² / V, and
  # sigma² tr ∇s / dimension = -factor sigma² / V.
  alpha, sigma = float(chain().alpha(time)), float(chain().sigma(time))
  share = sigma**2 / (alpha**2 * VARIANCE + sigma**2)
  context = make_context(network=linear_network(factor), timestep_distribution=always(time))
  values = evaluate(context, range(4000), strength=1.0, loss='sliced_score').values
  assert_mean(values, (0.5 * factor**2 - factor) * share)


@pytest.mark.parametrize('loss', ['denoising_score', 'sliced_score'])
def test_the_true_score_is_the_minimum(loss):
  context = make_context('eps')

  @jax.jit
  def slopes(strength):
    return jax.jacfwd(lambda s: evaluate(context, range(4000), s, loss=loss).values)(strength)

  assert_mean(slopes(0.0), 0.0)
  for strength in (-0.3, 0.3):
    slope = slopes(strength)
    assert np.sign(strength) * slope.mean() > 10 * slope.std() / np.sqrt(slope.size)


def test_the_probe_estimates_the_trace_without_bias_for_coupled_pixels():
  # s(x) = -A x with A not diagonal: the mean over probes of vᵀ A v is tr A.
  matrix = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)))

  def network(params, x, noise_label, cond, index=None, keys=None):
    return (x.reshape(-1, 6) @ matrix.T).reshape(x.shape)

  context = make_context(network=network, timestep_distribution=always(7))
  found = evaluate(context, range(20_000), loss='sliced_score').values
  half = evaluate(context, range(20_000), loss='denoising_score').values
  assert_mean(found - half, -0.5)


def test_an_examples_score_loss_is_its_own():
  for loss in ('denoising_score', 'sliced_score'):
    together = evaluate(make_context(), range(8), loss=loss).values
    halves = [evaluate(make_context(), half, loss=loss).values for half in (range(4), range(4, 8))]
    np.testing.assert_allclose(np.concatenate(halves), together, rtol=1e-12)
