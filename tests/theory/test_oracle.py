import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from ddpm_jax.diffusion import schedules
from ddpm_jax.theory import oracle
from ddpm_jax.theory.information import sampled_entropy
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture, correlated

T = 20
MEAN, VARIANCE = 0.4, 0.3
TIMES = [1, 8, T]


@pytest.fixture
def chain(x64):
  return schedules.from_betas([*np.linspace(0.01, 0.5, T - 1), 1.0])


def bayes(chain, xt, t):
  """Evidence, mean and variance of q(x0 | xt), summed over a grid of x0."""
  alpha, sigma = float(chain.alpha(t)), float(chain.sigma(t))
  x0, width = np.linspace(MEAN - 8, MEAN + 8, 80_001, retstep=True)
  joint = np.exp(-((x0 - MEAN) ** 2) / (2 * VARIANCE) - (xt - alpha * x0) ** 2 / (2 * sigma**2))
  joint *= width / (2 * np.pi * np.sqrt(VARIANCE) * sigma)
  evidence = joint.sum()
  mean = np.sum(joint * x0) / evidence
  return evidence, mean, np.sum(joint * (x0 - mean) ** 2) / evidence


@pytest.mark.parametrize('t', TIMES)
@pytest.mark.parametrize('xt', [-1.0, 0.2, 1.5])
def test_posterior_and_marginal_are_bayes_rule(chain, xt, t):
  data = GaussianData(MEAN, VARIANCE)
  evidence, mean, variance = bayes(chain, xt, t)
  assert data.marginal(chain, t).log_prob(xt) == pytest.approx(np.log(evidence), abs=1e-10)
  posterior = data.posterior(chain, xt, t)
  assert posterior.mean == pytest.approx(mean, abs=1e-10)
  assert posterior.variance == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize('variance', [0.3, jnp.array([0.3, 2.0, 0.01])])
def test_score_is_tweedies(chain, variance):
  # ∇ log q(xt) = (alpha E[x0 | xt] - xt) / sigma², whatever the data.
  data, xt = GaussianData(jnp.array([0.1, -2.0, 0.7]), variance), jnp.array([1.0, -0.3, 0.2])
  for t in TIMES:
    x0 = data.denoiser(chain)(xt[None], t).x0[0]
    expected = (chain.alpha(t) * x0 - xt) / chain.sigma(t) ** 2
    np.testing.assert_allclose(data.score(chain, xt, t), expected, rtol=1e-10)


@pytest.mark.parametrize('t', TIMES)
def test_posterior_variance_is_the_slope_of_its_mean(chain, t):
  # Var[x0 | xt] = sigma² / alpha d E[x0 | xt] / d xt, the second-order Tweedie formula.
  data = GaussianData(MEAN, VARIANCE)
  slope = jax.grad(lambda xt: data.posterior(chain, xt, t).mean)(0.9)
  variance = chain.alpha(t) * data.posterior(chain, 0.9, t).variance
  assert variance == pytest.approx(float(slope * chain.sigma(t) ** 2), abs=1e-12)


def test_marginal_by_monte_carlo(chain):
  data, size = GaussianData(MEAN, VARIANCE), 40_000
  x0 = jax.vmap(data.sample)(jax.random.split(jax.random.key(0), size))
  eps = jax.random.normal(jax.random.key(1), (size,))
  for t in (0, *TIMES):
    xt, marginal = chain.alpha(t) * x0 + chain.sigma(t) * eps, data.marginal(chain, t)
    assert abs(xt.mean() - marginal.mean) < 4.5 * np.sqrt(marginal.variance / size)
    assert abs(xt.var() / marginal.variance - 1) < 4.5 * np.sqrt(2 / size)


@pytest.mark.parametrize('variance', [0.3, jnp.array([0.3, 2.0, 0.01])])
@pytest.mark.parametrize('t', [5, jnp.array([1, 5, 9, T])])
def test_denoiser_serves_batches(chain, variance, t):
  data = GaussianData(jnp.array([0.1, -2.0, 0.7]), jnp.asarray(variance))
  xt = jax.random.normal(jax.random.key(0), (4, 3))
  denoised = data.denoiser(chain)(xt, t)
  assert denoised.x0.shape == denoised.x0_variance.shape == xt.shape
  for i, time in enumerate(np.broadcast_to(t, 4)):
    posterior = data.posterior(chain, xt[i], int(time))
    np.testing.assert_allclose(denoised.x0[i], posterior.mean, rtol=1e-12)
    np.testing.assert_allclose(denoised.x0_variance[i], posterior.variance, rtol=1e-12)


def test_at_the_data_nothing_is_left_to_guess(chain):
  posterior = GaussianData(MEAN, VARIANCE).posterior(chain, 0.9, 0)
  assert posterior.mean == pytest.approx(0.9, abs=1e-15)
  assert posterior.variance == 0


def test_at_zero_snr_the_guess_is_the_prior(chain):
  posterior = GaussianData(MEAN, VARIANCE).posterior(chain, 0.9, T)
  assert posterior.mean == MEAN
  assert posterior.variance == VARIANCE


WEIGHTS = [0.5, 0.2, 0.3]
MEANS = [[-1.0, 0.5], [1.2, -0.8], [0.3, 1.4]]
COVARIANCES = [[[0.4, 0.25], [0.25, 0.3]], [[0.2, 0.0], [0.0, 0.6]], [[0.3, -0.2], [-0.2, 0.5]]]
DATA = {
  'gaussian': lambda: correlated(MEANS[0], COVARIANCES[0]),
  'mixture': lambda: GaussianMixture(WEIGHTS, MEANS, COVARIANCES),
}
XT = np.array([0.2, -0.5])


@pytest.fixture(params=DATA)
def data(request, chain):
  return DATA[request.param]()


def density(data, x):
  """q(x0) at points (…, 2), by SciPy."""
  size = 1 if isinstance(data, oracle.CorrelatedGaussian) else 3
  weights = [1.0] if size == 1 else WEIGHTS
  parts = zip(weights, MEANS[:size], COVARIANCES[:size], strict=True)
  return sum(w * scipy.stats.multivariate_normal(m, c).pdf(x) for w, m, c in parts)


def plane():
  """The points of a grid (N, 2), and a cell's area."""
  axis, width = np.linspace(-7, 7, 281, retstep=True)
  return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2), width**2


def test_log_density_is_scipys(data):
  x = np.random.default_rng(0).normal(size=(20, 2))
  np.testing.assert_allclose(jax.vmap(data.log_prob)(x), np.log(density(data, x)), rtol=1e-12)


def test_moments_are_the_densitys(data):
  x, area = plane()
  p = density(data, x) * area
  np.testing.assert_allclose(data.mean, p @ x, atol=1e-10)
  np.testing.assert_allclose(data.covariance, np.cov(x.T, aweights=p, ddof=0), atol=1e-9)
  np.testing.assert_allclose(data.variance, np.diagonal(data.covariance), rtol=1e-14)


def test_samples_have_the_moments(data):
  size = 40_000
  x = jax.vmap(data.sample)(jax.random.split(jax.random.key(0), size))
  errors = (jnp.mean(x, 0) - data.mean) / jnp.sqrt(data.variance / size)
  assert np.all(np.abs(errors) < 4.5)
  offsets = np.asarray(x - data.mean[None])
  products = offsets[:, :, None] * offsets[:, None, :]
  errors = (np.mean(products, 0) - data.covariance) / (np.std(products, 0) / np.sqrt(size))
  assert np.all(np.abs(errors) < 4.5)


def test_samples_fall_to_components_by_weight(x64):
  data, size = GaussianMixture([1, 3], [[-10.0], [10.0]], np.ones((2, 1, 1))), 10_000
  x = jax.vmap(data.sample)(jax.random.split(jax.random.key(0), size))
  assert abs(np.mean(x > 0) - 0.75) < 4.5 * np.sqrt(0.75 * 0.25 / size)


@pytest.mark.parametrize('t', TIMES)
def test_correlated_posterior_and_marginal_are_bayes_rule(chain, data, t):
  x0, area = plane()
  noise = scipy.stats.multivariate_normal(XT, float(chain.sigma(t)) ** 2 * np.eye(2))
  joint = density(data, x0) * noise.pdf(float(chain.alpha(t)) * x0) * area
  tolerance = 1e-9  # the grid's ends: where cells are narrower than the noise, sums are exact
  evidence = joint.sum()
  assert data.log_marginal(chain, XT, t) == pytest.approx(np.log(evidence), abs=tolerance)
  posterior = data.posterior(chain, XT, t)
  np.testing.assert_allclose(posterior.mean, joint @ x0 / evidence, atol=tolerance)
  covariance = np.cov(x0.T, aweights=joint, ddof=0)
  np.testing.assert_allclose(posterior.covariance, covariance, atol=tolerance)
  denoised = data.denoiser(chain)(XT[None], t)
  np.testing.assert_allclose(denoised.x0[0], posterior.mean, rtol=1e-12)
  np.testing.assert_allclose(denoised.x0_variance[0], np.diagonal(covariance), atol=tolerance)


@pytest.mark.parametrize('t', TIMES)
def test_correlated_score_and_covariance_are_tweedies(chain, data, t):
  # ∇ log q = (alpha E[x0 | xt] - xt) / sigma², and alpha Cov[x0 | xt] = sigma² ∇E[x0 | xt].
  alpha, sigma = chain.alpha(t), chain.sigma(t)
  posterior = data.posterior(chain, XT, t)
  score = (alpha * posterior.mean - XT) / sigma**2
  np.testing.assert_allclose(data.score(chain, XT, t), score, rtol=1e-9, atol=1e-12)
  slope = jax.jacobian(lambda xt: data.posterior(chain, xt, t).mean)(XT)
  np.testing.assert_allclose(alpha * posterior.covariance, sigma**2 * slope, atol=1e-12)


def test_correlated_at_the_data_nothing_is_left_to_guess(chain, data):
  posterior = data.posterior(chain, XT, 0)
  np.testing.assert_allclose(posterior.mean, XT, atol=1e-14)
  np.testing.assert_allclose(posterior.covariance, 0, atol=1e-14)


def test_correlated_at_zero_snr_the_guess_is_the_prior(chain, data):
  posterior = data.posterior(chain, XT, T)
  np.testing.assert_allclose(posterior.mean, data.mean, rtol=1e-14)
  np.testing.assert_allclose(posterior.covariance, data.covariance, rtol=1e-13)


def test_compiled_and_batched_is_eager(chain, data):
  xt, t = jax.random.normal(jax.random.key(0), (4, 2)), jnp.array([1, 5, 9, T])
  compiled = jax.jit(lambda data, xt, t: data.denoiser(chain)(xt, t))(data, xt, t)
  for i in range(4):
    denoised = data.denoiser(chain)(xt[i : i + 1], int(t[i]))
    np.testing.assert_allclose(compiled.x0[i], denoised.x0[0], rtol=1e-10)
    np.testing.assert_allclose(compiled.x0_variance[i], denoised.x0_variance[0], rtol=1e-9)


def test_far_away_the_nearest_component_alone_counts():
  data = GaussianMixture([0.5, 0.5], [[0.0], [1.0]], [[[0.01]], [[0.01]]])
  x = jnp.array([50.0])
  alone = correlated([1.0], [[0.01]])
  assert data.log_prob(x) == pytest.approx(float(alone.log_prob(x)) - np.log(2), rel=1e-6)
  np.testing.assert_allclose(jax.grad(data.log_prob)(x), jax.grad(alone.log_prob)(x), rtol=1e-6)


def test_gaussian_entropy_is_scipys(chain):
  exact = scipy.stats.multivariate_normal(MEANS[0], COVARIANCES[0]).entropy()
  assert DATA['gaussian']().entropy() == pytest.approx(exact, rel=1e-13)
  data = GaussianData(jnp.zeros((2, 2)), 0.3)
  exact = scipy.stats.multivariate_normal(np.zeros(4), 0.3 * np.eye(4)).entropy()
  assert data.entropy() == pytest.approx(exact, rel=1e-13)


def test_mixture_entropy_is_the_integral(x64):
  keys = jax.random.split(jax.random.key(0), 20_000)
  estimate = sampled_entropy(GaussianMixture(WEIGHTS, MEANS, COVARIANCES), keys)
  x, area = plane()
  p = density(None, x)
  assert abs(estimate.mean + area * np.sum(p * np.log(p))) < 4.5 * estimate.error
  assert estimate.error < 0.02


@pytest.mark.parametrize('narrow', [0.5, 0.05])
def test_quadrature_entropy_is_the_integral(x64, narrow):
  data = GaussianMixture([0.3, 0.7], [[0.0], [1.0]], [[[1.0]], [[narrow**2]]])
  parts = scipy.stats.norm(0, 1), scipy.stats.norm(1, narrow)

  def integrand(x):
    p = 0.3 * parts[0].pdf(x) + 0.7 * parts[1].pdf(x)
    return -p * np.log(p)

  breaks = [0.5, 0.9, 1.0, 1.1, 1.5]
  exact, _ = scipy.integrate.quad(integrand, -12, 12, points=breaks, epsabs=1e-12, limit=500)
  assert data.quadrature_entropy() == pytest.approx(exact, abs=1e-9)


def test_fractal_is_centered_with_unit_scale(x64):
  data = oracle.fractal(depth=4)
  np.testing.assert_allclose(data.mean, 0, atol=1e-14)
  assert jnp.trace(data.covariance) / 2 == pytest.approx(1, abs=1e-12)
  assert data.log_weights.shape == (15,)


REFUSED = {
  r'weights \(2,\) and means \(3, 2\)': lambda: GaussianMixture([1, 1], MEANS, COVARIANCES),
  'not negative': lambda: GaussianMixture([1, -1, 1], MEANS, COVARIANCES),
  'no covariance of shape': lambda: correlated([0.0, 1.0], [0.3, 0.4]),
  'symmetric and positive': lambda: correlated([0.0, 1.0], [[1.0, 2.0], [2.0, 1.0]]),
  'in one dimension': lambda: GaussianMixture(WEIGHTS, MEANS, COVARIANCES).quadrature_entropy(),
}


@pytest.mark.parametrize('message', REFUSED)
def test_what_is_no_distribution_is_refused(message):
  with pytest.raises(ValueError, match=message):
    REFUSED[message]()
