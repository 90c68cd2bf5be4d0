"""Langevin chains against closed forms, detailed balance, quadrature and blackjax.

Many independent chains at one step are independent draws: their mean is known to its standard
error, and `within` allows 4.5 of them.
"""

import math
import re

import blackjax
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.mcmc import diffusions
from scipy import stats

from ddpm_jax.diffusion import Denoised
from ddpm_jax.diffusion.langevin import (
  LENGTHS,
  Point,
  annealed,
  corrector,
  langevin_step,
  log_acceptance,
  mala,
  run,
  ula,
  ula_variance,
)
from ddpm_jax.theory.diagnostics import split_r_hat, standard_error
from ddpm_jax.theory.oracle import GaussianData


def within(draws, expected, sigmas=4.5):
  """Whether the mean of independent draws is what it should be, to its standard error."""
  draws = np.asarray(draws, float)
  return abs(draws.mean() - expected) < sigmas * draws.std() / math.sqrt(draws.size)


def last(kernel, x, num_steps, seed=0):
  """The last x of one chain from each row, and the Info of its steps."""

  @jax.jit
  @jax.vmap
  def chain(x, key):
    state, trace = run(kernel, kernel.init(x), jax.random.split(key, num_steps))
    return state.x, trace.info

  return chain(x, jax.random.split(jax.random.key(seed), len(x)))


COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.7]])
SMALLEST = float(np.linalg.eigvalsh(COVARIANCE)[0])


def gaussian_score(x):
  return -jnp.asarray(np.linalg.inv(COVARIANCE)) @ x


@pytest.mark.parametrize('step', [0.05, 0.5, 1.5])
def test_stationary_covariance_of_ula_on_a_gaussian(x64, step):
  # One step is affine: its moments iterate exactly, V ← A V Aᵀ + C Cᵀ.
  h = step * SMALLEST
  zero = jnp.zeros(2)
  one = lambda x, eps: langevin_step(x, gaussian_score(x), h, eps)  # noqa: E731
  of_x, of_eps = (np.asarray(part) for part in jax.jacobian(one, (0, 1))(zero, zero))
  moment = np.zeros((2, 2))
  for _ in range(4000):
    moment = of_x @ moment @ of_x.T + of_eps @ of_eps.T
  expected = COVARIANCE @ np.linalg.inv(np.eye(2) - h / 2 * np.linalg.inv(COVARIANCE))
  np.testing.assert_allclose(moment, expected, rtol=1e-10)
  limits = ula_variance(np.linalg.eigvalsh(COVARIANCE), h)
  np.testing.assert_allclose(np.linalg.eigvalsh(moment), limits, rtol=1e-10)
  # In the narrowest direction that is s² / (1 - step / 2), the module's rule.
  assert np.linalg.eigvalsh(moment)[0] == pytest.approx(SMALLEST / (1 - step / 2), rel=1e-10)


@pytest.mark.parametrize('variance', [0.3, jnp.array([0.3, 0.3, 0.3]), jnp.array([0.01, 0.3, 9.0])])
def test_ula_samples_its_biased_limit(variance):
  # With each component's own variance as a preconditioner all of them have one bias.
  spread = jnp.broadcast_to(variance, 3)
  kernel = ula(lambda x: -x / spread, step=0.5, variance=variance)
  x, info = last(kernel, jnp.zeros((20_000, 3)), 40)
  assert np.all(info.accepted) and np.all(info.acceptance == 1)
  for component, exact in zip(x.T, spread, strict=True):
    assert within(component, 0)
    assert within(component**2, exact / (1 - 0.5 / 2))
    assert not within(component**2, exact)


WEIGHTS = np.array([0.3, 0.7])
MEANS = np.array([[-1.1, 0.0], [1.1, 0.6]])
SPREADS = np.array([[0.5, 0.7], [0.6, 0.5]])
MEAN = WEIGHTS @ MEANS
SECOND = np.einsum('k,ki,kj->ij', WEIGHTS, MEANS, MEANS) + np.diag(WEIGHTS @ SPREADS**2)
MASS = WEIGHTS @ stats.norm.cdf(-MEANS[:, 0] / SPREADS[:, 0])  # of the left half plane


def log_mixture(x):
  """An unnormalized density of two modes in the plane."""
  weights, means, spreads = (jnp.asarray(part, x.dtype) for part in (WEIGHTS, MEANS, SPREADS))
  z = (x[None] - means) / spreads
  return jax.nn.logsumexp(jnp.log(weights) - jnp.sum(z**2 / 2 + jnp.log(spreads), 1))


def draw_mixture(size, seed=0):
  generator = np.random.default_rng(seed)
  mode = (generator.uniform(size=size) > WEIGHTS[0]).astype(int)
  return jnp.asarray(MEANS[mode] + SPREADS[mode] * generator.normal(size=(size, 2)), jnp.float32)


def checks(x):
  """Which of mean, second moments and mode mass hold."""
  yield from (within(x[:, i], MEAN[i]) for i in range(2))
  yield from (within(x[:, i] * x[:, j], SECOND[i, j]) for i, j in ((0, 0), (0, 1), (1, 1)))
  yield within(x[:, 0] < 0, MASS)


OPTIONS = {'step': 0.8, 'variance': 0.25}


def test_mala_keeps_the_target_and_ula_does_not():
  x = draw_mixture(40_000)
  assert all(checks(x))
  moved, _ = last(mala(log_mixture, **OPTIONS), x, 25)
  assert np.mean(np.all(moved != x, axis=1)) > 0.99
  assert all(checks(moved))
  biased, _ = last(ula(jax.grad(log_mixture), **OPTIONS), x, 25)
  assert not all(checks(biased))


def test_mala_finds_the_modes_from_one_of_them():
  kernel = mala(log_mixture, **OPTIONS)

  @jax.jit
  def chains(keys):
    start = kernel.init(jnp.asarray(MEANS[1], jnp.float32))
    return jax.vmap(lambda key: run(kernel, start, jax.random.split(key, 1200))[1].x)(keys)

  x = chains(jax.random.split(jax.random.key(0), 64))[:, 200:]
  for values, expected in (
    (x[..., 0], MEAN[0]),
    (x[..., 1], MEAN[1]),
    (x[..., 0] * x[..., 1], SECOND[0, 1]),
    ((x[..., 0] < 0).astype(float), MASS),
  ):
    error, r_hat = jax.jit(lambda values: (standard_error(values), split_r_hat(values)))(values)
    assert abs(values.mean() - expected) < 4.5 * error
    assert r_hat < 1.1


def point(x):
  return Point(x, *jax.value_and_grad(log_mixture)(x))


H = {'scalar': 0.2, 'preconditioned': np.array([0.2, 0.7])}


@pytest.mark.parametrize('h', H.values(), ids=H)
def test_acceptance_balances_every_pair(x64, h):
  # p(x) k(y | x) a(x, y) = p(y) k(x | y) a(y, x), the densities SciPy's.
  x, y = jax.random.normal(jax.random.key(0), (2, 200, 2)) * 1.5

  @jax.jit
  def parts(x, y):
    score = jax.vmap(jax.grad(log_mixture))(x)
    accept = jax.vmap(lambda x, y: log_acceptance(point(x), point(y), h))(x, y)
    return x + jnp.broadcast_to(h, x.shape) * score, accept

  def flow(x, y):
    mean, accept = parts(x, y)
    p = np.log(
      sum(
        w * stats.norm.pdf(x, m, s).prod(1) for w, m, s in zip(WEIGHTS, MEANS, SPREADS, strict=True)
      )
    )
    proposal = stats.norm.logpdf(y, mean, np.sqrt(2 * h))
    return p + proposal.sum(1), accept

  (forth, accept), (back, accept_back) = flow(x, y), flow(y, x)
  np.testing.assert_allclose(forth + accept, back + accept_back, rtol=1e-10)
  # Balance alone allows refusing everything: of each pair one way is always open.
  np.testing.assert_array_equal(np.maximum(accept, accept_back), 0)
  assert np.all(np.minimum(accept, accept_back) < 0)


def test_acceptance_is_blackjaxs(x64):
  h, size = 0.2, 200
  x = jax.random.normal(jax.random.key(0), (size, 2)) * 1.5
  kernel = blackjax.mala.build_kernel()
  propose = diffusions.overdamped_langevin(jax.value_and_grad(log_mixture))

  @jax.jit
  @jax.vmap
  def both(x, key):
    state = blackjax.mala.init(x, log_mixture)
    proposal = propose(jax.random.split(key)[0], state, h)
    theirs = kernel(key, state, log_mixture, h)[1].acceptance_rate
    return jnp.exp(log_acceptance(point(x), point(proposal.position), h)), theirs

  ours, theirs = both(x, jax.random.split(jax.random.key(1), size))
  assert 0.2 < np.mean(ours < 1) < 0.9
  np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_mala_runs_as_blackjaxs_does():
  x, steps = draw_mixture(10_000), 8
  algorithm = blackjax.mala(log_mixture, OPTIONS['step'] * OPTIONS['variance'])

  @jax.jit
  @jax.vmap
  def theirs(x, key):
    keys = jax.random.split(key, steps)
    state, info = jax.lax.scan(lambda s, k: algorithm.step(k, s), algorithm.init(x), keys)
    return state.position, info.acceptance_rate

  there, their_rate = theirs(x, jax.random.split(jax.random.key(5), len(x)))
  here, (our_rate, accepted) = last(mala(log_mixture, **OPTIONS), x, steps)
  assert 0.3 < our_rate.mean() < 0.95
  # Pairs of chains from one start: the differences are independent, their mean is zero.
  assert within((our_rate - their_rate).mean(axis=1), 0)
  assert within((accepted - our_rate).mean(axis=1), 0)
  for moment in (lambda x: x[:, 0], lambda x: x[:, 1] ** 2, lambda x: x[:, 0] < 0):
    assert within(np.asarray(moment(here), float) - np.asarray(moment(there), float), 0)


def test_mala_refuses_what_has_no_density():
  # A density on the positive half line: NaN or zero elsewhere.
  for log_density in (lambda x: jnp.log(x) - x, lambda x: jnp.where(x > 0, -x, -jnp.inf)):
    x, info = last(mala(log_density, step=1.0, variance=1.0), jnp.full(2000, 0.5), 60)
    assert np.all(x > 0)
    assert np.all(np.isfinite(info.acceptance))
    assert info.acceptance.min() == 0


KERNELS = {
  'ula': lambda: ula(jax.grad(log_mixture), **OPTIONS),
  'mala': lambda: mala(log_mixture, **OPTIONS),
}


@pytest.mark.parametrize('name', KERNELS)
def test_a_run_is_its_steps_and_each_chain_is_alone(x64, name):
  kernel, x = KERNELS[name](), jnp.asarray(MEANS, jnp.float64)
  keys = jax.random.split(jax.random.key(0), (2, 6))
  chain = lambda x, keys: run(kernel, kernel.init(x), keys)  # noqa: E731
  states, traces = jax.jit(jax.vmap(chain))(x, keys)
  step, state = jax.jit(kernel.step), jax.jit(kernel.init)(x[1])
  for number, key in enumerate(keys[1]):
    state, info = step(state, key)
    np.testing.assert_allclose(traces.x[1, number], state.x, rtol=1e-12)
    assert traces.info.accepted[1, number] == info.accepted
  np.testing.assert_allclose(states.x[1], state.x, rtol=1e-12)
  assert len(np.unique(traces.x[0][traces.info.accepted[0]][:, 0])) == traces.info.accepted[0].sum()


@flax.struct.dataclass
class Path:
  """A path by tables; its times are their rows."""

  alphas: jax.Array
  sigmas: jax.Array

  def alpha(self, t):
    return self.alphas[t]

  def sigma(self, t):
    return self.sigmas[t]

  def log_snr(self, t):
    return 2 * jnp.log(self.alphas[t] / self.sigmas[t])


RATIOS = np.geomspace(0.1, 10.0, 12)  # sigma / alpha
DOWN = np.arange(RATIOS.size)[::-1]


def ve():
  return Path(jnp.ones(RATIOS.size), jnp.asarray(RATIOS))


def vp():
  alphas = 1 / np.sqrt(1 + RATIOS**2)
  return Path(jnp.asarray(alphas), jnp.asarray(RATIOS * alphas))


def two_modes(path, weight=0.2, place=4.0, variance=0.04):
  """The exact denoiser of weight N(-place, variance) + (1 - weight) N(place, variance)."""

  def denoiser(xt, t):
    ratio = path.sigma(t) / path.alpha(t)
    y, total = xt / path.alpha(t), variance + ratio**2
    right = jax.nn.sigmoid(2 * place * y / total + math.log(1 / weight - 1))
    mean = place * (2 * right - 1)
    return Denoised(mean + variance / total * (y - mean))

  return denoiser


def anneal(path, denoiser, x, seed=0, **options):
  keys = jax.random.split(jax.random.key(seed), len(x))
  run = jax.jit(lambda x, keys: annealed(path, denoiser, jnp.asarray(DOWN), x, keys, **options))
  return run(x, keys)


def test_annealing_finds_the_masses_that_plain_langevin_does_not():
  path, size, steps = ve(), 5000, 200
  start = RATIOS[-1] * jax.random.normal(jax.random.key(1), (size, 1))
  x = anneal(path, two_modes(path), start, step=0.05, num_steps=steps)
  assert np.mean(np.abs(np.abs(x) - 4) < 1) > 0.999
  assert within(x < 0, 0.2)
  score = lambda x: (two_modes(path)(x, 0).x0 - x) / path.sigma(0) ** 2  # noqa: E731
  plain, _ = last(ula(score, step=0.1, variance=0.05), start, 1000)
  assert np.mean(np.abs(np.abs(plain) - 4) < 1) > 0.99
  assert abs(np.mean(plain < 0) - 0.5) < 0.03  # where it began, it stays


def test_annealing_follows_the_papers_recursion():
  # Algorithm 1's own symbols: x ← x + a_i/2 score + √a_i z, a_i = epsilon sigma_i² / sigma_L².
  path, mean, variance, step = ve(), 0.7, 0.3, 0.15
  epsilon = 2 * step * RATIOS[0] ** 2
  m, v = 0.0, RATIOS[-1] ** 2
  for sigma in RATIOS[::-1]:
    for _ in range(3):
      a = epsilon * sigma**2 / RATIOS[0] ** 2
      keep = 1 - a / 2 / (variance + sigma**2)
      m, v = keep * m + (1 - keep) * mean, keep**2 * v + a
  gain = variance / (variance + RATIOS[0] ** 2)
  m, v = mean + gain * (m - mean), gain**2 * v
  start = RATIOS[-1] * jax.random.normal(jax.random.key(1), (20_000, 1))
  denoiser = GaussianData(jnp.full(1, mean), variance).denoiser(path)
  x = anneal(path, denoiser, start, step=step, num_steps=3)
  assert within(x, m)
  assert within((x - m) ** 2, v)
  assert not within((x - m) ** 2, v / gain**2)  # without the last denoising


def test_annealing_sees_a_path_by_its_snr_alone(x64):
  y = 10 * jax.random.normal(jax.random.key(1), (6, 2))
  on = [
    anneal(path, two_modes(path), path.alphas[-1] * y, step=0.2, num_steps=4)
    for path in (ve(), vp())
  ]
  np.testing.assert_allclose(on[0], on[1], rtol=1e-9)


def test_annealing_passes_zero_snr_and_ends_on_the_data():
  # The data is one point, which the denoiser knows.
  path = Path(vp().alphas.at[-1].set(0.0), vp().sigmas.at[-1].set(1.0))
  denoiser = lambda xt, t: Denoised(jnp.full_like(xt, 0.5))  # noqa: E731
  x = anneal(path, denoiser, jnp.ones((3, 2)), step=0.1, num_steps=2)
  np.testing.assert_array_equal(x, 0.5)
  spied = anneal(path, lambda xt, t: Denoised(xt), jnp.ones((3, 2)), step=0.1, num_steps=2)
  assert np.all(np.isfinite(spied))


def test_annealed_examples_belong_to_their_keys(x64):
  path, keys = vp(), jax.random.split(jax.random.key(3), 5)
  x = jax.random.normal(jax.random.key(1), (5, 2))
  options = {'step': 0.1, 'num_steps': 2}

  @jax.jit
  def run(x, keys):
    return annealed(path, two_modes(path), jnp.asarray(DOWN), x, keys, **options)

  whole, order = run(x, keys), jnp.array([3, 0])
  np.testing.assert_allclose(run(x[order], keys[order]), whole[order], rtol=1e-12)
  assert len(np.unique(run(jnp.ones((5, 2)), keys))) == 10


ONE = Path(jnp.array([0.8]), jnp.array([0.6]))  # a path of a single time, 0
DATA_VARIANCE = 0.5
TOTAL = 0.64 * DATA_VARIANCE + 0.36


def gaussian_denoiser(dim):
  return GaussianData(jnp.zeros(dim), DATA_VARIANCE).denoiser(ONE)


@pytest.mark.parametrize('snr', [0.05, 0.16])
@pytest.mark.parametrize('length', LENGTHS)
def test_corrector_has_the_signal_to_noise_ratio(x64, length, snr):
  # What is even in eps is the drift, what is odd is the noise.
  dim = 1 if length == 'norms' else 30_000
  x, eps = jax.random.normal(jax.random.key(0), (2, 4, dim))
  x = jnp.sqrt(TOTAL) * x

  @jax.jit
  def step(eps):
    return corrector(ONE, gaussian_denoiser(dim), x, 0, eps, snr=snr, length=length)

  drift, noise = (step(eps) + step(-eps)) / 2 - x, (step(eps) - step(-eps)) / 2
  ratio = np.linalg.norm(drift, axis=1) / np.linalg.norm(noise, axis=1)
  if length == 'norms':
    np.testing.assert_allclose(ratio, snr, rtol=1e-10)
  else:  # |score| is √dim / √total where a point of data alone would have √dim / sigma
    np.testing.assert_allclose(ratio, snr * 0.6 / math.sqrt(TOTAL), rtol=0.03)


@pytest.mark.parametrize('length', LENGTHS)
def test_corrector_treats_each_example_alone(x64, length):
  x, eps = jax.random.normal(jax.random.key(0), (2, 5, 3))

  @jax.jit
  def step(x, eps, t):
    return corrector(ONE, gaussian_denoiser(3), x, t, eps, snr=0.16, length=length)

  whole = step(x, eps, 0)
  np.testing.assert_allclose(step(x[2:3], eps[2:3], 0), whole[2:3], rtol=1e-12)
  np.testing.assert_allclose(step(x, eps, jnp.zeros(5, int)), whole, rtol=1e-12)
  assert np.all(np.isfinite(step(0 * x, eps, 0)))  # where the score is zero


def test_corrector_leaves_the_marginal_to_second_order_in_its_length(x64):
  # One step is x → N(m(x), c²): the law after it, by quadrature on the mixture's marginal.
  y = np.linspace(-6, 6, 1201)
  width, variance = 0.01, 0.64 * 0.3 + 0.36
  normal = lambda x, m, v: np.exp(-((x - m) ** 2) / (2 * v)) / np.sqrt(2 * np.pi * v)  # noqa: E731
  before = sum(w * normal(y, 0.8 * m, variance) for w, m in ((0.2, -1.5), (0.8, 1.5)))
  denoiser = two_modes(ONE, place=1.5, variance=0.3)

  def change(snr):
    step = lambda eps: corrector(  # noqa: E731
      ONE, denoiser, jnp.asarray(y), 0, eps + 0 * y, snr=snr
    )
    mean = np.asarray(step(0.0))
    spread = np.asarray(step(1.0)) - mean
    after = normal(y[:, None], mean, spread**2) @ before * width
    return np.sum(np.abs(after - before)) * width

  changes = [change(snr) for snr in (0.2, 0.1, 0.05)]
  orders = np.log2(changes[:-1] / np.array(changes[1:])) / 2  # of h, which goes with snr²
  np.testing.assert_allclose(orders, 2, atol=0.08)


def test_limits_of_the_corrector_on_a_gaussian():
  dim, snr, size = 6, 0.1, 8000
  x = math.sqrt(TOTAL) * jax.random.normal(jax.random.key(0), (size, dim))

  def chain(length):
    def step(x, key):
      eps = jax.random.normal(key, x.shape)
      new = corrector(ONE, gaussian_denoiser(dim), x, 0, eps, snr=snr, length=length)
      return new, None

    keys = jax.random.split(jax.random.key(1), 400)
    return jax.jit(lambda: jax.lax.scan(step, x, keys)[0])()

  # The length is constant: ula's bias, s² / (1 - h / 2s²).
  h = 2 * (snr * 0.6) ** 2
  assert within(jnp.sum(chain('noise') ** 2, 1) / dim, TOTAL / (1 - h / (2 * TOTAL)))
  # A step that grows with |eps| and falls with |score| ends elsewhere, however short it is.
  squares = jnp.sum(chain('norms') ** 2, 1) / (dim * TOTAL)
  assert float(squares.mean()) == pytest.approx((1 + 2 / dim) ** 2, rel=0.06)


BAD = {
  'step is 0': lambda: ula(gaussian_score, step=0, variance=1.0),
  'step is -1': lambda: mala(log_mixture, step=-1, variance=1.0),
  '1 - h / (2 variance) is 0.0': lambda: ula_variance(0.5, 1.0),
  'h is 0': lambda: ula_variance(0.5, 0),
  'variance is [1. 0.]': lambda: ula(gaussian_score, step=1, variance=np.array([1.0, 0.0])),
  'snr is 0': lambda: corrector(ONE, gaussian_denoiser(1), jnp.ones((1, 1)), 0, 1.0, snr=0),
  "length 'nrms' is not one of noise, norms": lambda: corrector(
    ONE, gaussian_denoiser(1), jnp.ones((1, 1)), 0, 1.0, snr=1, length='nrms'
  ),
  'sigma at t = 0 is 0': lambda: annealed(
    Path(jnp.ones(2), jnp.arange(2)),
    gaussian_denoiser(1),
    jnp.array([1, 0]),
    jnp.ones((1, 1)),
    jax.random.split(jax.random.key(0), 1),
    step=0.1,
    num_steps=1,
  ),
}


@pytest.mark.parametrize('message', BAD)
def test_what_cannot_be_is_refused(message):
  with pytest.raises(ValueError, match=re.escape(message)):
    BAD[message]()
