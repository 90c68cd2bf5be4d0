"""The bound in continuous time, against integrals over the log-SNR that know of no schedule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import Denoised, density, discretized, schedules
from ddpm_jax.diffusion.bound import bound_term, categorical, prior_term, reconstruction_term
from ddpm_jax.diffusion.continuous_bound import (
  continuous_bound,
  continuous_reconstruction,
  integrated_terms,
)
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture

pytestmark = pytest.mark.usefixtures('x64')

LOW, HIGH = -4.0, 5.0


def bent():
  """A learned schedule whose leaves are not those of the start."""
  start = schedules.learned(LOW, HIGH)
  return start.replace(heights=start.heights + jnp.linspace(-2, 3, start.heights.size))


# All from the log-SNR LOW to HIGH: straight and bent, with and without alpha² + sigma² = 1.
PATHS = {
  'cosine_log_snr': lambda: schedules.cosine_log_snr(LOW, HIGH),
  'learned': lambda: schedules.learned(LOW, HIGH),
  'learned, bent': bent,
  've': lambda: schedules.ve(math.exp(-HIGH / 2), math.exp(-LOW / 2)),
  'edm': lambda: schedules.edm(math.exp(-HIGH / 2), math.exp(-LOW / 2)),
}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(40)
WEIGHTS = WEIGHTS / WEIGHTS.sum()
X0 = 0.7


def misled(path):
  """A denoiser far from any data's, but a function of xt / alpha and log_snr alone."""

  def denoiser(xt, t):
    def example(x, t):
      return jnp.tanh(0.8 * x / path.alpha(t) + 0.1 * path.log_snr(t))

    return Denoised(jax.vmap(example)(xt, jnp.broadcast_to(t, xt.shape[:1])))

  return denoiser


def integral_over_log_snr():
  """½ ∫ e^l E|x0 - tanh(0.8 (x0 + e^(-l/2) eps) + 0.1 l)|² dl at X0, without any schedule."""
  places, weights = np.polynomial.legendre.leggauss(200)
  log_snr = LOW + (places + 1) / 2 * (HIGH - LOW)
  z = X0 + np.exp(-log_snr / 2)[:, None] * NODES
  errors = np.square(X0 - np.tanh(0.8 * z + 0.1 * log_snr[:, None])) @ WEIGHTS
  return (HIGH - LOW) / 4 * weights @ (np.exp(log_snr) * errors)


@pytest.mark.parametrize('name', PATHS)
def test_the_schedule_enters_through_its_ends_alone(name):
  path = PATHS[name]()
  x0 = jnp.full(NODES.shape, X0)
  found = WEIGHTS @ integrated_terms(path, misled(path), x0, jnp.asarray(NODES), nodes=100)
  assert found == pytest.approx(integral_over_log_snr(), rel=1e-8)


@pytest.mark.parametrize('name', PATHS)
def test_the_same_by_quadrature_over_the_schedules_own_time(name):
  path = PATHS[name]()
  places, weights = np.polynomial.legendre.leggauss(400)
  times = path.t_min + (jnp.asarray(places) + 1) / 2 * (path.t_max - path.t_min)

  def integrand(t):
    xt = path.alpha(t) * X0 + path.sigma(t) * jnp.asarray(NODES)
    slope = jax.grad(lambda t: jnp.exp(path.log_snr(t)))(t)
    return -0.5 * slope * (jnp.asarray(WEIGHTS) @ jnp.square(X0 - misled(path)(xt, t).x0))

  found = (path.t_max - path.t_min) / 2 * weights @ jax.vmap(integrand)(times)
  assert found == pytest.approx(integral_over_log_snr(), rel=1e-5)


@pytest.mark.parametrize('make', [schedules.vp, schedules.sub_vp, schedules.flow])
def test_of_gaussian_data_it_is_the_information(make):
  # I-MMSE: ½ ∫ mmse dSNR = ½ log(1 + variance SNR), here up from zero terminal SNR on `flow`.
  path, data = make(), GaussianData(0.3, 0.4)
  nodes, weights = np.polynomial.hermite_e.hermegauss(3)
  x0 = jnp.repeat(0.3 + math.sqrt(0.4) * nodes, 3)
  eps, weights = jnp.tile(nodes, 3), np.outer(weights, weights).ravel() / weights.sum() ** 2
  found = weights @ integrated_terms(path, data.denoiser(path), x0, eps, nodes=60)
  low, high = (math.exp(path.log_snr(t)) for t in (path.t_max, path.t_min))
  assert found == pytest.approx((math.log1p(0.4 * high) - math.log1p(0.4 * low)) / 2, rel=1e-8)


@pytest.mark.parametrize('name', ['flow', 'vp'])
def test_a_chains_terms_fall_to_it_as_one_over_the_steps(name):
  path = getattr(schedules, name)(t_min=0.05)
  x0, eps = jnp.full(NODES.shape, X0), jnp.asarray(NODES)
  limit = WEIGHTS @ integrated_terms(path, misled(path), x0, eps, nodes=100)

  @jax.jit
  def step(s, t):
    s, t = jnp.full(x0.shape, s), jnp.full(x0.shape, t)
    return jnp.asarray(WEIGHTS) @ bound_term(path, misled(path), x0, s, t, eps, 'small')

  gaps = []
  for count in (100, 200, 400):
    # At alpha = 0 the denoiser is not defined: just above it.
    times = np.linspace(path.t_max - 1e-4, path.t_min, count + 1)
    head = float(0.5 * np.exp(path.log_snr(times[0])))
    gaps.append(sum(map(step, times[1:], times[:-1])) - limit)
    assert head < 1e-3
  slopes = -np.diff(np.log(np.abs(gaps))) / math.log(2)
  np.testing.assert_allclose(slopes, 1, atol=0.1)


def within(draws, expected, sigmas=4.5):
  draws = np.asarray(draws)
  return abs(draws.mean() - expected) < sigmas * draws.std() / math.sqrt(draws.size)


SIZE = 8192


@pytest.mark.parametrize('strata', [1, 3, 16])
@pytest.mark.parametrize('name', ['cosine_log_snr', 've'])
def test_the_estimate_is_unbiased(name, strata):
  path, x0 = PATHS[name](), jnp.full(SIZE, X0)
  denoiser = misled(path)
  bound = jax.jit(
    lambda key: continuous_bound(path, denoiser, x0, key, strata=strata, decoder=density)
  )(jax.random.key(0))
  assert bound.terms.shape == (SIZE, strata)
  assert within(bound.terms.sum(axis=1), integral_over_log_snr())
  one = jnp.asarray(NODES)
  repeated = jnp.full(NODES.shape, X0)
  last = continuous_reconstruction(path, denoiser, repeated, one, density)
  assert within(bound.reconstruction, WEIGHTS @ last)
  np.testing.assert_allclose(bound.prior, prior_term(path, jnp.asarray(X0), path.t_max), rtol=1e-12)


def test_strata_shrink_the_variance_by_their_cube():
  # Where no noise enters: strata of width 1/k, each with variance ∝ k⁻² of a share k⁻², sum to k⁻³.
  path, x0 = PATHS['cosine_log_snr'](), jnp.full(SIZE, X0)

  def variance(strata):
    off = lambda xt, t: Denoised(x0 + 0.5)  # noqa: E731
    terms = continuous_bound(
      path, off, x0, jax.random.key(strata), strata=strata, decoder=density
    ).terms
    return np.var(terms.sum(axis=1))

  assert variance(10) / variance(20) == pytest.approx(8, rel=0.15)


def test_standard_normal_data_costs_the_same_at_every_level():
  # The mean of ½ (1 + SNR) |x0 - x0_hat|² is ½ at every SNR: strata differ by noise alone.
  path, data = schedules.vp(), GaussianData(0.0, 1.0)
  x0 = jax.random.normal(jax.random.key(0), (SIZE,))
  terms = continuous_bound(
    path, data.denoiser(path), x0, jax.random.key(1), strata=6, decoder=density
  ).terms
  each = math.log1p(math.exp(path.log_snr(path.t_min))) - math.log1p(math.exp(path.log_snr(1.0)))
  for k in range(6):
    assert within(terms[:, k], each / 12)


# A mixture: the value itself is known by quadrature.

MIXTURE = ([0.3, 0.7], [[-0.8], [0.6]], [[[0.04]], [[0.09]]])


def mixture_draws():
  """x0 (n, 1), eps (n, 1) and weights (n,) that integrate over the mixture and the noise."""
  weights, means, covariances = map(np.asarray, MIXTURE)
  x0 = means + np.sqrt(covariances[:, 0]) * NODES
  mass = weights[:, None] * WEIGHTS
  pairs = np.repeat(x0.ravel(), NODES.size), np.tile(NODES, x0.size)
  return *(jnp.asarray(value)[:, None] for value in pairs), np.outer(mass, WEIGHTS).ravel()


def exact_value(mixture, path):
  """H(x0) + KL(q(x_T) ‖ prior)."""
  alpha, sigma = float(path.alpha(path.t_max)), float(path.sigma(path.t_max))
  wide = alpha**2 + sigma**2
  square = float(mixture.variance[0] + mixture.mean[0] ** 2)
  cross = (math.log(2 * math.pi * wide) + (alpha**2 * square + sigma**2) / wide) / 2
  entropy = mixture.marginal(path, path.t_max).quadrature_entropy()
  return float(mixture.quadrature_entropy()) + cross - float(entropy)


def test_of_a_mixture_the_bound_is_above_the_value_and_falls_to_it():
  path, mixture = schedules.cosine_log_snr(-5.0, 9.0), GaussianMixture(*MIXTURE)
  denoiser = mixture.denoiser(path)
  x0, eps, weights = mixture_draws()
  value = exact_value(mixture, path)
  first = weights @ jax.vmap(prior_term, (None, 0, None))(path, x0, path.t_max)

  @jax.jit
  def chain(times):
    def term(step):
      s, t = (jnp.full(x0.shape[:1], time) for time in step)
      return jnp.asarray(weights) @ bound_term(path, denoiser, x0, s, t, eps, 'optimal')

    return jnp.sum(jax.lax.map(term, (times[1:], times[:-1])))

  excesses = []
  for count in (10, 30, 90):
    times = jax.vmap(path.time)(jnp.linspace(-5.0, 9.0, count + 1))
    last = reconstruction_term(path, denoiser, x0, times, eps, 'optimal', density)
    excesses.append(float(first + chain(times) + weights @ last) - value)
  assert min(excesses) > 0
  assert np.all(np.diff(excesses) < 0)
  assert excesses[-1] < 0.01
  limit = weights @ integrated_terms(path, denoiser, x0, eps, nodes=80)
  last = weights @ continuous_reconstruction(path, denoiser, x0, eps, density)
  assert -1e-6 < first + limit + last - value < 1e-3


# What it is given.


def test_draws_belong_to_the_example_and_not_to_its_batch():
  path, x0 = schedules.flow(), jax.random.normal(jax.random.key(2), (6, 3, 3, 1))
  data = GaussianData(jnp.zeros((3, 3, 1)), 0.5)

  def total(x0, index, key):
    denoiser = data.denoiser(path)
    options = dict(strata=3, decoder=discretized(17), index=index)
    return continuous_bound(path, denoiser, x0, key, **options).total

  key, index = jax.random.key(3), jnp.array([7, 0, 3, 1000, 12, 5])
  whole, order = total(x0, index, key), jnp.array([4, 2, 0, 1, 5, 3])
  np.testing.assert_allclose(total(x0[order], index[order], key), whole[order], rtol=1e-12)
  assert np.unique(total(jnp.broadcast_to(x0[0], x0.shape), index, key)).size == 6
  np.testing.assert_allclose(total(x0, None, key), total(x0, jnp.arange(6), key), rtol=1e-12)


def test_a_decoder_without_a_known_variance_is_given_the_evidences():
  path, x0 = schedules.flow(t_min=0.2), jnp.linspace(-1, 1, 5)[:, None]
  blind = lambda xt, t: Denoised(xt / path.alpha(t))  # noqa: E731
  seen = []

  def decoder(x0, reverse, evidence):
    seen.append(reverse)
    return -jnp.sum(jnp.square(reverse.mean - evidence.mean) + reverse.variance)

  found = continuous_reconstruction(path, blind, x0, jnp.ones_like(x0), decoder)
  np.testing.assert_allclose(found, 0.25**2, rtol=1e-12)


def test_a_chain_is_refused():
  chain = schedules.linear(5)
  with pytest.raises(TypeError, match=r'use schedules\.interpolate'):
    continuous_bound(
      chain,
      misled(chain),
      jnp.zeros((2, 1)),
      jax.random.key(0),
      strata=2,
      decoder=categorical(17),
    )
