"""The equations of every continuous path against closed forms and their own marginals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import CONTINUOUS
from ddpm_jax.diffusion.sde import (
  drift,
  fokker_planck_residual,
  probability_flow,
  reverse_drift,
  squared_diffusion,
)
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture

PATHS = {**CONTINUOUS, 'interpolated': lambda: schedules.interpolate(schedules.cosine(8))}
LOG_SNRS = [3.0, 0.4, -2.0]  # within every path


@pytest.fixture(params=PATHS)
def path(request, x64):
  return PATHS[request.param]()


def mixture():
  means = [[-1.0, 0.5], [1.2, -0.8], [0.3, 1.4]]
  covariances = [[[0.4, 0.25], [0.25, 0.3]], [[0.2, 0], [0, 0.6]], [[0.3, -0.2], [-0.2, 0.5]]]
  return GaussianMixture([0.5, 0.2, 0.3], means, covariances)


def beta(t):
  return 0.1 + 19.9 * t


def sub_vp_diffusion(t):
  return beta(t) * (1 - np.exp(-2 * (0.1 * t + 19.9 * t**2 / 2)))


# Of the papers: f and g² of each stochastic differential equation.
COEFFICIENTS = {
  'vp': (lambda t: -beta(t) / 2, beta),
  'sub_vp': (lambda t: -beta(t) / 2, sub_vp_diffusion),
  've': (lambda t: 0, lambda t: 2 * np.log(5000) * (0.01 * 5000**t) ** 2),
  'edm': (lambda t: 0, lambda t: 2 * t),
  'flow': (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
}


@pytest.mark.parametrize('name', COEFFICIENTS)
@pytest.mark.parametrize('t', [0.02, 0.3, 0.9])
def test_coefficients_are_the_published(x64, name, t):
  f, squared_g = COEFFICIENTS[name]
  assert drift(CONTINUOUS[name](), t) == pytest.approx(f(t), rel=1e-12, abs=1e-14)
  assert squared_diffusion(CONTINUOUS[name](), t) == pytest.approx(squared_g(t), rel=1e-11)


def test_integrated_moments_are_alpha_and_sigma(path):
  # For dx = f x dt + g dw the mean m obeys m' = f m and the variance v' = 2 f v + g².
  rates = jax.jit(lambda t: jnp.stack([drift(path, t), squared_diffusion(path, t)]))

  def moments(t, state):
    f, squared_g = np.asarray(rates(t))
    return [f * state[0], 2 * f * state[1] + squared_g]

  times = [float(path.time(log_snr)) for log_snr in LOG_SNRS]
  start = [float(path.alpha(times[0])), float(path.sigma(times[0])) ** 2]
  solved = scipy.integrate.solve_ivp(
    moments, (times[0], times[-1]), start, 'DOP853', times, rtol=1e-10, atol=1e-12
  )
  np.testing.assert_allclose(solved.y[0], [path.alpha(t) for t in times], rtol=1e-8)
  np.testing.assert_allclose(solved.y[1], [path.sigma(t) ** 2 for t in times], rtol=1e-8)


def points_and_times(path):
  """Five points of the plane at each of three times: (15, 2) and (15,)."""
  times = jnp.stack([path.time(log_snr) for log_snr in LOG_SNRS])
  x = jax.random.normal(jax.random.key(0), (15, 2)) * 1.5
  times = jnp.repeat(times, 5)
  return x * jax.vmap(path.alpha)(times)[:, None], times


def test_oracle_obeys_the_fokker_planck_equation(path):
  data = mixture()

  @jax.jit
  @jax.vmap
  def both(x, t):
    def log_density(x, t):
      return data.log_marginal(path, x, t)

    return fokker_planck_residual(path, log_density, x, t), jax.grad(log_density, 1)(x, t)

  residuals, rates = both(*points_and_times(path))
  assert np.all(np.abs(residuals) < 1e-10 * np.max(np.abs(rates)))


def test_a_wrong_density_does_not_obey_it(x64):
  path = schedules.vp()
  data = GaussianData(jnp.zeros(2), 0.3)

  def delayed(x, t):
    return data.log_marginal(path, x, 0.9 * t)

  assert abs(fokker_planck_residual(path, delayed, jnp.ones(2), 0.2)) > 0.1


@pytest.mark.parametrize('level', [0.0, 1.5])
def test_reversal_keeps_the_marginals(path, level):
  # Noise that comes in as time goes down: ∂_t p = -∇·(b p) - ½ level g² Δp.
  data = mixture()

  @jax.jit
  @jax.vmap
  def residual(x, t):
    def log_p(x, t):
      return data.log_marginal(path, x, t)

    def field(x):
      return reverse_drift(path, data.denoiser(path), level)(x[None], t)[0]

    score, rate = jax.grad(log_p)(x, t), jax.grad(log_p, 1)(x, t)
    transport = jnp.trace(jax.jacobian(field)(x)) + field(x) @ score
    spreading = jnp.trace(jax.hessian(log_p)(x, t)) + score @ score
    return rate + transport + level * squared_diffusion(path, t) / 2 * spreading, rate

  residuals, rates = residual(*points_and_times(path))
  assert np.all(np.abs(residuals) < 1e-10 * np.max(np.abs(rates)))


def test_level_zero_is_the_probability_flow(path):
  denoiser, (x, times) = mixture().denoiser(path), points_and_times(path)
  fields = [probability_flow(path, denoiser), reverse_drift(path, denoiser, 0.0)]
  flow, reverse = (field(x[:5], times[0]) for field in fields)
  np.testing.assert_allclose(flow, reverse, rtol=1e-12)


@pytest.mark.parametrize('level', [0.0, 0.5, 1.0])
def test_steps_down_in_time_arrive_at_the_marginal(x64, level):
  # Mean and variance through Euler-Maruyama steps, exact for Gaussian data: an error of order 1/N.
  path, data = schedules.vp(), GaussianData(jnp.array([0.7]), 0.3)
  field = reverse_drift(path, data.denoiser(path), level)
  first, last = path.time(-4.0), path.time(4.0)

  def errors(num_steps):
    times = jnp.linspace(first, last, num_steps + 1)

    def step(moments, times):
      (mean, variance), (t, s) = moments, times
      rate, slope = jax.jvp(lambda x: field(x, t), (mean,), (jnp.ones_like(mean),))
      noise = (t - s) * level * squared_diffusion(path, t)
      return (mean + (s - t) * rate, (1 + (s - t) * slope) ** 2 * variance + noise), None

    start = data.marginal(path, first)
    start = start.mean[None], jnp.full((1, 1), start.variance)
    (mean, variance), _ = jax.jit(lambda: jax.lax.scan(step, start, (times[:-1], times[1:])))()
    marginal = data.marginal(path, last)
    return np.array([mean[0, 0] - marginal.mean[0], variance[0, 0] - marginal.variance])

  coarse, fine = errors(1000), errors(2000)
  assert np.all(np.abs(fine) < 0.01)
  np.testing.assert_allclose(coarse / fine, 2, rtol=0.05)


def test_flow_is_finite_at_both_ends(path):
  data = mixture()
  field = jax.jit(probability_flow(path, data.denoiser(path)))
  x = jnp.ones((1, 2))
  assert np.all(np.isfinite(field(x, path.t_min)))
  assert np.all(np.isfinite(field(x, path.t_max)))


def test_what_has_no_derivative_is_refused(x64):
  data, x = GaussianData(jnp.zeros(2), 1.0), jnp.ones((1, 2))
  chain = schedules.linear(10)
  with pytest.raises(TypeError, match='use schedules.interpolate'):
    probability_flow(chain, data.denoiser(chain))(x, 3)
  with pytest.raises(TypeError, match='float times'):
    drift(schedules.vp(), 1)
  with pytest.raises(ValueError, match='t = 1.5 is outside'):
    drift(schedules.vp(), 1.5)
  with pytest.raises(ValueError, match=r'shape \(3,\): use jax.vmap\(drift'):
    drift(schedules.vp(), jnp.ones(3))
  with pytest.raises(ValueError, match='level = -1'):
    reverse_drift(chain, data.denoiser(chain), -1)
