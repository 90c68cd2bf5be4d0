"""The bound against models whose likelihood is in closed form, by exact quadrature.

With Gaussian data and its exact denoiser every term is a quadratic in (x0, eps), which
Gauss-Hermite quadrature with three nodes integrates without error.
"""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion import (
  SCHEDULES,
  VARIANCES,
  Denoised,
  Gaussian,
  bits_per_dim,
  density,
  discretized,
  schedules,
  stratified_bound,
  variational_bound,
)
from ddpm_jax.diffusion.bound import (
  bits_per_time,
  bound_term,
  categorical,
  evidence,
  prior_term,
  reconstruction_term,
)
from ddpm_jax.theory.oracle import GaussianData

MEAN, VARIANCE, FRACTION = 0.3, 0.4, 0.3
BETAS = {2: [0.2, 0.5], 3: [0.1, 0.3, 0.6], 12: np.linspace(0.02, 0.5, 12), 4: [0.2, 0.3, 0.4, 1.0]}
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(3)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def oracle(chain):
  """The exact denoiser, which knows its variance and also claims a learned fraction."""
  exact = GaussianData(MEAN, VARIANCE).denoiser(chain)

  def denoiser(xt, t):
    return exact(xt, t)._replace(fraction=jnp.full(xt.shape, FRACTION))

  return denoiser


def down(chain):
  """All of the chain's times, decreasing."""
  return jnp.arange(chain.num_steps, 0, -1)


def expected_parts(chain, variance, x0, times=None):
  """The expectation over eps of (prior, Σ terms, reconstruction) for each of x0, (n,)."""
  times, eps = down(chain) if times is None else times, jnp.tile(NODES, x0.size)
  batch = jnp.repeat(x0, NODES.size)

  def mean(values):
    return values.reshape(x0.size, NODES.size) @ WEIGHTS

  @jax.jit
  def parts():
    def term(step):
      s, t = (jnp.full(batch.shape, time) for time in step)
      return bound_term(chain, oracle(chain), batch, s, t, eps, variance)

    terms = jax.lax.map(term, (times[1:], times[:-1])).sum(axis=0)
    last = reconstruction_term(chain, oracle(chain), batch, times, eps, variance, density)
    return jax.vmap(prior_term, (None, 0, None))(chain, x0, times[0]), terms, last

  prior, terms, last = parts()
  return prior, mean(terms), mean(last)


@pytest.mark.parametrize('num_steps', BETAS)
def test_exact_reverse_chain_costs_the_entropy_and_the_gap_of_the_prior(x64, num_steps):
  chain = schedules.from_betas(BETAS[num_steps])
  parts = expected_parts(chain, 'optimal', jnp.asarray(MEAN + math.sqrt(VARIANCE) * NODES))
  entropy = math.log(2 * math.pi * math.e * VARIANCE) / 2
  alpha_bar = np.prod(1 - np.asarray(BETAS[num_steps]))
  mean, variance = math.sqrt(alpha_bar) * MEAN, alpha_bar * VARIANCE + 1 - alpha_bar
  gap = (variance + mean**2 - 1 - math.log(variance)) / 2
  assert WEIGHTS @ sum(parts) == pytest.approx(entropy + gap, abs=1e-12)


def reverse_chain(betas, variance):
  """(factor, offset, variance) of p(x_{t-1} | xt), t = T … 1, from DDPM's equation 7 in betas."""
  alphas_bar = np.concatenate([[1.0], np.cumprod(1 - np.asarray(betas))])
  steps = []
  for t in range(len(betas), 0, -1):
    beta, now, before = betas[t - 1], alphas_bar[t], alphas_bar[t - 1]
    of_x0, of_xt = (
      math.sqrt(before) * beta / (1 - now),
      math.sqrt(1 - beta) * (1 - before) / (1 - now),
    )
    gain = math.sqrt(now) * VARIANCE / (now * VARIANCE + 1 - now)
    rest = VARIANCE * (1 - now) / (now * VARIANCE + 1 - now)
    tilde = (1 - before) / (1 - now) * beta
    if t == 1:
      second = (1 - alphas_bar[1]) / (1 - alphas_bar[2]) * betas[1]
      low, high, large = second, betas[0], second
    else:
      low, high, large = tilde, beta, beta
    choices = {
      'small': low,
      'large': large,
      'fraction': math.exp(FRACTION * math.log(high) + (1 - FRACTION) * math.log(low)),
      'optimal': tilde + of_x0**2 * rest,
    }
    offset = of_x0 * (MEAN - gain * math.sqrt(now) * MEAN)
    steps.append((of_xt + of_x0 * gain, offset, choices[variance]))
  return steps


def log_normal(x, mean, variance):
  return -((x - mean) ** 2 / variance + np.log(2 * np.pi * variance)) / 2


X0 = jnp.array([-1.4, 0.0, 0.3, 2.0])


@pytest.mark.parametrize('num_steps', BETAS)
@pytest.mark.parametrize('variance', VARIANCES)
def test_bound_is_above_the_models_own_likelihood(x64, variance, num_steps):
  # The model is a linear Gaussian chain from N(0, 1): its marginal of x0 is Gaussian too.
  mean, spread = 0.0, 1.0
  for factor, offset, step in reverse_chain(BETAS[num_steps], variance):
    mean, spread = factor * mean + offset, factor**2 * spread + step
  chain = schedules.from_betas(BETAS[num_steps])
  nats = -log_normal(np.asarray(X0), mean, spread)
  total = sum(expected_parts(chain, variance, X0.astype(jnp.float64)))
  assert np.all(total >= nats - 1e-12)


@pytest.mark.parametrize('num_steps', [2, 3])
@pytest.mark.parametrize('variance', VARIANCES)
def test_bound_is_the_expected_log_ratio_of_the_paths(x64, variance, num_steps):
  # E_q log q(x_{1:T} | x0) / p(x_{0:T}) over whole paths, drawn step by step.
  betas = np.asarray(BETAS[num_steps])
  expected = np.zeros(X0.size)
  for places in itertools.product(range(3), repeat=num_steps):
    x, path, log_q = np.asarray(X0, float), [np.asarray(X0, float)], 0.0
    for beta, place in zip(betas, places, strict=True):
      mean = np.sqrt(1 - beta) * x
      x = mean + np.sqrt(beta) * NODES[place]
      log_q = log_q + log_normal(x, mean, beta)
      path.append(x)
    log_p = log_normal(path[-1], 0.0, 1.0)
    for t, (factor, offset, step) in enumerate(reverse_chain(betas, variance)):
      log_p += log_normal(path[-2 - t], factor * path[-1 - t] + offset, step)
    expected += np.prod(WEIGHTS[list(places)]) * (log_q - log_p)
  chain = schedules.from_betas(betas)
  total = sum(expected_parts(chain, variance, X0.astype(jnp.float64)))
  np.testing.assert_allclose(total, expected, rtol=1e-11)


PATHS = {
  'vp': schedules.vp,
  'sub_vp': schedules.sub_vp,
  'flow': schedules.flow,
  've': schedules.ve,
  'cosine_log_snr': schedules.cosine_log_snr,
  'learned': schedules.learned,
}


def grid(path, num_steps):
  """Times from t_max to t_min, even in log-SNR; in log(1 + SNR) from zero terminal SNR."""
  ends = np.array([path.log_snr(t) for t in (path.t_max, path.t_min)])
  if np.isfinite(ends[0]):
    inner = np.linspace(*ends, num_steps + 1)[1:-1]
  else:
    inner = np.log(np.expm1(np.linspace(*np.logaddexp(0, ends), num_steps + 1)[1:-1]))
  inner = jax.vmap(path.time)(jnp.asarray(inner))
  return jnp.concatenate([jnp.array([path.t_max]), inner, jnp.array([path.t_min])])


@pytest.mark.parametrize('num_times', [2, 9])
@pytest.mark.parametrize('name', PATHS)
def test_exact_reverse_steps_on_any_grid_cost_the_entropy_and_the_gap(x64, name, num_times):
  path = PATHS[name]()
  parts = expected_parts(
    path,
    'optimal',
    jnp.asarray(MEAN + math.sqrt(VARIANCE) * NODES),
    jnp.array([path.t_max, path.t_min]) if num_times == 2 else grid(path, num_times - 1),
  )
  alpha, sigma = float(path.alpha(path.t_max)), float(path.sigma(path.t_max))
  wide = alpha**2 + sigma**2
  mean, variance = (alpha * MEAN) ** 2 / wide, (alpha**2 * VARIANCE + sigma**2) / wide
  gap = (variance + mean - 1 - math.log(variance)) / 2
  entropy = math.log(2 * math.pi * math.e * VARIANCE) / 2
  assert WEIGHTS @ sum(parts) == pytest.approx(entropy + gap, abs=1e-8)


# From zero terminal SNR the variance `large` costs a further log(steps) / steps on any such grid.
FIXED = [(name, v) for name in PATHS for v in ('small', 'large') if (name, v) != ('flow', 'large')]


@pytest.mark.parametrize('name, variance', FIXED)
def test_terms_of_a_path_fall_to_half_the_integral_of_the_mmse(x64, name, variance):
  # By I-MMSE ½ ∫ mmse dSNR is ½ log(1 + VARIANCE SNR) between the ends.
  path, steps = PATHS[name](), np.array([128, 256, 512])
  snr = [math.exp(path.log_snr(t)) for t in (path.t_max, path.t_min)]
  limit = float(np.diff(np.log1p(VARIANCE * np.array(snr)))[0]) / 2
  x0 = jnp.asarray(MEAN + math.sqrt(VARIANCE) * NODES)
  gaps = [WEIGHTS @ expected_parts(path, variance, x0, grid(path, n))[1] - limit for n in steps]
  assert min(gaps) > 0
  slope = -np.polyfit(np.log(steps), np.log(gaps), 1)[0]
  assert slope == pytest.approx(1, abs=0.1)


def even_in_log_snr(num_steps, first=4.0, last=-4.0):
  alphas_bar = 1 / (1 + np.exp(-np.linspace(first, last, num_steps)))
  return schedules.from_betas(1 - alphas_bar / np.concatenate([[1.0], alphas_bar[:-1]]))


def test_terms_exceed_the_information_by_a_known_rate(x64):
  # Σ ½ (SNR_s - SNR_t) mmse(t) is an upper Riemann sum of ½ ∫ mmse dSNR, by I-MMSE the information
  # between the ends. N steps, even over a range Λ of log-SNR, exceed it by
  # Λ / 4N ∫ SNR² |dmmse / dSNR| dlog SNR, which for mmse = v / (1 + v SNR) and u = v SNR is
  # Λ / 4N [log(1 + u) + 1 / (1 + u)] from end to end.
  ends = VARIANCE * np.exp([-4.0, 4.0])
  rate = 8 / 4 * np.diff(np.log1p(ends) + 1 / (1 + ends))[0]
  x0 = jnp.asarray(MEAN + math.sqrt(VARIANCE) * NODES)
  information = np.diff(np.log1p(ends))[0] / 2
  once, twice = (
    n * (WEIGHTS @ expected_parts(even_in_log_snr(n + 1), 'small', x0)[1] - information)
    for n in (200, 400)
  )
  assert twice == pytest.approx(rate, rel=0.01)
  # What is of the next order in 1 / N cancels.
  assert 2 * twice - once == pytest.approx(rate, rel=1e-4)


def off_by(error, x0):
  """A denoiser that misses x0 by `error` in every dimension, whatever it sees."""
  return lambda xt, t: Denoised(x0 + error)


@pytest.mark.parametrize('name', SCHEDULES)
def test_terms_are_differences_of_snr(x64, name):
  # KL_t = ½ (SNR(s) - SNR(t)) |x0 - x0_hat|² (Kingma et al. 2021, equation 13), on any grid.
  x0 = jax.random.normal(jax.random.key(0), (4, 3, 2))
  if name in schedules.DISCRETE:
    chain, times = SCHEDULES[name](30), jnp.array([30, 22, 21, 9, 2])
  else:
    chain = SCHEDULES[name]()
    times = chain.t_min + (chain.t_max - chain.t_min) * jnp.array([1, 0.7, 0.69, 0.1, 0.01])
  options = dict(times=times, variance='small', decoder=density)
  bound = variational_bound(chain, off_by(0.5, x0), x0, jax.random.key(1), **options)
  snr = np.exp(jax.vmap(chain.log_snr)(times))
  assert bound.terms.shape == (4, 4)
  np.testing.assert_allclose(bound.terms, np.tile(np.diff(snr) / 2 * 6 / 4, (4, 1)), rtol=1e-9)
  # What the decoder is given: the mean x0_hat and DDPM's variance of the step before.
  spread = chain.sigma(times[-1]) ** 2 * (1 - snr[3] / snr[4])
  np.testing.assert_allclose(
    bound.reconstruction, 6 * (0.25 / spread + np.log(2 * np.pi * spread)) / 2, rtol=1e-9
  )
  np.testing.assert_allclose(
    bound.total, bound.prior + bound.terms.sum(axis=1) + bound.reconstruction, rtol=1e-12
  )


def within(draws, expected, sigmas=4.5):
  draws = np.asarray(draws, float)
  return abs(draws.mean() - expected) < sigmas * draws.std() / math.sqrt(draws.size)


SIZE = 8192


@pytest.mark.parametrize(
  ('variance', 'strata'),
  [*((name, None) for name in VARIANCES), *(('fraction', strata) for strata in (1, 4, 11, 20))],
)
def test_both_estimates_are_unbiased(x64, variance, strata):
  chain = schedules.from_betas(BETAS[12])
  expected = [float(part[0]) for part in expected_parts(chain, variance, jnp.array([0.9]))]
  estimate = variational_bound if strata is None else stratified_bound
  options = dict(times=down(chain), variance=variance, decoder=density)
  options |= {} if strata is None else {'strata': strata}

  @jax.jit
  def run(key):
    return estimate(chain, oracle(chain), jnp.full(SIZE, 0.9), key, **options)

  bound = run(jax.random.key(0))
  assert bound.terms.shape == (SIZE, strata or 11)
  np.testing.assert_allclose(bound.prior, expected[0], rtol=1e-12)
  assert within(bound.terms.sum(axis=1), expected[1])
  assert within(bound.reconstruction, expected[2])
  assert within(bound.total, sum(expected))


@pytest.mark.parametrize('strata', [1, 3, 12, 24])
def test_each_stratum_draws_from_its_own_part(x64, strata):
  # On a VP path 1 + SNR is 1 / sigma², so a step's share is log sigma_t² / sigma_s² of the whole.
  chain, x0 = even_in_log_snr(13), jnp.zeros((512, 1))
  options = {'times': down(chain), 'variance': 'small', 'decoder': density}
  log_noise = np.log(1 - np.asarray(chain.alphas_bar)[:0:-1])
  edges = (log_noise[0] - log_noise) / (log_noise[0] - log_noise[-1])
  # The terms of `off_by` name their step: divided by its share, no two of them agree.
  known = variational_bound(chain, off_by(1.0, x0), x0, jax.random.key(0), **options).terms[0]
  bound = stratified_bound(chain, off_by(1.0, x0), x0, jax.random.key(0), strata=strata, **options)
  ratios = np.asarray(bound.terms)[..., None] * strata / (np.asarray(known) / np.diff(edges))
  place = np.argmin(np.abs(ratios - 1), axis=-1)
  np.testing.assert_allclose(np.take_along_axis(ratios, place[..., None], -1), 1, rtol=1e-9)
  for k in range(strata):
    overlap = np.clip(strata * np.diff(np.clip(edges, k / strata, (k + 1) / strata)), 0, 1)
    drawn = np.bincount(place[:, k], minlength=12) / 512
    assert np.all(np.abs(drawn - overlap) <= 4.5 * np.sqrt(overlap * (1 - overlap) / 512) + 1e-12)


ESTIMATES = {
  'variational': lambda *args, **options: variational_bound(*args, **options),
  'stratified': lambda *args, **options: stratified_bound(*args, strata=5, **options),
}


@pytest.mark.parametrize('name', ESTIMATES)
def test_draws_belong_to_the_example_and_not_to_its_batch(name):
  chain, x0 = schedules.from_betas(BETAS[12]), jax.random.normal(jax.random.key(2), (6, 3, 3, 1))
  data = GaussianData(jnp.zeros((3, 3, 1)), 0.5)

  @jax.jit
  def total(x0, index, key):
    options = dict(times=down(chain), variance='optimal', decoder=discretized(17), index=index)
    return ESTIMATES[name](chain, data.denoiser(chain), x0, key, **options).total

  key, index = jax.random.key(3), jnp.array([7, 0, 3, 1000, 12, 5])
  whole = total(x0, index, key)
  order = jnp.array([4, 2, 0, 1, 5, 3])
  np.testing.assert_allclose(total(x0[order], index[order], key), whole[order], rtol=1e-5)
  np.testing.assert_allclose(total(x0[2:3], index[2:3], key), whole[2:3], rtol=1e-5)
  same = jnp.broadcast_to(x0[0], x0.shape)
  assert np.unique(total(same, index, key)).size == 6
  assert np.all(total(x0, index, jax.random.key(4)) != whole)
  np.testing.assert_allclose(total(x0, None, key), total(x0, jnp.arange(6), key), rtol=1e-6)


def test_every_noise_of_an_example_is_its_own():
  # The denoiser answers with its input: what comes out of each term tells which noise went in.
  chain, x0 = schedules.from_betas([0.5, 0.2, 0.2, 0.2]), jnp.zeros((1, 4))
  seen = []

  def denoiser(xt, t):
    sigma = jax.vmap(chain.sigma)(jnp.broadcast_to(t, xt.shape[:1]))
    jax.debug.callback(lambda eps: seen.append(np.asarray(eps).ravel()), xt / sigma[:, None])
    return Denoised(xt)

  for estimate in ESTIMATES.values():
    estimate(
      chain, denoiser, x0, jax.random.key(0), times=down(chain), variance='small', decoder=density
    )
    jax.effects_barrier()
    assert len(np.unique(np.round(np.concatenate(seen), 4))) == sum(map(len, seen))
    seen.clear()


@pytest.mark.parametrize('name', ['chain', *PATHS])
def test_prior_term_is_the_integral(x64, name):
  # ∫ q log (q / p) dx on a grid, q and p by SciPy, at times where no part of the KL is small.
  path = schedules.from_betas(BETAS[12]) if name == 'chain' else PATHS[name]()
  t = 3 if name == 'chain' else path.time(0.5)
  alpha, sigma = float(path.alpha(t)), float(path.sigma(t))
  wide = math.hypot(alpha, sigma)
  for x0 in (0.0, 0.3, -2.5):
    x = np.linspace(alpha * x0 - 12 * sigma, alpha * x0 + 12 * sigma, 4001)
    log_q, log_p = stats.norm.logpdf(x, alpha * x0, sigma), stats.norm.logpdf(x, 0, wide)
    integral = np.sum(np.exp(log_q) * (log_q - log_p)) * (x[1] - x[0])
    assert prior_term(path, jnp.asarray(x0), t) == pytest.approx(integral, rel=1e-9)


def test_prior_term_of_the_published_chain_is_negligible(x64):
  # At x0² = 1 the KL is -½ log(1 - alpha_bar_T): 2.91e-5 bits, alpha_bar_T being 4.0358e-5.
  step = (Fraction(1, 50) - Fraction(1, 10_000)) / 999
  alpha_bar = math.prod(float(1 - Fraction(1, 10_000) - step * i) for i in range(1000))
  x0 = jnp.where(jnp.arange(12).reshape(2, 2, 3) % 2, 1.0, -1.0)
  bits = bits_per_dim(prior_term(schedules.linear(), x0, 1000), x0)
  assert bits == pytest.approx(-math.log1p(-alpha_bar) / 2 / math.log(2), rel=1e-8)
  assert bits == pytest.approx(2.91e-5, rel=1e-3)


def test_prior_term_vanishes_at_zero_terminal_snr():
  assert prior_term(schedules.from_betas([0.5, 1.0]), jnp.ones(3), 2) == 0


def test_a_fair_byte_in_each_dimension_is_eight_bits():
  x = jnp.zeros((4, 4, 3))
  assert bits_per_dim(48 * math.log(256), x) == pytest.approx(8, rel=1e-6)


def test_decoders():
  x0, p = jnp.array([1.0, -1.0, 0.0]), Gaussian(jnp.array([0.2, 0.3, -0.5]), jnp.float32(1e4))
  # So wide a Gaussian is flat over the bins: the inner one has its density times its width, 1.
  inner = density(x0[2:], Gaussian(p.mean[2:], p.variance), p)
  assert float(discretized(3)(x0[2:], Gaussian(p.mean[2:], p.variance), p)) == pytest.approx(
    float(inner), rel=1e-3
  )
  assert float(discretized(3)(x0, p, p)) == pytest.approx(
    float(inner) + 2 * math.log(0.5), abs=0.02
  )


@pytest.mark.parametrize('levels', [2, 3, 17])
def test_categorical_is_bayes_rule_with_equal_odds(x64, levels):
  # Σ over values of p(value | z) is one, and the odds of two values are their likelihoods' ratio.
  values, alpha, sigma = np.linspace(-1, 1, levels), 0.8, 0.3
  z, decoder = 0.37, categorical(levels)
  evidence = Gaussian(jnp.array([z / alpha]), jnp.array((sigma / alpha) ** 2))
  log_p = np.array([decoder(jnp.array([x]), evidence, evidence) for x in values])
  assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-12)
  likelihood = log_normal(z, alpha * values, sigma**2)
  np.testing.assert_allclose(log_p - log_p[0], likelihood - likelihood[0], atol=1e-12)


def test_categorical_sums_over_dimensions_and_sees_the_evidence_of_each(x64):
  chain, x0 = schedules.linear(4), jnp.array([[[-1.0, 0.0], [0.5, 1.0]]])
  blind = Gaussian(jnp.full(x0.shape, jnp.nan), jnp.nan)
  xt = chain.alpha(1) * x0 + 0.3
  parts = [
    categorical(5)(x0[0, i, j], blind, evidence(chain, xt[0, i, j], 1)) for i, j in np.ndindex(2, 2)
  ]
  whole = categorical(5)(x0[0], blind, evidence(chain, xt[0], 1))
  assert whole == pytest.approx(sum(map(float, parts)), rel=1e-12)


def test_bits_per_time_are_the_curve_whose_sum_is_the_bound(x64):
  # off_by's terms are known: ½ (SNR(s) - SNR(t)) / 4 a dimension at the time of each.
  chain, x0 = even_in_log_snr(6), jax.random.normal(jax.random.key(0), (7, 3, 2))
  bound = variational_bound(
    chain,
    off_by(0.5, x0),
    x0,
    jax.random.key(1),
    times=down(chain),
    variance='small',
    decoder=density,
  )
  curve = bits_per_time(bound, x0[0])
  snr = np.exp(chain.log_snrs[down(chain)])
  np.testing.assert_allclose(curve[:-1], np.diff(snr) / 8 / math.log(2), rtol=1e-9)
  total = np.mean(bits_per_dim(bound.total - bound.prior, x0[0]))
  np.testing.assert_allclose(np.sum(curve), total, rtol=1e-12)


@pytest.mark.parametrize('name', ESTIMATES)
@pytest.mark.parametrize(
  ('times', 'message'),
  [([5], 'needs two times or more'), ([1, 3, 5], 'strictly decrease'), ([5, 5, 1], 'strictly')],
)
def test_times_that_are_no_chain_are_refused(name, times, message):
  chain, x0 = schedules.linear(5), jnp.zeros((2, 3))
  with pytest.raises(ValueError, match=message):
    ESTIMATES[name](
      chain,
      oracle(chain),
      x0,
      jax.random.key(0),
      times=jnp.array(times),
      variance='small',
      decoder=density,
    )
