"""The evidence lower bound against the linear-Gaussian model and the chain of a Gaussian.

There every integrand is a quadratic in the noise, which Gauss-Hermite quadrature with three nodes
integrates without error: expectations are exact, and Monte Carlo is left for the one bound that
isn't quadratic, the importance-weighted.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import multivariate_normal

from ddpm_jax.diffusion import VARIANCES, Gaussian, density, schedules, variational_bound
from ddpm_jax.diffusion.vae import (
  Chain,
  LinearGaussian,
  chain_elbo,
  chain_log_joint,
  elbo,
  importance_bound,
  log_ratio,
  principal_components,
)
from ddpm_jax.theory.oracle import GaussianData

pytestmark = pytest.mark.usefixtures('x64')

WEIGHT = np.random.default_rng(0).normal(size=(4, 2))
OFFSET = np.array([0.5, -1.0, 0.0, 2.0])
NOISE = 0.3
X = np.array([1.0, -0.2, 0.7, 0.4])


def model():
  return LinearGaussian(jnp.asarray(WEIGHT), jnp.asarray(OFFSET), jnp.asarray(NOISE))


def some_q():
  """Independent components, far from the posterior."""
  return Gaussian(jnp.array([0.3, -0.8]), jnp.array([0.2, 0.05]))


def log_joint(z):
  return model().log_joint(jnp.asarray(X), z)


def evidence():
  """log p(x), by SciPy."""
  return multivariate_normal(OFFSET, WEIGHT @ WEIGHT.T + NOISE * np.eye(4)).logpdf(X)


def conditional():
  """Mean and covariance of z given x, by conditioning the joint Gaussian of (z, x)."""
  gain = WEIGHT.T @ np.linalg.inv(WEIGHT @ WEIGHT.T + NOISE * np.eye(4))
  return gain @ (X - OFFSET), np.eye(2) - gain @ WEIGHT


def gauss_hermite(dimensions):
  """Nodes (3^n, n) and weights of a standard normal in n dimensions."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(3)
  weights = weights / weights.sum()
  grid = np.array(list(itertools.product(nodes, repeat=dimensions)))
  return jnp.asarray(grid), np.prod(list(itertools.product(weights, repeat=dimensions)), axis=1)


def expectation(function, dimensions):
  nodes, weights = gauss_hermite(dimensions)
  return float(weights @ np.asarray(jax.jit(jax.vmap(function))(nodes)))


# The linear-Gaussian model.


def test_the_evidence_and_the_posterior_are_those_of_the_joint_gaussian():
  assert float(model().evidence().log_prob(jnp.asarray(X))) == pytest.approx(evidence(), rel=1e-12)
  mean, covariance = conditional()
  posterior = model().posterior(jnp.asarray(X))
  np.testing.assert_allclose(posterior.mean, mean, rtol=1e-10)
  np.testing.assert_allclose(posterior.factor @ posterior.factor.T, covariance, rtol=1e-10)
  z = np.array([0.1, -0.4])
  truth = multivariate_normal(mean, covariance).logpdf(z)
  assert float(posterior.log_prob(jnp.asarray(z))) == pytest.approx(truth, rel=1e-10)


def test_the_bound_is_the_evidence_less_the_divergence_from_the_posterior():
  q, (mean, covariance) = some_q(), conditional()
  precision, shift = np.linalg.inv(covariance), np.asarray(q.mean) - mean
  divergence = 0.5 * (
    np.trace(precision @ np.diag(q.variance))
    + shift @ precision @ shift
    - 2
    + np.log(np.linalg.det(covariance) / np.prod(q.variance))
  )
  assert float(model().elbo(jnp.asarray(X), q)) == pytest.approx(evidence() - divergence, rel=1e-12)


def test_both_estimates_have_the_bound_as_their_mean():
  q, exact = some_q(), float(model().elbo(jnp.asarray(X), some_q()))

  def log_likelihood(z):
    return model().likelihood(z).log_prob(jnp.asarray(X))

  closed = expectation(lambda eps: elbo(q, model().prior(), log_likelihood, eps), 2)
  ratio = expectation(lambda eps: log_ratio(q, log_joint, eps), 2)
  assert closed == pytest.approx(exact, rel=1e-12)
  assert ratio == pytest.approx(exact, rel=1e-12)


def test_with_the_exact_posterior_every_draw_gives_the_evidence():
  q = model().posterior(jnp.asarray(X))
  eps = jax.random.normal(jax.random.key(0), (50, 2))
  ratios = jax.vmap(log_ratio, (None, None, 0))(q, log_joint, eps)
  np.testing.assert_allclose(ratios, evidence(), rtol=1e-10)
  assert float(importance_bound(q, log_joint, eps)) == pytest.approx(evidence(), rel=1e-10)


def test_draws_of_a_correlated_gaussian_have_its_moments():
  posterior = model().posterior(jnp.asarray(X))
  nodes, weights = gauss_hermite(2)
  z = np.asarray(jax.vmap(posterior.sample)(nodes))
  mean, covariance = conditional()
  np.testing.assert_allclose(weights @ z, mean, rtol=1e-10)
  np.testing.assert_allclose((weights * (z - mean).T) @ (z - mean), covariance, rtol=1e-10)


def importance_means(counts, repeats):
  """Mean and standard error of the importance-weighted bound for each number of draws."""
  # A q wider than the posterior, else the weights have no variance and the errors no meaning.
  mean, covariance = conditional()
  q = Gaussian(jnp.asarray(mean + 0.2), jnp.asarray(2.0 * np.diag(covariance)))
  found = {}
  for count in counts:
    eps = jax.random.normal(jax.random.key(count), (repeats, count, 2))
    values = np.asarray(jax.jit(jax.vmap(lambda e: importance_bound(q, log_joint, e)))(eps))
    found[count] = (values.mean(), values.std() / math.sqrt(repeats))
  return found, float(model().elbo(jnp.asarray(X), q))


def test_importance_weighting_climbs_from_the_bound_to_the_evidence():
  counts = (1, 3, 9, 81)
  found, bound = importance_means(counts, 8000)
  mean, error = found[1]
  assert abs(mean - bound) < 5 * error
  for fewer, more in itertools.pairwise(counts):
    (low, low_error), (high, high_error) = found[fewer], found[more]
    assert high - low > 5 * math.hypot(low_error, high_error)
  mean, error = found[81]
  assert mean < evidence() + 5 * error
  assert evidence() - mean < 0.05 * (evidence() - bound)


def test_importance_weighting_is_the_log_of_a_mean():
  eps = jax.random.normal(jax.random.key(0), (7, 2))
  q = some_q()
  ratios = [
    log_joint(q.sample(e)) - multivariate_normal(q.mean, np.diag(q.variance)).logpdf(q.sample(e))
    for e in eps
  ]
  truth = math.log(np.mean(np.exp(ratios)))
  assert float(importance_bound(q, log_joint, eps)) == pytest.approx(truth, rel=1e-10)


# Its maximum-likelihood optimum.


@pytest.fixture
def data():
  """200 vectors of four correlated components."""
  generator = np.random.default_rng(1)
  z, noise = generator.normal(size=(200, 2)), generator.normal(size=(200, 4))
  return jnp.asarray(z @ WEIGHT.T + OFFSET + math.sqrt(NOISE) * noise)


def mean_evidence(fitted, data):
  return jnp.mean(jax.vmap(fitted.evidence().log_prob)(data))


def test_the_optimum_is_stationary_and_no_neighbor_is_better(data):
  best = principal_components(data, 2)
  slopes = jax.tree.leaves(jax.grad(mean_evidence)(best, data))
  np.testing.assert_allclose(np.concatenate([s.ravel() for s in slopes]), 0, atol=1e-10)
  top = float(mean_evidence(best, data))
  leaves, tree = jax.tree.flatten(best)
  generator = np.random.default_rng(2)
  for size in (0.01, 0.1, 0.3):
    moved = [leaf * (1 + size * generator.normal(size=leaf.shape)) for leaf in leaves]
    assert float(mean_evidence(jax.tree.unflatten(tree, moved), data)) < top
  # Where all of the covariance is explained, the evidence is the negative entropy of a Gaussian.
  full = float(mean_evidence(principal_components(data, 3), data))
  covariance = np.cov(np.asarray(data).T, bias=True)
  entropy = 0.5 * np.linalg.slogdet(2 * math.pi * math.e * covariance)[1]
  assert full == pytest.approx(-entropy, rel=1e-10)
  assert top < full


def test_the_optimum_has_a_posterior_of_independent_components(data):
  best = principal_components(data, 2)
  posterior = best.posterior(data[0])
  assert abs(posterior.factor[1, 0]) < 1e-12
  q = Gaussian(posterior.mean, jnp.square(jnp.diagonal(posterior.factor)))
  truth = float(best.evidence().log_prob(data[0]))
  assert float(best.elbo(data[0], q)) == pytest.approx(truth, rel=1e-10)


def test_ascending_the_bound_with_an_amortized_q_reaches_the_optimum(data):
  best = principal_components(data, 2)
  generator = np.random.default_rng(3)
  start = {
    'weight': best.weight + 0.3 * generator.normal(size=(4, 2)),
    'mean': best.mean + 0.3,
    'log_variance': jnp.log(best.variance) + 0.5,
    'encoder': jnp.asarray(0.1 * generator.normal(size=(2, 4))),
    'encoder_mean': jnp.zeros(2),
    'encoder_log_variance': jnp.zeros(2),
  }

  def parts(params):
    fitted = LinearGaussian(params['weight'], params['mean'], jnp.exp(params['log_variance']))

    def bound(x):
      mean = params['encoder'] @ x + params['encoder_mean']
      return fitted.elbo(x, Gaussian(mean, jnp.exp(params['encoder_log_variance'])))

    return fitted, jnp.mean(jax.vmap(bound)(data))

  optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 6000))

  def step(carry, _):
    params, state = carry
    updates, state = optimizer.update(jax.grad(lambda p: -parts(p)[1])(params), state)
    return (optax.apply_updates(params, updates), state), None

  (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, (s, optimizer.init(s)), length=6000))(start)
  fitted, bound = parts(params)
  top = float(mean_evidence(best, data))
  assert float(mean_evidence(parts(start)[0], data)) < top - 0.05
  assert float(bound) == pytest.approx(top, abs=1e-5)
  assert float(mean_evidence(fitted, data)) == pytest.approx(top, abs=1e-5)


def test_variances_that_are_all_the_same_leave_nothing_to_the_latents():
  # The points ±e_i, turned: their covariance is I / 4, its eigenvalues equal up to rounding.
  for seed in range(8):
    turned = np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
    fitted = principal_components(jnp.asarray(np.concatenate([turned, -turned]), jnp.float32), 2)
    assert np.abs(fitted.weight).max() < 1e-3
    assert float(fitted.variance) == pytest.approx(1 / 4, rel=1e-5)


@pytest.mark.parametrize('latents', [0, 4])
def test_as_many_latents_as_dimensions_are_refused(data, latents):
  with pytest.raises(ValueError, match=f'latents = {latents} is not between 1 and 3'):
    principal_components(data, latents)


# The chain.

MEAN, VARIANCE = 0.3, 0.4
BETAS = {3: [0.1, 0.3, 0.6], 4: [0.2, 0.3, 0.4, 1.0], 5: [0.05, 0.1, 0.2, 0.4, 0.5]}


def chain_parts(betas, variance):
  chain = schedules.from_betas(betas)
  exact = GaussianData(MEAN, VARIANCE).denoiser(chain)

  def denoiser(xt, t):
    return exact(xt, t)._replace(fraction=jnp.full(xt.shape, 0.3))

  times = jnp.arange(chain.num_steps, 0, -1)
  return chain, denoiser, dict(times=times, variance=variance, decoder=density)


def mean_chain_elbo(betas, variance, x0):
  chain, denoiser, options = chain_parts(betas, variance)
  x0 = jnp.asarray(x0)
  return expectation(lambda eps: chain_elbo(chain, denoiser, x0, eps, **options), len(betas))


@pytest.mark.parametrize('variance', VARIANCES)
@pytest.mark.parametrize('num_steps', BETAS)
def test_the_bound_of_the_chain_is_the_variational_bound(num_steps, variance):
  chain, denoiser, options = chain_parts(BETAS[num_steps], variance)
  x0 = jnp.full(20_000, 0.7)
  totals = np.asarray(
    jax.jit(lambda key: variational_bound(chain, denoiser, x0, key, **options).total)(
      jax.random.key(0)
    )
  )
  error = totals.std() / math.sqrt(totals.size)
  assert error < 0.01
  assert abs(totals.mean() + mean_chain_elbo(BETAS[num_steps], variance, 0.7)) < 5 * error


@pytest.mark.parametrize('num_steps', BETAS)
def test_the_exact_chain_costs_the_entropy_and_the_gap_of_the_prior(num_steps):
  betas = np.asarray(BETAS[num_steps])
  nodes, weights = gauss_hermite(1)
  points = MEAN + math.sqrt(VARIANCE) * np.asarray(nodes[:, 0])
  bound = weights @ [mean_chain_elbo(betas, 'optimal', x0) for x0 in points]
  entropy = math.log(2 * math.pi * math.e * VARIANCE) / 2
  alpha_bar = np.prod(1 - betas)
  mean, variance = math.sqrt(alpha_bar) * MEAN, alpha_bar * VARIANCE + 1 - alpha_bar
  gap = (variance + mean**2 - 1 - math.log(variance)) / 2
  assert -bound == pytest.approx(entropy + gap, abs=1e-10)


@pytest.mark.parametrize('num_steps', BETAS)
def test_the_chains_posterior_has_the_marginals_and_density_of_the_forward_process(num_steps):
  chain, _, options = chain_parts(BETAS[num_steps], 'small')
  q = Chain(chain, jnp.asarray(0.7), options['times'])
  nodes, weights = gauss_hermite(num_steps)
  paths = np.asarray(jax.vmap(q.sample)(nodes))
  alphas_bar = np.cumprod(1 - np.asarray(BETAS[num_steps]))[::-1]
  np.testing.assert_allclose(weights @ paths, np.sqrt(alphas_bar) * 0.7, atol=1e-12)
  deviations = paths - weights @ paths
  # x_t is sqrt(alpha_bar_t / alpha_bar_s) xs and noise: Cov[xs, xt] = that times Var xs.
  s, t = np.maximum.outer(alphas_bar, alphas_bar), np.minimum.outer(alphas_bar, alphas_bar)
  covariance = np.sqrt(t / np.maximum(s, 1e-300)) * (1 - s) + (s == 0)
  np.testing.assert_allclose((weights * deviations.T) @ deviations, covariance, atol=1e-12)
  truth = multivariate_normal(np.sqrt(alphas_bar) * 0.7, covariance).logpdf(paths[5])
  assert float(q.log_prob(jnp.asarray(paths[5]))) == pytest.approx(truth, rel=1e-9)


def test_the_chain_is_bounded_by_its_evidence_and_importance_weighting_closes_in():
  # log p(x0, z) is a quadratic in z: its integral over z is known from its top and its Hessian.
  chain, denoiser, options = chain_parts(BETAS[3], 'large')
  x0 = jnp.asarray(0.7)

  def joint(z):
    return chain_log_joint(chain, denoiser, x0, z, **options)

  hessian, slope = jax.hessian(joint)(jnp.zeros(3)), jax.grad(joint)(jnp.zeros(3))
  top = joint(-jnp.linalg.solve(hessian, slope))
  evidence = float(top - 0.5 * jnp.linalg.slogdet(-hessian / (2 * jnp.pi))[1])
  bound = mean_chain_elbo(BETAS[3], 'large', 0.7)
  assert bound < evidence - 0.01
  q = Chain(chain, x0, options['times'])
  eps = jax.random.normal(jax.random.key(0), (500, 200, 3))
  values = np.asarray(jax.jit(jax.vmap(lambda e: importance_bound(q, joint, e)))(eps))
  error = values.std() / math.sqrt(500)
  assert bound + 5 * error < values.mean() < evidence + 5 * error
  assert evidence - values.mean() < 0.1 * (evidence - bound)


def test_examples_of_any_shape_add_up():
  chain, denoiser, options = chain_parts(BETAS[3], 'small')
  x0 = jax.random.normal(jax.random.key(0), (2, 3))
  eps = jax.random.normal(jax.random.key(1), (3, 2, 3))
  exact = GaussianData(jnp.full((2, 3), MEAN), VARIANCE).denoiser(chain)
  whole = chain_elbo(chain, exact, x0, eps, **options)
  parts = [
    chain_elbo(chain, denoiser, x0[i, j], eps[:, i, j], **options)
    for i, j in itertools.product(range(2), range(3))
  ]
  assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-10)


def test_one_time_alone_is_refused():
  chain, denoiser, options = chain_parts(BETAS[3], 'small')
  options['times'] = jnp.array([3])
  with pytest.raises(ValueError, match='needs two times or more'):
    chain_elbo(chain, denoiser, jnp.asarray(0.7), jnp.zeros(1), **options)
