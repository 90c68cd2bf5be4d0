"""The score against the oracle, and its objectives by exact quadrature on Gaussian data."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import Denoised, q_sample, schedules
from ddpm_jax.diffusion.score import (
  denoiser_from_score,
  denoising_score_matching,
  implicit_score_matching,
  make_score,
  score_from_x0,
  sliced_score_matching,
  x0_from_score,
)
from ddpm_jax.theory.oracle import GaussianData

T = 20
DATA = GaussianData(0.4, 0.3)
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@pytest.fixture
def chain(x64):
  return schedules.from_betas(np.linspace(0.01, 0.5, T))


def mixture(x0):
  """A density of two unequal modes."""
  return 0.3 * np.exp(-((x0 + 1) ** 2) / 0.08) / np.sqrt(0.08 * np.pi) + 0.7 * np.exp(
    -((x0 - 1.5) ** 2) / 0.5
  ) / np.sqrt(0.5 * np.pi)


@pytest.mark.parametrize('t', [1, 8, T])
@pytest.mark.parametrize('xt', [-1.3, 0.2, 2.0])
def test_tweedie_on_a_mixture_by_brute_force(chain, xt, t):
  alpha, sigma = float(chain.alpha(t)), float(chain.sigma(t))
  x0 = np.linspace(-6, 7, 200_001)

  def log_marginal(xt):
    return np.log(np.sum(mixture(x0) * np.exp(-((xt - alpha * x0) ** 2) / (2 * sigma**2))))

  joint = mixture(x0) * np.exp(-((xt - alpha * x0) ** 2) / (2 * sigma**2))
  mean, step = np.sum(joint * x0) / np.sum(joint), 1e-4 * sigma
  slope = (log_marginal(xt + step) - log_marginal(xt - step)) / (2 * step)
  assert score_from_x0(chain, mean, xt, t) == pytest.approx(slope, rel=1e-5, abs=1e-7)
  assert x0_from_score(chain, slope, xt, t) == pytest.approx(mean, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize('t', [1, 8, T])
def test_tweedie_against_the_oracle(chain, t):
  xt = jax.random.normal(jax.random.key(0), (5, 3))
  data = GaussianData(jnp.array([0.1, -2.0, 0.7]), jnp.array([0.3, 2.0, 0.01]))
  oracle = data.denoiser(chain)
  scores = jax.jit(jax.vmap(make_score(chain, oracle, t)))(xt)
  expected = jax.jit(jax.vmap(lambda xt: data.score(chain, xt, t)))(xt)
  np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)
  denoiser = denoiser_from_score(chain, lambda xt, t: data.score(chain, xt, t))
  for times in (t, jnp.array([1, 5, t, 9, T])):
    x0 = jax.jit(lambda times: denoiser(xt, times).x0)(times)
    np.testing.assert_allclose(x0, oracle(xt, times).x0, rtol=1e-9)


def test_score_of_a_known_example_is_its_noise(chain):
  x0, eps = jax.random.normal(jax.random.key(0), (2, 4))
  xt = q_sample(chain, x0, 7, eps)
  np.testing.assert_allclose(score_from_x0(chain, x0, xt, 7), -eps / chain.sigma(7), rtol=1e-9)


def family(params):
  """Scores of which the Gaussian's is one, and most are no Gaussian's."""
  slope, offset, bend = params
  return lambda x: slope * x + offset + bend * jnp.tanh(x)


@jax.jit
def expected_dsm(params, chain, t):
  """The expectation of the denoising objective over x0 and eps, as a sum over nodes."""
  x0, eps = (grid.ravel() for grid in np.meshgrid(NODES, NODES))
  weights = np.outer(WEIGHTS, WEIGHTS).ravel()
  one = lambda x0, eps: denoising_score_matching(family(params), chain, x0, t, eps)  # noqa: E731
  return weights @ jax.vmap(one)(DATA.mean + math.sqrt(DATA.variance) * x0, jnp.asarray(eps))


@jax.jit
def expected_ism(params, chain, t):
  """The expectation of the implicit objective over xt."""
  marginal = DATA.marginal(chain, t)
  xt = marginal.sample(jnp.asarray(NODES))
  return WEIGHTS @ jax.vmap(lambda x: implicit_score_matching(family(params), x))(xt)


@pytest.mark.parametrize('t', [1, 8, T])
def test_denoising_is_least_at_the_oracles_score(chain, t):
  marginal = DATA.marginal(chain, t)
  exact = jnp.array([-1 / marginal.variance, marginal.mean / marginal.variance, 0.0])
  unit = 1 / chain.sigma(t) ** 2
  gradient = jax.jit(jax.grad(expected_dsm))(exact, chain, t)
  np.testing.assert_allclose(gradient / unit, 0, atol=1e-10)  # of tanh, by the nodes
  curvature = jax.jit(jax.hessian(expected_dsm))(exact, chain, t)
  assert np.all(np.linalg.eigvalsh(curvature) > 0)
  # What is left is the noise that xt cannot tell: (1/sigma² - 1/variance) / 2 in one dimension.
  left = (unit - 1 / marginal.variance) / 2
  assert expected_dsm(exact, chain, t) == pytest.approx(float(left), rel=1e-10)


@pytest.mark.parametrize('params', [(-1.0, 0.2, 0.0), (-0.3, 0.0, 1.5), (2.0, -1.0, -0.7)])
def test_denoising_and_implicit_differ_by_a_constant(chain, params):
  t = 8
  params, sigma = jnp.array(params), float(chain.sigma(t))
  difference = expected_dsm(params, chain, t) - expected_ism(params, chain, t)
  assert difference == pytest.approx(1 / (2 * sigma**2), rel=1e-8)


@pytest.mark.parametrize('params', [(-1.0, 0.2, 0.0), (-0.3, 0.0, 1.5)])
def test_implicit_is_the_misfit_less_the_information(chain, params):
  t, score = 8, family(params)
  marginal = DATA.marginal(chain, t)
  xt = marginal.sample(jnp.asarray(NODES))
  misfit = WEIGHTS @ np.square(score(xt) + (xt - marginal.mean) / marginal.variance) / 2
  information = 1 / marginal.variance
  assert expected_ism(params, chain, t) == pytest.approx(float(misfit - information / 2), rel=1e-8)


def curl(x):
  """A field of two by two whose Jacobian is neither symmetric nor constant."""
  a, b, c, d = x.ravel()
  return jnp.array([[a**2 + b, jnp.sin(a * c)], [c * d - b, jnp.exp(-(d**2)) + a]])


def test_implicit_has_the_exact_divergence(x64):
  x = jnp.array([[0.3, -0.7], [1.1, 0.4]])
  a, d = np.ravel(x)[[0, 3]]
  divergence = 2 * a + d - 2 * d * math.exp(-(d**2))
  square = np.sum(np.square(curl(x)))
  value = jax.jit(lambda x: implicit_score_matching(curl, x))(x)
  assert value == pytest.approx(divergence + square / 2, rel=1e-12)


def test_sliced_is_implicit_over_all_directions(x64):
  # The sixteen Rademacher directions in four dimensions, each as likely, and the Gaussian's nodes.
  x = jnp.array([[0.3, -0.7], [1.1, 0.4]])
  expected = float(jax.jit(lambda x: implicit_score_matching(curl, x))(x))
  nodes, weights = np.polynomial.hermite_e.hermegauss(3)
  weights = weights / weights.sum()
  for values, shares in (([-1.0, 1.0], np.full(2, 0.5)), (nodes, weights)):
    v = np.array(list(itertools.product(values, repeat=4))).reshape(-1, 2, 2)
    share = np.array([math.prod(s) for s in itertools.product(shares, repeat=4)])
    sliced = jax.jit(jax.vmap(lambda v: sliced_score_matching(curl, x, v)))(jnp.asarray(v))
    assert np.std(sliced) > 0.1
    assert share @ sliced == pytest.approx(expected, rel=1e-12)


def test_where_there_is_nothing_to_divide_by():
  chain = schedules.from_betas([0.5, 1.0])
  with pytest.raises(ValueError, match='sigma at t = 0 is 0'):
    score_from_x0(chain, 1.0, 1.0, 0)
  with pytest.raises(ValueError, match='alpha at t = 2 is 0'):
    x0_from_score(chain, 1.0, 1.0, 2)
  with pytest.raises(ValueError, match='sigma at t = 0 is 0'):
    denoising_score_matching(lambda x: x, chain, 1.0, 0, 1.0)
  with pytest.raises(ValueError, match=r'use jax.vmap\(make_score'):
    make_score(chain, lambda xt, t: Denoised(xt), jnp.array([1, 2]))
