"""Information by tables, closed forms, quadrature and sampling, each held against the others."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import precision
from scipy import special, stats

from ddpm_jax.diffusion import Gaussian, schedules
from ddpm_jax.theory import inequalities, information
from ddpm_jax.theory.inequalities import IDENTITIES, INEQUALITIES
from ddpm_jax.theory.information import Line, Normal, on_grid
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture

GRID = np.linspace(-18, 18, 401)
WIDTH = GRID[1] - GRID[0]
FINE = np.linspace(-40, 40, 80_001)
BETAS = np.linspace(1e-4, 0.02, 1000)
ALPHAS_BAR = np.concatenate([[1.0], np.cumprod(1 - BETAS)])


@pytest.fixture(autouse=True)
def double(x64):
  """All of this file is in double precision, but where a test says otherwise."""


@pytest.fixture
def chain(double):
  return schedules.from_betas(BETAS)


def approx(expected, **tolerance):
  """pytest's, which refuses to read JAX's arrays."""
  return pytest.approx(float(expected), **tolerance)


def table(rng, *shape):
  """Random masses, some of them zero."""
  p = rng.exponential(size=shape) * (rng.uniform(size=shape) > 0.2)
  p.flat[0] += 0.1
  return p / p.sum()


def full_table(rng, *shape):
  """Random masses, none of them zero."""
  p = rng.exponential(size=shape) + 1e-3
  return p / p.sum()


def rows(rng, *shape):
  """A random channel: rows that sum to one."""
  p = rng.exponential(size=shape)
  return p / p.sum(-1, keepdims=True)


def normal(rng, d=3):
  root = rng.normal(size=(d, d))
  return Normal(rng.normal(size=d), root @ root.T / d + 0.05 * np.eye(d))


class Mixture:
  """A mixture on the line, in NumPy: weights, means and variances (K,)."""

  def __init__(self, weights, means, variances):
    self.weights, self.means, self.variances = map(np.asarray, (weights, means, variances))

  @classmethod
  def random(cls, rng, variance=None):
    """Three components, moved and stretched to mean zero and the given variance."""
    weights, means = rng.dirichlet([2.0] * 3), rng.normal(size=3) * 2
    variances = rng.uniform(0.05, 1, 3)
    means -= weights @ means
    scale = (variance or rng.uniform(0.5, 4)) / (weights @ (variances + means**2))
    return cls(weights, means * math.sqrt(scale), variances * scale)

  @property
  def variance(self):
    """With the mean at zero."""
    return self.weights @ (self.variances + self.means**2)

  def diffused(self, alpha, sigma):
    return Mixture(self.weights, alpha * self.means, alpha**2 * self.variances + sigma**2)

  def density(self, x):
    parts = np.exp(-((x[..., None] - self.means) ** 2) / (2 * self.variances))
    return parts / np.sqrt(2 * np.pi * self.variances) @ self.weights

  def fisher(self):
    """∫ p'² / p."""
    x = GRID[:, None] - self.means
    parts = np.exp(-(x**2) / (2 * self.variances)) / np.sqrt(2 * np.pi * self.variances)
    slope = -(parts * x / self.variances) @ self.weights
    return np.sum(slope**2 / np.maximum(parts @ self.weights, 1e-300)) * WIDTH

  def line(self):
    squares = (GRID[:, None] - self.means) ** 2 / self.variances
    log_parts = np.log(self.weights) - (np.log(2 * np.pi * self.variances) + squares) / 2
    log_p = special.logsumexp(log_parts, axis=1) + math.log(WIDTH)
    return Line(GRID, log_p)

  def oracle(self):
    return GaussianMixture(self.weights, self.means[:, None], self.variances[:, None, None])


def smooth(rng, variance=None):
  """A mixture whose every component the grid resolves."""
  return Mixture.random(rng, variance).diffused(1.0, 0.2)


def atoms(values, masses):
  """Point masses, at grid points."""
  p = np.zeros(GRID.size)
  p[[int(np.argmin(abs(GRID - value))) for value in values]] = masses
  with np.errstate(divide='ignore'):
    return Line(GRID, np.log(p))


# Tables.

entropy, cross_entropy, kl, conditional_entropy, mutual_information, conditional_information = map(
  jax.jit,
  (
    information.entropy,
    information.cross_entropy,
    information.kl,
    information.conditional_entropy,
    information.mutual_information,
    information.conditional_information,
  ),
)


def by_hand(p):
  """-Σ p log p, term by term."""
  return -math.fsum(x * math.log(x) for x in np.ravel(p).tolist() if x > 0)


def test_entropies_of_tables_are_sums():
  p, q = table(np.random.default_rng(0), 3, 4), full_table(np.random.default_rng(1), 3, 4)
  pairs = [(float(a), float(b)) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0]
  assert entropy(p) == approx(by_hand(p), rel=1e-13)
  crossed = -math.fsum(a * math.log(b) for a, b in pairs)
  assert cross_entropy(p, q) == approx(crossed, rel=1e-13)
  assert kl(p, q) == approx(crossed - by_hand(p), rel=1e-12)


def test_known_tables():
  assert entropy(np.full((2, 4), 1 / 8)) == approx(math.log(8), rel=1e-15)
  assert entropy(np.array([0.0, 1.0])) == 0
  assert mutual_information(np.eye(5) / 5) == approx(math.log(5), rel=1e-15)
  # X and Y are coins and Z tells whether they agree: any two are independent, the third decides.
  coins = np.array([[[0, 1], [1, 0]], [[1, 0], [0, 1]]]) / 4
  assert mutual_information(coins.sum(2)) == 0
  assert conditional_information(coins) == approx(math.log(2), rel=1e-15)


def test_mass_that_is_missed_costs_infinitely_much():
  p, q = np.array([0.5, 0.5]), np.array([1.0, 0.0])
  assert kl(p, q) == cross_entropy(p, q) == jnp.inf
  assert kl(q, p) == approx(math.log(2), rel=1e-15)


@pytest.mark.parametrize('seed', range(5))
def test_conditional_quantities_are_differences_of_entropies(seed):
  joint = table(np.random.default_rng(seed), 2, 3, 4)
  h_xz, h_yz, h_xyz = by_hand(joint.sum(1)), by_hand(joint.sum(0)), by_hand(joint)
  h_z = by_hand(joint.sum((0, 1)))
  assert conditional_entropy(joint) == approx(h_xyz - by_hand(joint.sum(2)))
  assert conditional_information(joint) == approx(h_xz + h_yz - h_xyz - h_z)
  h_x = by_hand(joint.sum((1, 2)))
  assert mutual_information(joint.sum(1)) == approx(h_x + h_z - h_xz, abs=1e-15)


def test_gradients_of_tables_with_zeros_are_finite():
  joint = table(np.random.default_rng(2), 3, 4)
  for function in (mutual_information, conditional_entropy):
    gradient = jax.grad(lambda a, f=function: f(jnp.where(joint > 0, a * joint, 0.0)))(1.0)
    assert np.isfinite(gradient)


# Gaussians of any covariance.

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)


def expectation(law, function):
  """E function(x), exact for quadratics, by Gauss-Hermite quadrature along a Cholesky root."""
  root, d = np.linalg.cholesky(law.covariance), law.mean.size
  weights = np.prod(list(itertools.product(WEIGHTS / WEIGHTS.sum(), repeat=d)), axis=1)
  points = np.asarray(list(itertools.product(NODES, repeat=d))) @ root.T + np.asarray(law.mean)
  return weights @ function(points)


@pytest.mark.parametrize('d', [1, 3])
def test_normal_divergences_are_expectations(d):
  rng = np.random.default_rng(3)
  p, q = normal(rng, d), normal(rng, d)
  log_p, log_q = (stats.multivariate_normal(*map(np.asarray, law)).logpdf for law in (p, q))
  assert p.entropy() == approx(-expectation(p, log_p), rel=1e-12)
  assert p.cross_entropy(q) == approx(-expectation(p, log_q), rel=1e-12)
  assert p.kl(q) == approx(expectation(p, lambda x: log_p(x) - log_q(x)), rel=1e-12)


def test_a_diagonal_normal_is_the_gaussian():
  mean, variance = np.array([0.3, -1.0]), np.array([0.5, 2.0])
  p, q = Gaussian(mean, variance), Gaussian(np.zeros(2), np.ones(2))
  full = Normal(mean, np.diag(variance))
  assert full.entropy() == approx(p.entropy())
  assert full.kl(Normal(np.zeros(2), np.eye(2))) == approx(p.kl(q))


def block_covariance(law, snr):
  """The covariance of (x, √snr x + eps)."""
  covariance, eye = np.asarray(law.covariance), np.eye(law.mean.size)
  across = math.sqrt(snr) * covariance
  return np.block([[covariance, across], [across, snr * covariance + eye]])


@pytest.mark.parametrize('snr', [1e-3, 0.7, 40.0])
def test_normal_information_and_mmse_are_those_of_the_joint_law(snr):
  law = normal(np.random.default_rng(4))
  joint, d = block_covariance(law, snr), law.mean.size
  of_x, of_y, across = joint[:d, :d], joint[d:, d:], joint[:d, d:]
  log_det = [np.linalg.slogdet(m)[1] for m in (of_x, of_y, joint)]
  assert law.information(snr) == approx((log_det[0] + log_det[1] - log_det[2]) / 2, rel=1e-9)
  left = of_x - across @ np.linalg.solve(of_y, across.T)
  assert law.mmse(snr) == approx(np.trace(left), rel=1e-9)


def test_information_at_low_snr_keeps_its_digits_in_single_precision():
  # I -> ½ snr tr covariance.
  with precision(double=False):
    law = Normal(np.zeros(2), np.array([[2.0, 0.5], [0.5, 1.0]]))
    assert float(law.information(1e-9)) == approx(1.5e-9, rel=1e-5)


# Quadrature on the line.


@pytest.mark.parametrize('seed', range(3))
def test_a_line_diffuses_as_its_mixture_does(seed):
  mixture = smooth(np.random.default_rng(seed))
  line, (alpha, sigma) = mixture.line(), (0.6, 0.8)
  diffused = line.diffused(alpha, sigma)
  expected = mixture.diffused(alpha, sigma)
  np.testing.assert_allclose(np.exp(diffused.log_p) / WIDTH, expected.density(GRID), atol=1e-13)
  assert jax.jit(line.fisher)(alpha, sigma) == approx(expected.fisher(), rel=1e-10)
  assert diffused.mean == approx(0, abs=1e-12)
  assert diffused.covariance == approx(expected.variance, rel=1e-12)
  density = expected.density(FINE)
  terms = density * np.log(np.maximum(density, 1e-300))
  assert diffused.entropy() == approx(-np.sum(terms) * (FINE[1] - FINE[0]), rel=1e-11)


def test_a_singular_covariance_in_single_precision_has_real_information():
  # Eigenvalues that are zero come out below it, some by more than 1 / snr.
  with precision(double=False):
    for seed in range(8):
      u = jax.random.normal(jax.random.key(seed), (6,))
      law = Normal(jnp.zeros(6), jnp.outer(u, u))
      assert law.information(1e9) >= 0.99 * math.log1p(1e9 * float(u @ u)) / 2
      assert 0 <= law.mmse(1e9) < 1e-6


def test_a_line_of_a_gaussian_has_its_closed_forms():
  p, q = Gaussian(jnp.asarray(0.4), jnp.asarray(0.3)), Gaussian(jnp.asarray(-1.0), jnp.asarray(0.9))
  first, second = (on_grid(law.log_prob, jnp.asarray(GRID)) for law in (p, q))
  assert first.entropy() == approx(p.entropy(), rel=1e-12)
  # The tails of p underflow on this grid; its divergence does not.
  assert second.kl(first) == approx(q.kl(p), rel=1e-12)
  assert first.cross_entropy(second) == approx(p.entropy() + p.kl(q), rel=1e-12)
  total = first.plus(second)
  assert total.mean == approx(-0.6, abs=1e-12)
  assert total.entropy() == approx(math.log(2 * math.pi * math.e * 1.2) / 2, rel=1e-12)
  for snr in (1e-3, 0.5, 20.0):
    assert first.information(snr) == approx(math.log1p(snr * 0.3) / 2, abs=1e-12)
    assert first.mmse(snr) == approx(0.3 / (1 + 0.3 * snr), rel=1e-11)


@pytest.mark.parametrize('snr', [0.05, 1.0, 3.0])
def test_a_coin_has_guo_shamai_verdus_closed_forms(snr):
  # For x = ±1: mmse = 1 - E tanh(snr - √snr z), I = snr - E log cosh(snr - √snr z); their (17, 18).
  coin, z = atoms([-1.0, 1.0], [0.5, 0.5]), FINE[np.abs(FINE) < 13]
  weights = np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * (FINE[1] - FINE[0])
  inner = snr - math.sqrt(snr) * z
  # The coin lies on the grid points nearest to ±1.
  assert abs(GRID[np.argmin(abs(GRID - 1))] - 1) < 0.03
  scale = GRID[np.argmin(abs(GRID - 1))]
  assert coin.mmse(snr / scale**2) / scale**2 == approx(1 - weights @ np.tanh(inner))
  log_cosh = np.logaddexp(inner, -inner) - math.log(2)
  assert coin.information(snr / scale**2) == approx(snr - weights @ log_cosh, rel=1e-9)


def test_a_line_is_made_of_vectors_of_one_and_of_scalars():
  normal = Gaussian(jnp.asarray(0.4), jnp.asarray(0.3))
  lines = [
    on_grid(log_prob, jnp.asarray(GRID))
    for log_prob in (
      GaussianMixture([1.0], [[0.4]], [[[0.3]]]).log_prob,
      GaussianData(jnp.array([0.4]), jnp.array([0.3])).log_prob,
      normal.log_prob,
      lambda x: -jnp.square(x - 0.4) / 0.6 - 0.5 * math.log(2 * math.pi * 0.3),
    )
  ]
  for line in lines:
    assert line.entropy() == approx(normal.entropy(), rel=1e-12)


def test_a_grid_that_is_too_narrow_or_too_coarse_is_refused():
  law = Gaussian(np.zeros(()), np.ones(()))
  with pytest.raises(ValueError, match='101 points from -1.0 to 1.0 holds a mass of 0.68'):
    on_grid(law.log_prob, jnp.linspace(-1, 1, 101))
  line = on_grid(law.log_prob, jnp.asarray(GRID))
  with pytest.raises(ValueError, match='sigma = 0.01 is below the spacing'):
    line.diffused(1.0, 0.01)
  with pytest.raises(ValueError, match='holds a mass of'):
    line.diffused(1.0, 10.0)


# Monte Carlo.

KEYS = 4_000


def sampled(function, *arguments, seed):
  """The estimate, compiled as a whole."""
  keys = jax.random.split(jax.random.key(seed), KEYS)
  return jax.jit(lambda keys: function(*arguments, keys))(keys)


def agree(estimate, expected):
  assert abs(estimate.mean - expected) < 4.5 * estimate.error


def test_the_standard_error_is_that_of_the_mean():
  # -log p of a Gaussian in d dimensions varies as half a chi-squared: its variance is d / 2.
  law = GaussianMixture([1.0], [[0.0] * 4], [np.diag([1.0, 2, 3, 4])])
  entropy = sampled(information.sampled_entropy, law, seed=0)
  agree(entropy, 2 * math.log(2 * math.pi * math.e) + math.log(24) / 2)
  assert entropy.error == approx(math.sqrt(2 / KEYS), rel=0.08)


def test_sampled_divergences_agree_with_closed_forms():
  rng = np.random.default_rng(5)
  p, q = normal(rng), normal(rng)
  first, second = (GaussianMixture([1.0], law.mean[None], law.covariance[None]) for law in (p, q))
  agree(sampled(information.sampled_kl, first, second, seed=1), p.kl(q))
  agree(sampled(information.sampled_cross_entropy, first, second, seed=2), p.cross_entropy(q))


def test_sampled_divergences_agree_with_quadrature():
  rng = np.random.default_rng(6)
  p, q = smooth(rng), smooth(rng)
  agree(sampled(information.sampled_entropy, p.oracle(), seed=3), p.line().entropy())
  agree(sampled(information.sampled_kl, p.oracle(), q.oracle(), seed=4), p.line().kl(q.line()))


@pytest.mark.parametrize('t', [60, 400])
def test_sampled_information_and_mmse_agree_with_quadrature(chain, t):
  mixture = smooth(np.random.default_rng(7))
  line, data = mixture.line(), mixture.oracle()
  snr = ALPHAS_BAR[t] / (1 - ALPHAS_BAR[t])
  agree(sampled(information.sampled_information, chain, data, t, seed=5), line.information(snr))
  denoiser = data.denoiser(chain)
  best = sampled(information.sampled_mmse, chain, data, denoiser, t, seed=6)
  agree(best, line.mmse(snr))

  def biased(xt, t):
    guess = denoiser(xt, t)
    return guess._replace(x0=guess.x0 + 0.2)

  # A denoiser that is off by b costs b² more.
  agree(sampled(information.sampled_mmse, chain, data, biased, t, seed=7), line.mmse(snr) + 0.04)


def test_sampled_information_in_three_dimensions(chain):
  law, t = normal(np.random.default_rng(8)), 200
  data = GaussianMixture([1.0], law.mean[None], law.covariance[None])
  snr = ALPHAS_BAR[t] / (1 - ALPHAS_BAR[t])
  agree(sampled(information.sampled_information, chain, data, t, seed=8), law.information(snr))
  mmse = sampled(information.sampled_mmse, chain, data, data.denoiser(chain), t, seed=9)
  agree(mmse, law.mmse(snr))


def test_batches_of_times_are_refused(chain):
  data = GaussianMixture([1.0], [[0.0]], [[[1.0]]])
  with pytest.raises(ValueError, match='t has shape'):
    information.sampled_information(
      chain, data, np.array([1, 2]), jax.random.split(jax.random.key(0))
    )


# Along the chain.


@pytest.mark.parametrize('t', [60, 500, 1000])
def test_chain_information_is_that_of_the_snr(chain, t):
  snr = ALPHAS_BAR[t] / (1 - ALPHAS_BAR[t])
  law = normal(np.random.default_rng(9))
  line = smooth(np.random.default_rng(9)).line()
  diagonal = GaussianData(np.zeros((2, 2)), jnp.asarray(0.7))
  expected = [law.information(snr), line.information(snr), 2 * math.log1p(0.7 * snr)]
  for data, value in zip((law, line, diagonal), expected, strict=True):
    assert information.chain_information(chain, data, t) == approx(value, abs=1e-10)


def test_posterior_entropy_of_a_mixture_is_the_integral(chain):
  # -∫∫ q(xs, xt) log q(xs | xt) over a grid of both.
  mixture, s, t = smooth(np.random.default_rng(10)), 60, 120
  keep = math.sqrt(ALPHAS_BAR[t] / ALPHAS_BAR[s])
  of_s = mixture.diffused(math.sqrt(ALPHAS_BAR[s]), math.sqrt(1 - ALPHAS_BAR[s])).density(GRID)
  step = stats.norm(keep * GRID[:, None], math.sqrt(1 - keep**2)).pdf(GRID[None])
  joint = of_s[:, None] * step
  given = joint / np.maximum(joint.sum(0) * WIDTH, 1e-300)
  expected = -np.sum(joint * np.log(np.maximum(given, 1e-300))) * WIDTH**2
  assert information.posterior_entropy(chain, mixture.line(), s, t) == approx(expected)


# Inequalities: many instances, the case of equality, and a condition dropped.


def times(rng):
  return sorted(map(int, rng.choice(np.arange(100, 1001), 2, replace=False)))


def law(rng, variance=None):
  """A Gaussian in three dimensions or a mixture on the line, the one as often as the other."""
  if rng.uniform() < 0.5:
    gaussian = normal(rng)
    scale = 1 if variance is None else 3 * variance / np.trace(gaussian.covariance)
    return gaussian._replace(covariance=gaussian.covariance * scale)
  return smooth(rng, variance).line()


def markov(rng):
  return np.einsum('xy,yz->xyz', table(rng, 3, 5), rows(rng, 5, 4))


CONVEX = (jnp.exp, jnp.square, jnp.abs)


def powers(rng):
  if rng.uniform() < 0.5:
    first, second = normal(rng), normal(rng)
  else:
    first, second = smooth(rng).line(), smooth(rng).line()
  return first, second, first.plus(second)


def with_covariance(rng):
  mixture = smooth(rng)
  return mixture.line(), np.full((1, 1), mixture.variance)


def random_guess(rng):
  joint = table(rng, 3, 4)
  best = np.argmax(joint, axis=0)
  return joint, best if rng.uniform() < 0.5 else jnp.asarray(rng.integers(joint.shape[0], size=4))


def merging(chain, rng):
  dimensions = (normal(rng), normal(rng)), (smooth(rng).line(), smooth(rng).line())
  return chain, *dimensions[rng.integers(2)], *times(rng)


# name: (chain, rng) -> arguments under which the statement holds.
INSTANCES = {
  'gibbs': lambda chain, rng: (table(rng, 5), full_table(rng, 5)),
  'jensen': lambda chain, rng: (
    CONVEX[rng.integers(3)],
    jnp.asarray(rng.normal(size=6)),
    table(rng, 6),
  ),
  'conditioning': lambda chain, rng: (table(rng, 3, 4),),
  'data_processing': lambda chain, rng: (markov(rng),),
  'data_processing_divergence': lambda chain, rng: (
    table(rng, 5),
    full_table(rng, 5),
    rows(rng, 5, 3),
  ),
  'chain_forgets': lambda chain, rng: (chain, law(rng), *times(rng)),
  'chain_merges': merging,
  'posterior_entropy_lower': lambda chain, rng: (chain, law(rng), *times(rng)),
  'posterior_entropy_upper': lambda chain, rng: (
    chain,
    law(rng, variance=rng.uniform(0.3, 1)),
    *times(rng),
  ),
  'entropy_power': lambda chain, rng: powers(rng),
  'fano': lambda chain, rng: random_guess(rng),
  'pinsker': lambda chain, rng: (table(rng, 5), full_table(rng, 5)),
  'maximum_entropy': lambda chain, rng: with_covariance(rng),
}


def compiled(name):
  return jax.jit(INEQUALITIES[name], static_argnums=0 if name == 'jensen' else ())


@pytest.mark.parametrize('name', INEQUALITIES)
def test_inequality_holds(chain, name):
  rng = np.random.default_rng(11)
  function = compiled(name)
  sides = [function(*INSTANCES[name](chain, rng)) for _ in range(40)]
  gaps = np.asarray([upper - lower for lower, upper in sides])
  assert np.all(np.isfinite(gaps))
  assert np.all(gaps >= -1e-10)
  # Away from the case of equality there is room between the sides.
  assert np.mean(gaps > 1e-6) > 0.5


HALF = np.array([0.5, 0.5])
POINT = Normal(np.ones(3), np.zeros((3, 3)))
PERMUTATION = np.eye(4)[np.array([2, 0, 3, 1])]


def symmetric_channel(n, error):
  """A uniform input that comes out wrong, as any of the others, with probability `error`."""
  return np.full((n, n), error / (n - 1) / n) + np.eye(n) * (1 - error - error / (n - 1)) / n


def merged(rng):
  """Y is reduced to Z by merging two of its values that say the same of X."""
  joint = np.repeat(np.asarray(table(rng, 3, 2)), 2, axis=1) * np.array([0.3, 0.7, 0.4, 0.6])
  return np.einsum('xy,yz->xyz', joint, np.repeat(np.eye(2), 2, axis=0))


# name: (chain, rng) -> arguments for each of which the sides meet.
EQUALITIES = {
  'gibbs': lambda chain, rng: [(p := table(rng, 5), p)],
  'jensen': lambda chain, rng: [
    (lambda x: 2 * x - 1, jnp.asarray(rng.normal(size=6)), table(rng, 6)),
    (jnp.exp, np.full(6, 0.3), table(rng, 6)),
  ],
  'conditioning': lambda chain, rng: [(np.outer(table(rng, 3), table(rng, 4)),)],
  'data_processing': lambda chain, rng: [
    (np.einsum('xy,yz->xyz', table(rng, 3, 4), PERMUTATION),),
    (merged(rng),),
  ],
  'data_processing_divergence': lambda chain, rng: [
    (table(rng, 4), full_table(rng, 4), PERMUTATION),
    (np.array([0.1, 0.2, 0.7]), np.array([0.2, 0.4, 0.4]), np.array([[1, 0], [1, 0], [0, 1.0]])),
  ],
  'chain_forgets': lambda chain, rng: [(chain, POINT, *times(rng))],
  'chain_merges': lambda chain, rng: [(chain, p := law(rng), p, *times(rng))],
  'posterior_entropy_lower': lambda chain, rng: [(chain, POINT, *times(rng))],
  'posterior_entropy_upper': lambda chain, rng: [
    (chain, Normal(np.ones(3), np.eye(3)), *times(rng))
  ],
  'entropy_power': lambda chain, rng: [
    (p := normal(rng), q := Normal(p.mean, 3 * p.covariance), p.plus(q)),
    (p := Mixture([1.0], [0.5], [0.4]).line(), p, p.plus(p)),
  ],
  'fano': lambda chain, rng: [
    (symmetric_channel(n, e), np.arange(n)) for n in (2, 5) for e in (0.0, 0.2, 1.0)
  ],
  'pinsker': lambda chain, rng: [(p := table(rng, 5), p)],
  'maximum_entropy': lambda chain, rng: [
    (p := normal(rng), p.covariance),
    (Mixture([1.0], [0.5], [0.4]).line(), np.array([[0.4]])),
  ],
}


@pytest.mark.parametrize('name', INEQUALITIES)
def test_inequality_is_attained(chain, name):
  for arguments in EQUALITIES[name](chain, np.random.default_rng(12)):
    lower, upper = compiled(name)(*arguments)
    assert lower == approx(upper, rel=1e-11, abs=1e-11)


# name: chain -> arguments that break the condition. The others have none but laws being laws.
VIOLATIONS = {
  # The masses of q sum to two.
  'gibbs': lambda chain: (HALF, 2 * HALF),
  'jensen': lambda chain: (jnp.log, np.array([1.0, 2.0]), HALF),
  # Z is X itself and Y another coin: X → Y → Z is no Markov chain.
  'data_processing': lambda chain: (np.stack([np.eye(2)] * 2, axis=1) / 4,),
  'data_processing_divergence': lambda chain: (
    np.array([0.2, 0.8]),
    HALF,
    2 * np.eye(2),
  ),
  'posterior_entropy_upper': lambda chain: (chain, Normal(np.zeros(1), 4 * np.eye(1)), 499, 500),
  # Y = -X / 2, so that X + Y is half of X.
  'entropy_power': lambda chain: (
    p := Normal(np.zeros(1), np.eye(1)),
    p.diffused(-0.5, 0.0),
    p.diffused(0.5, 0.0),
  ),
  # The covariance is not that of X.
  'maximum_entropy': lambda chain: (smooth(np.random.default_rng(13), 2.0).line(), np.eye(1) / 9),
}


@pytest.mark.parametrize('name', VIOLATIONS)
def test_inequality_needs_its_condition(chain, name):
  lower, upper = INEQUALITIES[name](*VIOLATIONS[name](chain))
  assert lower > upper + 1e-4


def test_jensens_sides_change_places_for_a_concave_function():
  lower, upper = inequalities.jensen(jnp.log, np.array([1.0, 4.0]), HALF)
  # The logarithms of the arithmetic and of the geometric mean.
  assert lower == approx(math.log(2.5))
  assert upper == approx(math.log(2))


def test_one_observation_may_add_to_uncertainty():
  # y is almost surely 0, but not where x = 1, which is rare.
  joint = np.array([[0.9, 0.0], [0.05, 0.05]])
  lower, upper = inequalities.conditioning(joint)
  assert information.entropy(joint[1] / joint[1].sum()) > upper > lower


def test_pinskers_constant_is_the_best():
  # KL of (½ + e, ½ - e) from (½, ½) is 2e² + O(e⁴), and so is ½ (2e)².
  for e in (1e-1, 1e-2, 1e-3):
    lower, upper = inequalities.pinsker(HALF + np.array([e, -e]), HALF)
    assert lower == approx(2 * e**2, rel=1e-12)
    assert 1 < upper / lower < 1 + e**2


def test_fanos_sides_by_hand():
  joint = np.array([[0.3, 0.1, 0.0], [0.1, 0.2, 0.05], [0.05, 0.0, 0.2]])
  lower, upper = inequalities.fano(joint, np.array([0, 1, 2]))
  assert lower == approx(by_hand(joint) - by_hand(joint.sum(0)))
  assert upper == approx(by_hand([0.3, 0.7]) + 0.3 * math.log(2))


def test_the_maximum_of_entropy_exceeds_by_the_divergence():
  line = smooth(np.random.default_rng(14)).line()
  variance = line.covariance[0, 0]
  normal_line = on_grid(Gaussian(line.mean, variance).log_prob, line.x)
  lower, upper = inequalities.maximum_entropy(line, line.covariance)
  assert upper - lower == approx(line.kl(normal_line), rel=1e-9)


def test_entropy_powers_of_gaussians_are_variances():
  p, q = (Normal(np.zeros(2), v * np.eye(2)) for v in (0.7, 1.9))
  lower, upper = inequalities.entropy_power(p, q, p.plus(q))
  assert lower == approx(2 * math.pi * math.e * 2.6)
  assert upper == approx(2 * math.pi * math.e * 2.6)


def test_chains_compare_times_in_order(chain):
  data = Normal(np.zeros(1), np.eye(1))
  with pytest.raises(ValueError, match='s < t'):
    inequalities.chain_forgets(chain, data, 5, 5)
  with pytest.raises(ValueError, match='s < t'):
    inequalities.chain_merges(chain, data, data, 5, 4)


# The bounds on q(x_{t-1} | x_t) along all of the chain.


def bounds(chain, variance):
  """Both inequalities at t = 2 … T for normal data of a variance."""
  data, t = Normal(np.zeros(1), np.full((1, 1), variance)), np.arange(2, 1001)

  @jax.jit
  @jax.vmap
  def both(s, t):
    lower, middle = inequalities.posterior_entropy_lower(chain, data, s, t)
    return lower, middle, inequalities.posterior_entropy_upper(chain, data, s, t).upper

  return map(np.asarray, both(t - 1, t))


def variance_of(nats):
  """The variance of the Gaussian that has an entropy."""
  return np.exp(2 * nats) / (2 * math.pi * math.e)


@pytest.mark.parametrize('variance', [0.0, 0.25, 1.0, 4.0])
def test_the_bounds_are_the_published_variances(chain, variance):
  lower, middle, upper = map(variance_of, bounds(chain, variance))
  betas, before, after = BETAS[1:], ALPHAS_BAR[1:-1], ALPHAS_BAR[2:]
  np.testing.assert_allclose(upper, betas, rtol=1e-9)
  np.testing.assert_allclose(lower, (1 - before) / (1 - after) * betas, rtol=1e-9)
  # Regression of x_{t-1} on x_t: Var - Cov² / Var.
  at_s, at_t = (1 + (variance - 1) * a for a in (before, after))
  exact = at_s - (1 - betas) * at_s**2 / at_t
  np.testing.assert_allclose(middle, exact, rtol=1e-8)


def test_the_upper_bound_fails_for_data_of_variance_four(chain):
  _, middle, upper = bounds(chain, 4.0)
  ratio = variance_of(middle) / variance_of(upper)
  closed_form = (1 + 3 * ALPHAS_BAR[1:-1]) / (1 + 3 * ALPHAS_BAR[2:])
  np.testing.assert_allclose(ratio, closed_form, rtol=1e-9)
  assert np.all(ratio > 1)
  # Its logarithm falls as beta 3 alpha_bar / (1 + 3 alpha_bar), fastest about t = 320.
  slope = BETAS[1:] * 3 * ALPHAS_BAR[1:-1] / (1 + 3 * ALPHAS_BAR[1:-1])
  assert ratio.max() - 1 == approx(slope.max(), rel=0.01)
  assert 2 + np.argmax(ratio) == 2 + np.argmax(slope) == 318
  assert ratio[500 - 2] == approx(1.0019, abs=5e-5)


@pytest.mark.parametrize('variance', [0.25, 0.9])
def test_the_upper_bound_holds_for_narrower_data(chain, variance):
  _, middle, upper = bounds(chain, variance)
  assert np.all(middle < upper)


def test_the_upper_bound_fails_for_a_wide_mixture_where_entropy_falls(chain):
  # Two spikes far apart: at first noise makes them broader, later they come together.
  line = Mixture([0.5, 0.5], [-3.0, 3.0], [0.05, 0.05]).line()
  gaps = []
  for s, t in [(60, 61), (500, 501)]:
    at_s, at_t = (line.marginal(chain, time).entropy() for time in (s, t))
    lower, upper = inequalities.posterior_entropy_upper(chain, line, s, t)
    assert upper - lower == approx(at_t - at_s, abs=1e-12)
    gaps.append(float(upper - lower))
  assert gaps[0] > 1e-4
  assert gaps[1] < -1e-4


@pytest.mark.parametrize('seed', range(3))
def test_the_lower_bound_is_short_by_the_information_lost(chain, seed):
  rng = np.random.default_rng(seed)
  data, (s, t) = normal(rng), times(rng)
  lower, upper = inequalities.posterior_entropy_lower(chain, data, s, t)
  snr_s, snr_t = (ALPHAS_BAR[i] / (1 - ALPHAS_BAR[i]) for i in (s, t))
  lost = np.linalg.solve(np.eye(3) + snr_t * data.covariance, np.eye(3) + snr_s * data.covariance)
  assert upper - lower == approx(np.linalg.slogdet(lost)[1] / 2, rel=1e-8)


# Identities.


def identity_law(rng):
  """A Gaussian, a mixture, or point masses."""
  return [
    lambda: normal(rng),
    lambda: smooth(rng).line(),
    lambda: atoms([-2, 0.3, 1], rows(rng, 3)),
  ][rng.integers(3)]()


# name: rng -> arguments.
IDENTITY_INSTANCES = {
  'chain_rule_entropy': lambda rng: (table(rng, 2, 3, 1, 4),),
  'chain_rule_divergence': lambda rng: (table(rng, 2, 3, 4), full_table(rng, 2, 3, 4)),
  'chain_rule_information': lambda rng: (table(rng, 2, 3, 4),),
  'information_by_entropies': lambda rng: (table(rng, 3, 4),),
  'de_bruijn': lambda rng: (identity_law(rng), rng.uniform(0.5, 3)),
  'i_mmse': lambda rng: (identity_law(rng), rng.uniform(0.05, 2)),
}


@pytest.mark.parametrize('name', IDENTITIES)
def test_identity_holds(name):
  rng = np.random.default_rng(15)
  function = jax.jit(IDENTITIES[name])
  for _ in range(20):
    left, right = function(*IDENTITY_INSTANCES[name](rng))
    assert left > 0
    assert left == approx(right, rel=1e-9)


@pytest.mark.parametrize('t', [0.1, 1.0])
def test_de_bruijns_sides_have_closed_forms(t):
  law, mixture = normal(np.random.default_rng(16)), smooth(np.random.default_rng(16))
  eigenvalues = np.linalg.eigvalsh(law.covariance)
  compiled_de_bruijn = jax.jit(inequalities.de_bruijn)
  assert compiled_de_bruijn(law, t).right == approx(np.sum(1 / (eigenvalues + t)) / 2)
  expected = mixture.diffused(1.0, math.sqrt(t)).fisher() / 2
  assert compiled_de_bruijn(mixture.line(), t).right == approx(expected, rel=1e-10)


@pytest.mark.parametrize('snr', [0.1, 2.0])
def test_i_mmse_and_de_bruijn_are_one(snr):
  # By Tweedie's formula snr mmse = d - J(√snr x + eps), whatever the law of x.
  for law in (normal(np.random.default_rng(17)), smooth(np.random.default_rng(17)).line()):
    fisher = jax.jit(law.fisher)(math.sqrt(snr), 1.0)
    assert snr * jax.jit(law.mmse)(snr) == approx(jnp.size(law.mean) - fisher, rel=1e-9)


def test_chain_rules_by_hand():
  joint = np.array([[0.5, 0.25], [0.0, 0.25]])
  left, right = inequalities.chain_rule_entropy(joint)
  assert left == approx(1.5 * math.log(2))
  assert right == approx(1.5 * math.log(2))
  left, right = inequalities.chain_rule_divergence(joint, np.full((2, 2), 0.25))
  assert left == approx(0.5 * math.log(2))
  assert right == approx(0.5 * math.log(2))
  # Y is a coin, X is 0 in three cases of four, and both together are worth three halves of a bit.
  for table in (joint, joint.T):
    left, right = inequalities.information_by_entropies(table)
    assert left == approx(by_hand([0.75, 0.25]) + math.log(2) - 1.5 * math.log(2))
    assert right == approx(by_hand([0.75, 0.25]) + math.log(2) - 1.5 * math.log(2))


# The tables of the module and of this file go together.


def test_every_statement_is_tested():
  assert set(INSTANCES) == set(EQUALITIES) == set(INEQUALITIES)
  assert set(VIOLATIONS) < set(INEQUALITIES)
  assert set(IDENTITY_INSTANCES) == set(IDENTITIES)


@pytest.mark.parametrize('name', ['maximum_entropy', 'chain_merges', 'posterior_entropy_upper'])
def test_jit_is_eager(chain, name):
  arguments = INSTANCES[name](chain, np.random.default_rng(18))
  np.testing.assert_allclose(
    compiled(name)(*arguments), INEQUALITIES[name](*arguments), rtol=1e-11, atol=1e-12
  )


def test_laws_map_and_differentiate():
  line, snrs = smooth(np.random.default_rng(19)).line(), np.array([0.1, 1.0, 5.0])
  values, slopes = jax.jit(jax.vmap(jax.value_and_grad(line.mmse)))(snrs)
  assert values[1] == approx(line.mmse(1.0), rel=1e-12)
  # The more is seen, the less is left to guess.
  assert np.all(np.asarray(slopes) < 0)
