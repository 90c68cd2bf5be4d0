"""The chain against what its definition by betas gives: composed moments, Bayes' rule on a grid."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import (
  VARIANCES,
  Denoised,
  prior,
  q_marginal,
  q_posterior,
  q_sample,
  q_transition,
  reverse,
  schedules,
)
from ddpm_jax.diffusion.process import fresh_noise
from ddpm_jax.diffusion.schedules import CONTINUOUS, DISCRETE
from ddpm_jax.theory.oracle import GaussianData

T = 40
CHAINS = {
  **{name: lambda name=name: DISCRETE[name](T) for name in DISCRETE},
  'zero terminal SNR': lambda: schedules.from_betas([*np.linspace(0.005, 0.4, T - 1), 1.0]),
  'rescaled to zero SNR': lambda: schedules.zero_terminal_snr(schedules.linear(T)),
  'respaced': lambda: schedules.respace(schedules.linear(), np.arange(T) * 25 + 25),
}
PAIRS = [(1, 2), (3, 4), (1, T), (7, 30), (T - 2, T - 1), (T - 1, T)]
X0, XT = jnp.array([0.7, -1.2]), jnp.array([-0.4, 0.9])


@pytest.fixture(params=CHAINS)
def chain(request):
  with jax.enable_x64(True):
    yield CHAINS[request.param]()


def steps_between(chain, s, t):
  """Factor and variance of q(xt | xs) by taking the steps s + 1 … t one at a time."""
  factor, variance = 1.0, 0.0
  for beta in np.asarray(chain.betas)[s + 1 : t + 1]:
    factor, variance = factor * np.sqrt(1 - beta), (1 - beta) * variance + beta
  return factor, variance


@pytest.mark.parametrize('t', [1, 2, 17, T])
def test_marginal_is_the_composition_of_the_steps(chain, t):
  factor, variance = steps_between(chain, 0, t)
  marginal = q_marginal(chain, X0, t)
  np.testing.assert_allclose(marginal.mean, factor * X0, rtol=1e-12)
  np.testing.assert_allclose(marginal.variance, variance, rtol=1e-12)


@pytest.mark.parametrize(('s', 't'), [(0, 1), (0, T), *PAIRS])
def test_transition_is_the_composition_of_the_steps(chain, s, t):
  factor, variance = steps_between(chain, s, t)
  transition = q_transition(chain, XT, s, t)
  np.testing.assert_allclose(transition.mean, factor * XT, rtol=1e-12)
  np.testing.assert_allclose(transition.variance, variance, rtol=1e-11)


def test_chain_of_single_draws_has_the_marginal(chain):
  size = 20_000

  def step(x, t):
    eps = jax.random.normal(jax.random.fold_in(jax.random.key(0), t), x.shape)
    return q_transition(chain, x, t - 1, t).sample(eps), None

  x, _ = jax.jit(lambda: jax.lax.scan(step, jnp.full(size, 0.7), jnp.arange(1, T + 1)))()
  marginal = q_marginal(chain, 0.7, T)
  assert abs(x.mean() - marginal.mean) < 4.5 * np.sqrt(marginal.variance / size)
  assert abs(x.var() / marginal.variance - 1) < 4.5 * np.sqrt(2 / size)


def test_sample_has_the_moments_of_the_marginal(chain):
  # Gauss-Hermite with three nodes integrates squares exactly.
  nodes, weights = np.polynomial.hermite_e.hermegauss(3)
  weights = weights / weights.sum()
  for t in (1, 9, T):
    xt = np.asarray(q_sample(chain, 0.7, t, jnp.asarray(nodes)))
    mean = np.sum(weights * xt)
    assert mean == pytest.approx(float(q_marginal(chain, 0.7, t).mean), abs=1e-12)
    variance = float(q_marginal(chain, 0.7, t).variance)
    assert np.sum(weights * (xt - mean) ** 2) == pytest.approx(variance, rel=1e-12)


def bayes(chain, x0, xt, s, t):
  """Mean and variance of q(xs | xt, x0) ∝ q(xt | xs) q(xs | x0), summed over a grid of xs."""
  factor_s, variance_s = steps_between(chain, 0, s)
  factor, variance = steps_between(chain, s, t)
  xs = factor_s * x0 + np.sqrt(variance_s) * np.linspace(-12, 12, 40_001)
  log_p = -((xs - factor_s * x0) ** 2) / variance_s - (xt - factor * xs) ** 2 / variance
  p = np.exp((log_p - log_p.max()) / 2)
  mean = np.sum(p * xs) / np.sum(p)
  return mean, np.sum(p * (xs - mean) ** 2) / np.sum(p)


@pytest.mark.parametrize(('s', 't'), PAIRS)
def test_posterior_is_bayes_rule(chain, s, t):
  x0, eps = 0.7, 1.3
  xt = float(q_sample(chain, x0, t, eps))
  mean, variance = bayes(chain, x0, xt, s, t)
  posterior = q_posterior(chain, x0, xt, s, t)
  assert posterior.mean == pytest.approx(mean, abs=1e-10)
  assert posterior.variance == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize('t', [1, 5, T])
def test_posterior_at_the_data_is_the_point(chain, t):
  posterior = q_posterior(chain, X0, XT, 0, t)
  np.testing.assert_array_equal(posterior.mean, X0)
  assert posterior.variance == 0


@pytest.mark.parametrize('t', [2, 11, T])
def test_posterior_has_the_published_coefficients(chain, t):
  beta, alpha_bar, before = chain.betas[t], chain.alphas_bar[t], chain.alphas_bar[t - 1]
  of_x0 = jnp.sqrt(before) * beta / (1 - alpha_bar)
  of_xt = jnp.sqrt(1 - beta) * (1 - before) / (1 - alpha_bar)
  posterior = q_posterior(chain, X0, XT, t - 1, t)
  np.testing.assert_allclose(posterior.mean, of_x0 * X0 + of_xt * XT, rtol=1e-11)
  variance = (1 - before) / (1 - alpha_bar) * beta
  assert posterior.variance == pytest.approx(float(variance), rel=1e-11)


@pytest.mark.parametrize(('s', 't'), [(0, 1), (0, T), *PAIRS])
def test_posterior_takes_a_noiseless_example_along_the_path(chain, s, t):
  # Averaged over xt, q(xs | xt, x0) is q(xs | x0): mean alpha_s x0, variance sigma_s².
  of_xt = q_posterior(chain, 0.0, 1.0, s, t).mean
  posterior = q_posterior(chain, X0, chain.alpha(t) * X0, s, t)
  np.testing.assert_allclose(posterior.mean, chain.alpha(s) * X0, atol=1e-12)
  total = posterior.variance + (of_xt * chain.sigma(t)) ** 2
  assert total == pytest.approx(float(chain.sigma(s)) ** 2, rel=1e-11)


@pytest.mark.parametrize('variance', VARIANCES)
def test_gradients_are_finite_at_both_ends(chain, variance):
  denoised = Denoised(X0, jnp.full(2, 0.3), jnp.full(2, 0.6))

  def total(chain, denoised, xt, s, t):
    step = reverse(chain, denoised, xt, s, t, variance)
    return jnp.sum(step.mean) + jnp.sum(step.variance) + jnp.sum(q_transition(chain, xt, s, t).mean)

  gradient = jax.jit(jax.grad(total, (0, 1, 2)))
  for s, t in [(0, 1), (0, T), (1, T), (T - 1, T)]:
    for leaf in jax.tree.leaves(gradient(chain, denoised, XT, s, t)):
      assert np.all(np.isfinite(leaf))


DATA = GaussianData(0.3, 0.4)


def joint(chain, xt, s, t, mean=0.3, variance=0.4):
  """q(xs | xt) for Gaussian data, from the joint covariance of (xs, xt)."""
  (factor_s, noise_s), (factor, noise) = steps_between(chain, 0, s), steps_between(chain, s, t)
  variance_s = factor_s**2 * variance + noise_s
  covariance = np.array([[variance_s, factor * variance_s], [0, factor**2 * variance_s + noise]])
  gain = covariance[0, 1] / covariance[1, 1]
  expected = factor_s * mean + gain * (xt - factor * factor_s * mean)
  return expected, variance_s - gain * covariance[0, 1]


@pytest.mark.parametrize(('s', 't'), [(0, 1), (0, T), *PAIRS])
def test_optimal_reverse_step_is_exact_for_gaussian_data(chain, s, t):
  step = reverse(chain, DATA.denoiser(chain)(XT, t), XT, s, t, 'optimal')
  mean, variance = joint(chain, np.asarray(XT), s, t)
  np.testing.assert_allclose(step.mean, mean, atol=1e-12)
  np.testing.assert_allclose(step.variance, variance, rtol=1e-10)


@pytest.mark.parametrize(('name', 'data_variance'), [('small', 0.0), ('large', 1.0)])
@pytest.mark.parametrize(('s', 't'), PAIRS)
def test_fixed_variances_are_right_for_a_point_and_for_normal_data(
  chain, name, data_variance, s, t
):
  variance = VARIANCES[name](chain, Denoised(XT), s, t)
  assert variance == pytest.approx(joint(chain, 0.0, s, t, 0.0, data_variance)[1], rel=1e-9)


@pytest.mark.parametrize('t', [2, 11, T])
def test_large_is_beta(chain, t):
  variance = VARIANCES['large'](chain, Denoised(XT), t - 1, t)
  assert variance == pytest.approx(float(chain.betas[t]), rel=1e-11)


@pytest.mark.parametrize(('s', 't'), PAIRS)
def test_fraction_lies_between_the_fixed_variances(chain, s, t):
  fractions = jnp.linspace(0, 1, 5)
  step = reverse(chain, Denoised(jnp.zeros(5), fraction=fractions), jnp.zeros(5), s, t, 'fraction')
  small, large = (
    reverse(chain, Denoised(jnp.zeros(5)), jnp.zeros(5), s, t, name).variance
    for name in ('small', 'large')
  )
  logs = np.interp(fractions, [0, 1], np.log([small, large]))
  np.testing.assert_allclose(np.log(step.variance), logs, atol=1e-12)
  assert small < large


@pytest.mark.parametrize('variance', VARIANCES)
def test_reverse_has_the_posterior_mean_of_the_denoised(chain, variance):
  step = reverse(chain, Denoised(X0, jnp.ones(2), jnp.ones(2)), XT, 3, 9, variance)
  np.testing.assert_allclose(step.mean[0], bayes(chain, 0.7, -0.4, 3, 9)[0], atol=1e-9)


@pytest.mark.parametrize('name', ['fraction', 'optimal'])
def test_a_variance_says_what_it_lacks(name):
  with pytest.raises(ValueError, match=f"variance '{name}' needs a denoiser"):
    reverse(schedules.linear(5), Denoised(X0), XT, 1, 2, name)


@pytest.mark.parametrize('t', [1, 20, T])
def test_prior_is_standard_normal_on_these_chains(chain, t):
  ends = prior(chain, X0, t)
  np.testing.assert_array_equal(ends.mean, jnp.zeros(2))
  assert ends.variance == pytest.approx(1, abs=1e-14)


CALLS = {
  'q_sample': lambda chain, s, t: q_sample(chain, X0, t, XT),
  'q_marginal': lambda chain, s, t: q_marginal(chain, X0, t),
  'prior': lambda chain, s, t: prior(chain, X0, t),
  'q_transition': lambda chain, s, t: q_transition(chain, X0, s, t),
  'q_posterior': lambda chain, s, t: q_posterior(chain, X0, XT, s, t),
  'reverse': lambda chain, s, t: reverse(chain, Denoised(X0), XT, s, t),
}


@pytest.mark.parametrize('name', CALLS)
def test_a_batch_of_times_is_refused_with_the_mend(name):
  batch = jnp.arange(1, 4)
  with pytest.raises(ValueError, match=rf'shape \(3,\): use jax.vmap\({name}, \(None, 0'):
    CALLS[name](schedules.linear(5), batch, batch + 1)


@pytest.mark.parametrize('name', ['q_transition', 'q_posterior', 'reverse'])
@pytest.mark.parametrize(('s', 't'), [(3, 3), (4, 3)])
def test_times_in_the_wrong_order_are_refused(name, s, t):
  with pytest.raises(ValueError, match=f'{name} goes .* s < t, but s = {s} and t = {t}'):
    CALLS[name](schedules.linear(5), s, t)


@pytest.mark.parametrize('variance', VARIANCES)
def test_compiled_and_batched_is_eager(chain, variance):
  denoised = Denoised(jnp.stack([X0, XT, X0]), jnp.ones((3, 2)), jnp.full((3, 2), 0.3))
  xt, s, t = jnp.stack([XT, X0, X0]), jnp.array([0, 2, T - 1]), jnp.array([2, 30, T])
  batched = jax.jit(jax.vmap(reverse, (None, 0, 0, 0, 0, None)), static_argnums=5)
  means, variances = batched(chain, denoised, xt, s, t, variance)
  for i in range(3):
    one = jax.tree.map(lambda leaf, i=i: leaf[i], denoised)
    step = reverse(chain, one, xt[i], int(s[i]), int(t[i]), variance)
    np.testing.assert_allclose(means[i], step.mean, rtol=1e-12)
    np.testing.assert_allclose(
      jnp.broadcast_to(step.variance, 2), jnp.broadcast_to(variances[i], 2)
    )


LONG = {
  **DISCRETE,
  'cosine of 4000': lambda: schedules.cosine(4000),
  'to zero SNR': lambda: schedules.zero_terminal_snr(schedules.cosine()),
  'respaced': lambda: schedules.respace(schedules.linear(), np.arange(3, 1000, 7)),
}


@pytest.mark.parametrize('name', LONG)
def test_fresh_noise_of_a_chain_keeps_its_digits(name):
  single = LONG[name]()
  with jax.enable_x64(True):
    double = LONG[name]()
  log_snrs, size = np.asarray(double.log_snrs), double.num_steps
  share = jax.vmap(fresh_noise, (None, 0, 0))
  for gap in (1, 2, 20, size // 2, size):
    t = np.arange(gap, size + 1)
    exact = -np.expm1(log_snrs[t] - log_snrs[t - gap])
    np.testing.assert_allclose(share(single, t - gap, t), exact, rtol=2**-21)


@pytest.mark.parametrize('name', ['linear', 'to zero SNR'])
def test_gradients_of_fresh_noise_are_finite_and_right_in_single_precision(name):
  chain = LONG[name]()
  gradient = jax.jit(jax.grad(fresh_noise))
  for s, t in [(0, 1), (0, 1000), (1, 1000), (999, 1000), (499, 500)]:
    slopes = gradient(chain, s, t)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(slopes))
    # dr = -e^change d(change), and e^change = 1 - r.
    r = float(fresh_noise(chain, s, t))
    np.testing.assert_allclose(slopes.log_snrs[jnp.array([s, t])], [1 - r, r - 1], atol=1e-6)


# In continuous time, from t_min to t_max, with the same identities.
PATHS = {
  **CONTINUOUS,
  'flow, shifted': lambda: schedules.flow(shift=3.0),
  'interpolated': lambda: schedules.interpolate(schedules.linear(T)),
}
SHARES = [(0.0, 0.001), (0.0, 1.0), (0.3, 0.31), (0.2, 0.9), (0.5, 1.0), (0.999, 1.0)]


@pytest.fixture(params=PATHS)
def path(request):
  with jax.enable_x64(True):
    yield PATHS[request.param]()


def place(path, share):
  return path.t_min + share * (path.t_max - path.t_min)


def moments(path, t):
  return float(path.alpha(t)), float(path.sigma(t)) ** 2


def continuous_bayes(path, x0, xt, s, t):
  """Mean and variance of q(xs | xt, x0) on a grid of xs that is fine where the mass is."""
  (alpha_s, noise_s), (alpha, noise) = moments(path, s), moments(path, t)
  factor = alpha / alpha_s
  variance = noise - factor**2 * noise_s
  spread = 1 / np.sqrt(1 / noise_s + factor**2 / variance)
  middle = spread**2 * (alpha_s * x0 / noise_s + factor * xt / variance)
  # The grid is only centered by the formula: half a spread aside, so that errors would show.
  xs = middle + spread * (0.5 + np.linspace(-12, 12, 4001))
  log_p = -((xs - alpha_s * x0) ** 2) / noise_s - (xt - factor * xs) ** 2 / variance
  p = np.exp((log_p - log_p.max()) / 2)
  mean = np.sum(p * xs) / np.sum(p)
  return mean, np.sum(p * (xs - mean) ** 2) / np.sum(p)


@pytest.mark.parametrize('name', CONTINUOUS)
def test_fresh_noise_of_a_formula_loses_what_the_gap_says(name):
  def shares(path, s, t):
    return [np.float64(jax.vmap(f, (None, 0, 0))(path, s, t)) for f in (fresh_noise, gap)]

  def gap(path, s, t):
    return path.log_snr(s) - path.log_snr(t)

  single = CONTINUOUS[name]()
  way, first = single.t_max - single.t_min, np.linspace(0, 0.99, 50)
  for width in (1e-3, 0.01):
    s, t = (np.float32(single.t_min + way * share) for share in (first, first + width))
    found, _ = shares(single, s, t)
    with jax.enable_x64(True):
      exact, gaps = shares(CONTINUOUS[name](), np.float64(s), np.float64(t))
    error = np.abs(found / exact - 1)
    assert np.all(error < 2**-18 / np.minimum(gaps, 1))
    assert np.max(error) > 2**-21, 'single precision, or nothing is shown'


@pytest.mark.parametrize(('s', 't'), SHARES)
def test_continuous_posterior_is_bayes_rule(path, s, t):
  s, t = place(path, s), place(path, t)
  xt = float(q_sample(path, 0.7, t, 1.3))
  mean, variance = continuous_bayes(path, 0.7, xt, s, t)
  posterior = q_posterior(path, 0.7, xt, s, t)
  assert float(posterior.mean) == pytest.approx(mean, rel=1e-7, abs=1e-8)
  assert float(posterior.variance) == pytest.approx(variance, rel=1e-7)


@pytest.mark.parametrize(('s', 't'), SHARES)
def test_continuous_transitions_compose_to_the_marginal_and_to_each_other(path, s, t):
  s, m, t = (place(path, share) for share in (s, (s + t) / 2, t))
  first, second, direct = (q_transition(path, 1.0, *pair) for pair in [(s, m), (m, t), (s, t)])
  assert float(first.mean * second.mean) == pytest.approx(float(direct.mean), rel=1e-10)
  composed = second.mean**2 * first.variance + second.variance
  assert float(composed) == pytest.approx(float(direct.variance), rel=1e-8)
  (alpha_s, noise_s), (alpha, noise) = moments(path, s), moments(path, t)
  assert float(direct.mean) * alpha_s == pytest.approx(alpha, abs=1e-12)
  total = float(direct.mean) ** 2 * noise_s + float(direct.variance)
  assert total == pytest.approx(noise, rel=1e-8)


@pytest.mark.parametrize('name', ['vp', 'sub_vp', 'edm', 'flow'])
def test_continuous_posterior_at_the_data_is_the_point(x64, name):
  path = CONTINUOUS[name]()
  for t in (path.t_min, path.t_max):
    posterior = q_posterior(path, X0, XT, 0.0, t)
    np.testing.assert_array_equal(posterior.mean, X0)
    assert posterior.variance == 0


def continuous_total(path, xt, s, t):
  denoised = Denoised(X0, jnp.full(2, 0.3), jnp.full(2, 0.6))
  # These two are made of the other two.
  steps = [reverse(path, denoised, xt, s, t, name) for name in ('fraction', 'optimal')]
  steps.append(q_transition(path, xt, s, t))
  return sum(jnp.sum(step.mean) + jnp.sum(step.variance) for step in steps)


continuous_gradient = jax.jit(jax.value_and_grad(continuous_total, (0, 1)))


def test_continuous_steps_are_compiled_as_eager_with_finite_gradients(path):
  first = 0.0 if path.t_first == 0 else path.t_min
  times = [first, path.t_min, place(path, 0.5), path.t_max]
  for s, t in itertools.pairwise(sorted(set(times))):
    value, gradient = continuous_gradient(path, XT, s, t)
    for leaf in jax.tree.leaves(gradient):
      assert np.all(np.isfinite(leaf))
  assert float(value) == pytest.approx(float(continuous_total(path, XT, s, t)), rel=1e-9)


@pytest.mark.parametrize('name', CONTINUOUS)
def test_prior_is_the_marginal_of_standard_normal_data(x64, name):
  path = CONTINUOUS[name]()
  alpha, noise = moments(path, path.t_max)
  assert float(prior(path, X0, path.t_max).variance) == pytest.approx(alpha**2 + noise, rel=1e-12)
