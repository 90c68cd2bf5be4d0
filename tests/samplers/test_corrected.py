"""Predictors and correctors against published formulas and the closed forms of Langevin steps."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import Step, num_evaluations, sample
from ddpm_jax.samplers.corrected import (
  PREDICTORS,
  annealed_langevin,
  predictor_corrector,
  reverse_diffusion,
)
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers import recursions
from tests.samplers.orders import DATA, even_in_log_snr

pytestmark = pytest.mark.usefixtures('x64')

POINT = GaussianData(np.array([0.4, -0.7]), np.array(0.0))
XT = np.array([[1.0, -0.5, 0.2], [0.3, 2.0, -1.0]])
EPS = np.array([[0.1, 1.5, -0.2], [-0.7, 0.4, 1.0]])


def updated(sampler, schedule, t, s, data=DATA):
  """x after one update from t to s, with the noise EPS."""
  times = jnp.array([t, s])
  state = sampler.init(schedule, times, jnp.asarray(XT))
  step = Step(times[0], times[1], jnp.array(0))
  return sampler.update(schedule, data.denoiser(schedule), state, step, lambda *_: EPS).x


def score(schedule, t):
  """The gradient of the log-density, by differentiation."""
  return np.stack([DATA.score(schedule, jnp.asarray(x), t) for x in XT])


def test_reverse_diffusion_is_the_papers_on_a_chain():
  chain, t = schedules.linear(50, 0.002, 0.2), 31
  beta = float(chain.betas[t])
  expected = (2 - np.sqrt(1 - beta)) * XT + beta * score(chain, t) + np.sqrt(beta) * EPS
  np.testing.assert_allclose(updated(reverse_diffusion(), chain, t, t - 1), expected, rtol=1e-9)


def test_reverse_diffusion_is_the_papers_under_variance_explosion():
  path, t, s = schedules.edm(), 3.0, 2.0
  expected = XT + (t**2 - s**2) * score(path, t) + np.sqrt(t**2 - s**2) * EPS
  np.testing.assert_allclose(updated(reverse_diffusion(), path, t, s), expected, rtol=1e-9)


def law(sampler, schedule, times, data=DATA):
  """Mean and variance at the end of a run, in closed form."""
  run = jax.jit(lambda times: recursions.moments(sampler, schedule, times, data=data))
  return [np.asarray(moment) for moment in run(jnp.asarray(times))]


@pytest.mark.parametrize('corrector_steps', [1, 3])
@pytest.mark.parametrize('path', ['vp', 'edm'])
def test_a_corrector_leaves_the_marginal_but_for_its_bias(path, corrector_steps):
  # 'ancestral' is exact for a point; a Langevin step takes a variance V to (1 - h/S)² V + 2h,
  # S = sigma_s² that of its target. With h = 2 snr² S that is S (1 + 4 snr⁴) after the first.
  schedule, snr, s = schedules.CONTINUOUS[path](), 0.3, 0.3
  sampler = predictor_corrector('ancestral', corrector_steps, snr)
  mean, variance = law(sampler, schedule, [0.9, s], POINT)
  share = 1.0
  for _ in range(corrector_steps):
    share = (1 - 2 * snr**2) ** 2 * share + 4 * snr**2
  if corrector_steps == 1:
    assert share == pytest.approx(1 + 4 * snr**4)
  np.testing.assert_allclose(mean, schedule.alpha(s) * POINT.mean, rtol=1e-9)
  np.testing.assert_allclose(variance, share * float(schedule.sigma(s)) ** 2, rtol=1e-9)


def limit(schedule, t, h):
  """Mean and variance at which Langevin steps of length h end."""
  mean, variance = recursions.marginal(schedule, t)
  return np.asarray(mean), np.asarray(variance / (1 - h / (2 * variance)))


LIMITS = {
  'predictor_corrector': (predictor_corrector('ancestral', snr=0.5), 0.5),
  'reverse_diffusion': (predictor_corrector(snr=0.5), 0.5),
  'annealed_langevin': (annealed_langevin(step=0.5, langevin_steps=2), 0.5),
}


@pytest.mark.parametrize('name', LIMITS)
def test_with_many_times_a_run_ends_at_the_correctors_limit_and_not_at_the_data(name):
  # h is 2 snr² sigma² or step sigma², the same here. The distance to the limit falls with order 1.
  (sampler, share), schedule = LIMITS[name], schedules.vp()
  assert sampler.order == 0
  run = jax.jit(lambda times, n: recursions.moments(sampler, schedule, times, n))
  ends = []
  for n in (160, 320, 640):
    times = np.resize(even_in_log_snr(schedule, n, -4.0, 0.0), 641)
    ends.append(np.stack(run(times, n)))
  last = times[-1]
  expected = limit(schedule, last, share * schedule.sigma(last) ** 2)
  for coarse, fine in itertools.pairwise(np.abs(end - expected)[1] for end in ends):
    assert (fine < 0.65 * coarse).all()
  np.testing.assert_allclose(ends[-1], expected, rtol=5e-3, atol=1e-4)
  assert (expected[1] / recursions.marginal(schedule, last)[1] > 1.05).all()


def test_annealing_follows_the_papers_recursion():
  # Algorithm 1's own symbols: x ← x + a_i/2 score + √a_i z, a_i = epsilon sigma_i² / sigma_L².
  ratios, step = [5.0, 2.0, 1.0, 0.4], 0.15
  data = GaussianData(np.array([0.7]), np.array(0.3))
  epsilon = 2 * step * ratios[-1] ** 2
  m, v = 0.7, 0.3 + ratios[0] ** 2
  for sigma in ratios[1:]:
    for _ in range(3):
      a = epsilon * sigma**2 / ratios[-1] ** 2
      keep = 1 - a / 2 / (0.3 + sigma**2)
      m, v = keep * m + (1 - keep) * 0.7, keep**2 * v + a
  sampler = annealed_langevin(step, langevin_steps=3)
  np.testing.assert_allclose(law(sampler, schedules.edm(), ratios, data), [[m], [v]], rtol=1e-9)
  # On any other path x / alpha does the same.
  vp = schedules.vp()
  times = [float(vp.time(-2 * np.log(n))) for n in ratios]
  mean, variance = law(sampler, vp, times, data)
  alpha = float(vp.alpha(times[-1]))
  np.testing.assert_allclose([mean / alpha, variance / alpha**2], [[m], [v]], rtol=1e-6)


ZERO_SNR = {
  'annealed_langevin': annealed_langevin(langevin_steps=2),
  **{name: predictor_corrector(name) for name in PREDICTORS},
}


@pytest.mark.parametrize('name', ZERO_SNR)
def test_zero_terminal_snr_is_passed_with_finite_gradients(make_keys, name):
  # Each dimension is affine by itself: the slope is a difference of two runs.
  schedule, sampler = schedules.flow(), ZERO_SNR[name]

  @jax.jit
  @jax.value_and_grad
  def total(x):
    times = jnp.array([1.0, 0.7, 0.4])
    return jnp.sum(sample(sampler, DATA.denoiser(schedule), schedule, times, x, make_keys(2)))

  (value, gradient), (further, _) = total(jnp.asarray(XT)), total(jnp.asarray(XT + 1))
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(jnp.sum(gradient), further - value, rtol=1e-8, atol=1e-12)


def test_a_sample_depends_on_its_own_key_and_start_alone(make_keys):
  # With norms too, which are of each example.
  schedule, keys = schedules.vp(), make_keys(6)
  sampler = predictor_corrector(corrector_steps=2, length='norms')
  xT = jax.random.normal(jax.random.key(0), (6, 3))
  times = even_in_log_snr(schedule, 4)
  run = jax.jit(
    lambda xT, keys: sample(
      sampler, DATA.denoiser(schedule), schedule, times, xT, keys, final='keep'
    )
  )
  together, rows = run(xT, keys), jnp.array([5, 0, 2])
  np.testing.assert_allclose(run(xT[rows], keys[rows]), together[rows], rtol=1e-10)
  assert (np.abs(run(xT, make_keys(6, seed=2)) - together) > 1e-9).all()


COSTS = {
  'predictor': (predictor_corrector('ddim', 3), 4),
  'annealed': (annealed_langevin(langevin_steps=5), 5),
  'reverse': (reverse_diffusion(), 1),
}


@pytest.mark.parametrize('name', COSTS)
def test_it_costs_what_it_says_and_each_draw_is_new(make_keys, name):
  sampler, evaluations = COSTS[name]
  schedule, calls, draws = schedules.vp(), [], []
  times = jnp.array([0.5, 0.4])

  def denoiser(xt, t):
    jax.debug.callback(lambda: calls.append(1))
    return DATA.denoiser(schedule)(xt, t)

  def noise(t, s, draw=0, part=0):
    jax.debug.callback(lambda draw: draws.append((int(draw), part)), draw)
    return jnp.asarray(EPS)

  step = Step(times[0], times[1], jnp.array(0))
  sampler.update(schedule, denoiser, sampler.init(schedule, times, jnp.asarray(XT)), step, noise)
  jax.effects_barrier()
  assert len(calls) == evaluations == sampler.evaluations
  assert num_evaluations(sampler, 3) == 2 * evaluations + 1
  assert len(set(draws)) == len(draws) == evaluations - (name == 'predictor')


@pytest.mark.parametrize(
  ('make', 'options', 'message'),
  [
    (predictor_corrector, {'predictor': 'dim'}, "predictor: 'dim' is not one of"),
    (predictor_corrector, {'corrector_steps': 0}, 'corrector_steps: 0 is outside [1, 1000]'),
    (predictor_corrector, {'snr': 0.0}, 'snr: 0.0 is outside (0, 100]'),
    (predictor_corrector, {'snr': float('nan')}, 'snr: nan is outside (0, 100]'),
    (predictor_corrector, {'length': 'norm'}, "length: 'norm' is not one of noise, norms"),
    (annealed_langevin, {'step': -0.1}, 'step: -0.1 is outside (0, 2)'),
    (annealed_langevin, {'langevin_steps': 0}, 'langevin_steps: 0 is outside [1, 1000]'),
  ],
)
def test_bad_options_are_refused_by_their_names(make, options, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}'):
    make(**options)
