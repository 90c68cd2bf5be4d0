"""Likelihoods by the ODE against the densities of the oracles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import bits_per_dim, density, prior, schedules
from ddpm_jax.diffusion.likelihood import (
  DIVERGENCES,
  dequantize,
  encode,
  jacobian_trace,
  log_likelihood,
  noised_log_prob,
  quantized_log_prob,
)
from ddpm_jax.diffusion.schedules import CONTINUOUS, DISCRETE
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture

DATA = {
  'gaussian': lambda: GaussianData(jnp.array([0.4, -0.2]), jnp.array([0.3, 0.05])),
  'mixture': lambda: GaussianMixture(
    [0.6, 0.4], [[-0.5, 0.4], [0.6, 0.0]], [[[0.05, 0.03], [0.03, 0.04]], [[0.1, 0], [0, 0.02]]]
  ),
}
TIGHT = {'rtol': 1e-7, 'atol': 1e-7}


@pytest.fixture(params=CONTINUOUS)
def path(request, x64):
  return CONTINUOUS[request.param]()


def examples(data, path, size):
  """Draws from the data's marginal at t_min."""
  x0 = jax.vmap(data.sample)(jax.random.split(jax.random.key(0), size))
  eps = jax.random.normal(jax.random.key(1), x0.shape)
  return path.alpha(path.t_min) * x0 + path.sigma(path.t_min) * eps


def end(data, path):
  """The log-density of the data's marginal at t_max."""
  return lambda x: data.log_marginal(path, x, path.t_max)


def errors_in_bits(path, data, x, **settings):
  """Of log_likelihood with its own settings, against the density at t_min, per dimension."""
  settings = {'prior': end(data, path), 'divergence': 'exact', **settings}
  likelihood = jax.jit(lambda x: log_likelihood(path, data.denoiser(path), x, **settings))(x)
  exact = jax.vmap(lambda x: data.log_marginal(path, x, path.t_min))(x)
  return np.abs(bits_per_dim(likelihood - exact, x[0]))


def test_exact_likelihood_is_the_density(path):
  data = DATA['mixture']()
  assert np.all(errors_in_bits(path, data, examples(data, path, 4)) < 1e-4)


# Two components are three thousandths and a tenth wide, and a Gaussian from one to a hundredth.
SHARP = {
  'mixture': lambda: GaussianMixture([0.6, 0.4], [[-0.5], [0.4]], [[[0.003**2]], [[0.01]]]),
  'gaussian': lambda: GaussianData(jnp.linspace(-1, 1, 64), jnp.geomspace(1e-4, 1.0, 64)),
}


@pytest.mark.parametrize(('chain', 'name'), [('linear', 'gaussian'), ('cosine', 'mixture')])
def test_the_kinks_of_a_chain_cost_no_digits_and_no_steps(x64, chain, name):
  path, data = schedules.interpolate(DISCRETE[chain]()), SHARP[name]()
  # A step is six evaluations: formulas take up to 50 here, a solve over the chain's time 100. Of
  # so many draws some lie seven deviations from a component's mean, where the flow is stiffest.
  errors = errors_in_bits(path, data, examples(data, path, 512), max_steps=60)
  assert np.all(errors < 1e-4)


@pytest.mark.parametrize('name', ['linear', 'edm'])
def test_single_precision_adds_the_rounding_of_the_example(name):
  path = schedules.interpolate(schedules.linear()) if name == 'linear' else CONTINUOUS[name]()
  data = SHARP['mixture']()
  x = examples(data, path, 8)
  error = errors_in_bits(path, data, x, max_steps=64)
  assert error.dtype == np.float32
  rounding = 2.0**-18 * np.sqrt(np.mean(x**2)) / path.sigma(path.t_min)  # in nats
  assert np.all(error < 1e-4 + rounding / np.log(2))


def test_the_gradient_of_the_likelihood_is_the_score(x64):
  path, data = schedules.flow(), DATA['gaussian']()  # which ends without signal
  x = examples(data, path, 1)
  settings = {'prior': end(data, path), 'divergence': 'exact', 'max_steps': 64}
  gradient = jax.jit(
    jax.grad(lambda x: jnp.sum(log_likelihood(path, data.denoiser(path), x, **settings)))
  )(x)
  score = data.score(path, x[0], path.t_min)
  np.testing.assert_allclose(gradient[0], score, rtol=1e-4)


@pytest.mark.parametrize('name', ['vp', 'flow'])
def test_encoding_gaussian_data_is_the_affine_map_between_marginals(x64, name):
  path, data = CONTINUOUS[name](), DATA['gaussian']()
  first, last = (data.marginal(path, t) for t in (path.t_min, path.t_max))
  x = examples(data, path, 2)
  latent = encode(path, data.denoiser(path), x, divergence='exact', **TIGHT)
  scale = jnp.sqrt(last.variance / first.variance)
  expected = last.mean[None] + scale[None] * (x - first.mean[None])
  size = np.max(np.abs(expected))
  np.testing.assert_allclose(latent.x, expected, atol=1e-5 * size)
  np.testing.assert_allclose(latent.log_det, np.full(2, jnp.sum(jnp.log(scale))), atol=1e-4)
  likelihood = jax.vmap(end(data, path))(latent.x) + latent.log_det
  exact = jax.vmap(first.log_prob)(x)
  assert np.all(np.abs(bits_per_dim(likelihood - exact, x[0])) < 1e-4)


def test_customary_prior_costs_its_divergence_from_the_marginal(x64):
  # What log N(0, alpha² + sigma²) at t_max loses against the marginal is, on average, their KL.
  path, data, size = schedules.vp(beta_max=3.0), DATA['gaussian'](), 200
  x = examples(data, path, size)
  latent = jax.jit(lambda x: encode(path, data.denoiser(path), x, divergence='exact'))(x)
  customary = prior(path, x[0], path.t_max)
  costs = jax.vmap(lambda x: end(data, path)(x) - customary.log_prob(x))(latent.x)
  exact = data.marginal(path, path.t_max).kl(customary)
  assert exact > 0.02
  assert abs(jnp.mean(costs) - exact) < 4.5 * jnp.std(costs) / np.sqrt(size)


@pytest.mark.parametrize('divergence', ['rademacher', 'gaussian'])
def test_hutchinson_is_unbiased(x64, divergence):
  path, data, size = schedules.vp(t_min=0.01), DATA['mixture'](), 400
  x = jnp.broadcast_to(examples(data, path, 1), (size, 2))
  denoiser, key = data.denoiser(path), jax.random.key(2)
  latent = encode(path, denoiser, x, divergence=divergence, key=key)
  exact = data.log_marginal(path, x[0], path.t_min) - end(data, path)(latent.x[0])
  error = jnp.std(latent.log_det) / np.sqrt(size)
  assert error > 1e-3
  assert abs(jnp.mean(latent.log_det) - exact) < 4.5 * error


# The variance of eᵀ J e over e, for S = (J + Jᵀ) / 2: signs leave the diagonal of S out.
SPREADS = {
  'exact': lambda s: 0.0,
  'rademacher': lambda s: 2 * np.sum(s**2) - 2 * np.sum(np.diag(s) ** 2),
  'gaussian': lambda s: 2 * np.sum(s**2),
}


@pytest.mark.parametrize('divergence', DIVERGENCES)
def test_probes_estimate_the_trace(x64, divergence):
  jacobian, size = np.random.default_rng(0).normal(size=(6, 6)), 20_000

  @jax.jit
  @jax.vmap
  def draw(key):
    probes = DIVERGENCES[divergence](key, jnp.zeros((2, 3)))
    return jacobian_trace(lambda e: (jacobian @ e.ravel()).reshape(2, 3), probes)

  draws = draw(jax.random.split(jax.random.key(0), size))
  spread = SPREADS[divergence]((jacobian + jacobian.T) / 2)
  assert np.var(draws) == pytest.approx(spread, rel=0.1, abs=1e-20)
  error = 4.5 * np.sqrt(spread / size) + 1e-12
  assert np.mean(draws) == pytest.approx(np.trace(jacobian), abs=error)


def test_an_example_does_not_depend_on_its_batch(x64):
  path, data = schedules.vp(t_min=0.01), DATA['gaussian']()
  x, index = examples(data, path, 3), jnp.array([5, 2, 9])
  settings = {'divergence': 'gaussian', 'key': jax.random.key(3)}

  def solve(x, index):
    return encode(path, data.denoiser(path), x, index=index, **settings)

  batch, alone = solve(x, index), solve(x[1:2], index[1:2])
  np.testing.assert_allclose(batch.x[1], alone.x[0], rtol=1e-12)
  np.testing.assert_allclose(batch.log_det[1], alone.log_det[0], rtol=1e-12)


def test_with_the_exact_posterior_every_noised_draw_is_the_density(path):
  data = DATA['gaussian']()  # whose posteriors are Gaussian, as the decoder is
  x0 = jax.vmap(data.sample)(jax.random.split(jax.random.key(3), 4))
  settings = {'prior': end(data, path), 'decoder': density, 'divergence': 'exact', **TIGHT}
  found = jax.jit(
    lambda x0: noised_log_prob(path, data.denoiser(path), x0, jax.random.key(5), **settings)
  )(x0)
  np.testing.assert_allclose(found, jax.vmap(data.log_prob)(x0), atol=1e-4)


def test_dequantized_levels_fill_their_bins_evenly(x64):
  levels, size = 5, 4000
  image = jnp.repeat(jnp.arange(levels, dtype=jnp.uint8), size)
  x = np.asarray(dequantize(image, levels, jax.random.key(0))).reshape(levels, size)
  centers, width = np.linspace(-1, 1, levels), 2 / (levels - 1)
  places = (x - centers[:, None]) / width + 0.5
  assert places.min() >= 0 and places.max() <= 1
  counts = np.stack([np.histogram(row, 10, (0, 1))[0] for row in places])
  assert np.all(np.abs(counts - size / 10) < 4.5 * np.sqrt(size * 0.09))


def test_dequantization_bounds_the_mass_of_a_bin(x64):
  # A wide Gaussian is nearly flat over a bin, a narrow one is not; neither exceeds the bin's mass.
  levels, size = 9, 10_000
  image = jnp.array([3, 6], jnp.uint8)
  keys = jax.random.split(jax.random.key(0), size)
  x = jax.vmap(lambda key: dequantize(image, levels, key))(keys)
  gaps = []
  for variance in (4.0, 0.05):
    model = GaussianData(jnp.zeros(2), jnp.array(variance)).marginal(schedules.linear(2), 0)
    nats = jax.vmap(lambda x, model=model: quantized_log_prob(model.log_prob(x), x, levels))(x)
    # Both bins are inside, where the discretized Gaussian is the mass.
    mass = model.discretized_log_prob(2 * image / (levels - 1) - 1, levels)
    gaps.append(float(mass - jnp.mean(nats)))
    assert gaps[-1] > -4.5 * jnp.std(nats) / np.sqrt(size)
  assert abs(gaps[0]) < 0.005 < 0.02 < gaps[1]


def test_a_misuse_is_told(x64):
  path, data = schedules.vp(), DATA['gaussian']()
  denoiser, x = data.denoiser(path), jnp.ones((1, 2))
  with pytest.raises(ValueError, match="'hutchinson' is not one of exact, rademacher, gaussian"):
    encode(path, denoiser, x, divergence='hutchinson')
  with pytest.raises(ValueError, match="'gaussian' draws probes: it needs a key"):
    encode(path, denoiser, x, divergence='gaussian')
  with pytest.raises(TypeError, match='use schedules.interpolate'):
    encode(schedules.linear(5), denoiser, x, divergence='exact')
  with pytest.raises(RuntimeError, match='maximum number of solver steps'):
    jax.block_until_ready(encode(path, denoiser, x, divergence='exact', max_steps=3))
