import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from ddpm_jax.diffusion import Gaussian
from ddpm_jax.diffusion.gaussian import log_mass

LINE, WIDTH = np.linspace(-40, 40, 400_001, retstep=True)
CASES = [(0.0, 1.0), (1.3, 0.02), (-2.0, 5.0)]


def integral(values):
  """Over LINE; to machine precision, since the integrands have vanished at both ends."""
  return np.sum(values) * WIDTH


def log_density(gaussian):
  return np.asarray(jax.jit(jax.vmap(gaussian.log_prob))(jnp.asarray(LINE)))


@pytest.mark.parametrize(('mean', 'variance'), CASES)
def test_density_has_its_moments_and_entropy(x64, mean, variance):
  gaussian = Gaussian(jnp.asarray(mean), jnp.asarray(variance))
  log_p = log_density(gaussian)
  p = np.exp(log_p)
  assert integral(p) == pytest.approx(1, abs=1e-12)
  assert integral(p * LINE) == pytest.approx(mean, abs=1e-12)
  assert integral(p * (LINE - mean) ** 2) == pytest.approx(variance, rel=1e-11)
  assert gaussian.entropy() == pytest.approx(-integral(p * log_p), abs=1e-11)


@pytest.mark.parametrize('first', CASES)
@pytest.mark.parametrize('second', CASES)
def test_kl_is_the_integral(x64, first, second):
  p, q = Gaussian(*map(jnp.asarray, first)), Gaussian(*map(jnp.asarray, second))
  log_p, log_q = log_density(p), log_density(q)
  assert p.kl(q) == pytest.approx(integral(np.exp(log_p) * (log_p - log_q)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('shape', [(), (1, 3), (2, 1), (2, 3)])
def test_reductions_add_over_the_example(x64, shape):
  rng = np.random.default_rng(0)
  mean, other_mean, x = rng.normal(size=(3, 2, 3))
  variance, other_variance = rng.uniform(0.5, 2, (2, *shape))
  p, q = Gaussian(mean, jnp.asarray(variance)), Gaussian(other_mean, jnp.asarray(other_variance))
  x = np.round(8 * np.tanh(x)) / 8

  def one(i):
    variances = (np.broadcast_to(v, (2, 3))[i] for v in (variance, other_variance))
    return [Gaussian(m[i], v) for m, v in zip((mean, other_mean), variances, strict=True)]

  places = [(*i, *one(i)) for i in np.ndindex(2, 3)]
  assert p.log_prob(x) == pytest.approx(sum(a.log_prob(x[i, j]) for i, j, a, _ in places))
  assert p.entropy() == pytest.approx(sum(a.entropy() for _, _, a, _ in places))
  assert p.kl(q) == pytest.approx(sum(a.kl(b) for _, _, a, b in places))
  assert p.discretized_log_prob(x, 17) == pytest.approx(
    sum(a.discretized_log_prob(x[i, j], 17) for i, j, a, _ in places)
  )


def test_kl_of_nearly_equal_variances_in_single_precision():
  # With v/w = 1 + d, v/w - 1 - log v/w = d²/2 - d³/3 + …; rounding costs the ratio's 1 its last
  # digit, 6e-8, in the plain formula, and only d its own here.
  w = np.float32(0.7)
  q = Gaussian(jnp.zeros(()), jnp.asarray(w))
  for v in w * np.float32(1 + 2.0 ** -np.arange(2, 20)):
    p, d = Gaussian(jnp.zeros(()), jnp.asarray(v)), float(v) / float(w) - 1
    exact = sum((-1) ** n * d**n / n for n in range(2, 60)) / 2
    assert abs(float(p.kl(q)) - exact) <= 2**-23 * d
    assert p.kl(q) >= 0
  assert q.kl(q) == 0


def test_kl_from_a_far_narrower_gaussian_in_single_precision():
  # ½ (v/w - 1 - log v/w): v/w - 1 rounds to -1, whose log1p is infinite.
  for ratio in (1e-3, 1e-7, 6e-10, 1e-20):
    p, q = (Gaussian(jnp.zeros(()), jnp.float32(v)) for v in (3 * ratio, 3.0))
    assert p.kl(q) == pytest.approx((ratio - 1 - math.log(ratio)) / 2, rel=1e-6)
    assert q.kl(p) == pytest.approx((1 / ratio - 1 + math.log(ratio)) / 2, rel=1e-6)
    slope = jax.grad(lambda v, q=q: Gaussian(jnp.zeros(()), v).kl(q))(p.variance)
    assert slope == pytest.approx((1 / 3 - 1 / (3 * ratio)) / 2, rel=1e-6)


def test_a_variance_of_zero_or_rounded_below_it_is_a_point():
  for variance in (0.0, -6e-8):
    x, slope = jax.value_and_grad(lambda v: Gaussian(jnp.float32(2.0), v).sample(1.5))(variance)
    assert x == 2 and np.isfinite(slope)


def test_kl_of_means_in_single_precision():
  p = Gaussian(jnp.float32(1e-4), jnp.float32(1e-6))
  assert p.kl(Gaussian(jnp.zeros(()), p.variance)) == pytest.approx(0.005, rel=1e-5)


def test_samples_are_eps_moved_and_stretched():
  eps = jax.random.normal(jax.random.key(0), (100_000,))
  draws = np.asarray(Gaussian(jnp.full(eps.shape, 2.0), jnp.float32(9.0)).sample(eps))
  assert draws.mean() == pytest.approx(2, abs=5 * 3 / math.sqrt(eps.size))
  assert draws.var() == pytest.approx(9, abs=5 * 9 * math.sqrt(2 / eps.size))


def grid(levels):
  return np.linspace(-1, 1, levels)


@partial(jax.jit, static_argnums=2)
def log_masses(mean, variance, levels):
  gaussian = Gaussian(mean, variance)
  return jax.vmap(lambda x: gaussian.discretized_log_prob(x, levels))(jnp.asarray(grid(levels)))


MEANS = [-1.5, -1.0, -0.32, 0.0, 0.5, 1.0, 4.0]
VARIANCES = [1e-6, 1e-4, 0.01, 1.0, 30.0]


@pytest.mark.parametrize('levels', [2, 17, 256])
def test_bins_have_mass_one(x64, levels):
  for mean, variance in itertools.product(MEANS, VARIANCES):
    assert np.sum(np.exp(log_masses(mean, variance, levels))) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize('levels', [2, 17, 256])
def test_bins_have_mass_one_in_single_precision(levels):
  for mean, variance in itertools.product(MEANS, VARIANCES):
    masses = np.exp(np.asarray(log_masses(mean, variance, levels), np.float64))
    assert np.sum(masses) == pytest.approx(1, abs=2e-4)


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def log_integral(mean, variance, low, high):
  """log ∫ N(x; mean, variance) from each low to its high, the largest exponent taken out.

  What lies where the density has fallen by exp(-40) from its peak in the interval is left out.
  """
  peak = np.clip(mean, low, high)
  distance = np.abs(peak - mean)
  reach = 80 * variance / (distance + np.sqrt(distance**2 + 80 * variance))
  low, high = np.maximum(low, peak - reach), np.minimum(high, peak + reach)
  x = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * NODES
  exponents = -((x - mean) ** 2) / (2 * variance) - math.log(2 * math.pi * variance) / 2
  return special.logsumexp(exponents, axis=-1, b=WEIGHTS * (high - low)[:, None] / 2)


@pytest.mark.parametrize('levels', [2, 17, 256])
def test_each_bin_has_the_integral_of_the_density(x64, levels):
  half = 1 / (levels - 1)
  for mean, variance in itertools.product(MEANS, VARIANCES):
    centers = grid(levels)[1:-1]
    inner = log_integral(mean, variance, centers - half, centers + half)
    scale = math.sqrt(variance)
    first = special.log_ndtr((-1 + half - mean) / scale)
    last = special.log_ndtr((mean - 1 + half) / scale)
    np.testing.assert_allclose(
      log_masses(mean, variance, levels), [first, *inner, last], rtol=1e-9, atol=1e-9
    )


def test_tails_and_their_gradients_are_finite():
  values = jax.value_and_grad(
    lambda mean, variance, x: Gaussian(mean, variance).discretized_log_prob(x, 256), (0, 1)
  )
  over_grid = jax.jit(jax.vmap(values, (None, None, 0)))
  for mean, variance in itertools.product([-30.0, -1.0, 0.0, 1.0, 30.0], [1e-7, 1e-3, 1.0, 1e3]):
    log_p, gradients = over_grid(mean, variance, jnp.asarray(grid(256), jnp.float32))
    assert np.all(np.isfinite(log_p))
    assert np.all(np.asarray(log_p) <= 0)
    assert np.all(np.isfinite(gradients))


def test_far_tails_follow_the_asymptotic_law():
  # For z -> ∞ the mass from z to z + w is φ(z) / z (1 - exp(-z w)) (1 + O(1 / z²)).
  for z, w in [(30.0, 1.0), (300.0, 0.01), (3000.0, 0.5)]:
    expected = -z * z / 2 - math.log(math.sqrt(2 * math.pi) * z) + math.log(-math.expm1(-z * w))
    assert float(log_mass(jnp.float32(z), jnp.float32(z + w))) == pytest.approx(expected, rel=1e-4)
    assert float(log_mass(jnp.float32(-z - w), jnp.float32(-z))) == pytest.approx(
      expected, rel=1e-4
    )


@pytest.mark.parametrize('x', [-1.0, -0.25, 0.75, 1.0])
def test_gradient_of_a_bin_is_its_slope(x64, x):
  @jax.jit
  def log_p(mean, variance):
    return Gaussian(mean, variance).discretized_log_prob(jnp.asarray(x), 9)

  for mean, variance in itertools.product([-0.9, 0.1, 0.8], [0.003, 0.2]):
    of_mean, of_variance = jax.grad(log_p, (0, 1))(mean, variance)
    h = 1e-6
    slope = (log_p(mean + h, variance) - log_p(mean - h, variance)) / (2 * h)
    assert of_mean == pytest.approx(float(slope), rel=1e-6, abs=1e-7)
    h *= variance
    slope = (log_p(mean, variance + h) - log_p(mean, variance - h)) / (2 * h)
    assert of_variance == pytest.approx(float(slope), rel=1e-6, abs=1e-6)
