"""Samplers with noise against closed forms: weak orders, marginals, identities, paths."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import precision

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import (
  NOISES,
  Step,
  ancestral,
  clip_x0,
  ddim,
  num_evaluations,
  sample,
)
from ddpm_jax.samplers.corrected import reverse_diffusion
from ddpm_jax.samplers.dpmpp_stochastic import RULES, dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde, moments
from ddpm_jax.samplers.stochastic import dpm2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers import recursions
from tests.samplers.orders import DATA, even_in_log_snr, even_in_sigma, slope

pytestmark = pytest.mark.usefixtures('x64')

# Each with its weak order: derived in its module, measured here.
EVERY = {
  'euler_ancestral': (euler_ancestral(), 1),
  'euler_ancestral half': (euler_ancestral(0.5), 1),
  'dpm2_ancestral': (dpm2_ancestral(), 2),
  'dpm2_ancestral half': (dpm2_ancestral(0.5), 2),
  'dpmpp_2s_ancestral half': (dpmpp_2s_ancestral(0.5), 2),
  'dpmpp_sde': (dpmpp_sde(), 2),
  'dpmpp_sde double': (dpmpp_sde(2.0), 2),
  'dpmpp_sde early': (dpmpp_sde(r=0.3), 2),
  **{f'dpmpp_2m_sde {rule}': (dpmpp_2m_sde(rule=rule), 2) for rule in RULES},
  'dpmpp_3m_sde': (dpmpp_3m_sde(), 2),
  'dpmpp_3m_sde published': (dpmpp_3m_sde(published=True), 2),
  'reverse_diffusion': (reverse_diffusion(), 1),
}

# One of each way through the code.
SOME = [
  'euler_ancestral',
  'dpm2_ancestral',
  'dpm2_ancestral half',
  'dpmpp_2s_ancestral half',
  'dpmpp_sde early',
  'dpmpp_2m_sde heun',
  'dpmpp_3m_sde',
  'reverse_diffusion',
]
BY_SNR = SOME[:-1]  # in x / alpha and sigma / alpha; reverse_diffusion goes by x itself

# Without noise: the order along the probability flow, and how many updates make the history.
TWINS = {
  'euler_ancestral': (euler_ancestral(0.0), 1, 0),
  'dpm2_ancestral': (dpm2_ancestral(0.0), 2, 0),
  'dpmpp_2s_ancestral': (dpmpp_2s_ancestral(0.0), 2, 0),
  'dpmpp_sde': (dpmpp_sde(0.0), 2, 0),
  'dpmpp_sde early': (dpmpp_sde(0.0, r=0.3), 2, 0),
  **{f'dpmpp_2m_sde {rule}': (dpmpp_2m_sde(0.0, rule), 2, 1) for rule in RULES},
  'dpmpp_3m_sde': (dpmpp_3m_sde(0.0), 3, 2),
  'dpmpp_3m_sde published': (dpmpp_3m_sde(0.0, published=True), 2, 2),
}


def of(name):
  return EVERY[name][0]


@pytest.mark.parametrize('name', EVERY)
def test_the_law_of_a_run_converges_with_its_weak_order(name):
  sampler, order = EVERY[name]
  assert sampler.order == order
  measured = recursions.weak_slope(sampler, schedules.vp(), even_in_log_snr)
  assert order - 0.15 < measured < order + 1.2


def test_the_parabola_wants_steps_of_like_length():
  # 50 times of the DDPM chain, as they are and even in log-SNR, and the variance at the last.
  path = schedules.interpolate(schedules.linear())
  moments = lambda name: jax.jit(lambda times: recursions.moments(of(name), path, times)[1])  # noqa: E731
  parabola, others = (
    moments('dpmpp_3m_sde'),
    [moments(n) for n in ('dpmpp_sde', 'dpmpp_2m_sde heun')],
  )
  exact = recursions.marginal(path, 1.0)[1]
  assert (parabola(jnp.linspace(1000.0, 1.0, 50)) / exact)[0] > 5
  even = even_in_log_snr(path, 49, path.log_snr(1000.0), path.log_snr(1.0))
  off, *more = (np.abs(variance(even) / exact - 1).max() for variance in (parabola, *others))
  assert off < 0.01
  assert off < min(more)


@pytest.mark.parametrize('name', TWINS)
def test_without_noise_it_converges_to_the_probability_flow(name):
  sampler, order, seeded = TWINS[name]
  assert sampler.order == order
  assert not sampler.stochastic
  # Steps of uneven length in log-SNR, so that the lengths of past ones matter.
  measured = slope(sampler, schedules.vp(), even_in_sigma, seeded, (160, 320, 640))
  assert order - 0.1 < measured < order + (0.5 if 'published' in name else 1.2)


@pytest.mark.parametrize('name', [name for name in TWINS if TWINS[name][1] > 1])
def test_without_noise_it_also_goes_from_data_to_noise(name):
  sampler, order, seeded = TWINS[name]
  upwards = lambda schedule, n: even_in_log_snr(schedule, n)[::-1]  # noqa: E731
  measured = slope(sampler, schedules.vp(), upwards, seeded, (40, 80, 160))
  assert order - 0.15 < measured < order + 1.2


@pytest.mark.parametrize('name', BY_SNR)
def test_a_point_mass_keeps_its_marginals_whatever_the_steps(name):
  # x0 is then one constant, for which every formula here is exact.
  point, times = GaussianData(jnp.array([0.4, -0.7]), jnp.array(0.0)), jnp.array([0.9, 0.5, 0.1])
  arrived = jax.jit(lambda times: recursions.moments(of(name), schedules.vp(), times, data=point))(
    times
  )
  np.testing.assert_allclose(
    arrived, recursions.marginal(schedules.vp(), 0.1, point), rtol=1e-12, atol=1e-14
  )


@pytest.mark.parametrize('name', ['dpmpp_sde early', 'dpmpp_3m_sde'])
def test_the_recursion_is_what_samples_do(make_keys, name):
  # By 20 000 draws, each moment to five standard errors; this also holds the recursion's own parts.
  count, schedule = 20_000, schedules.vp()
  times = even_in_log_snr(schedule, 5)

  @jax.jit
  def run(eps, keys):
    xT = jax.vmap(DATA.marginal(schedule, times[0]).sample)(eps)
    denoiser = DATA.denoiser(schedule)
    return sample(of(name), denoiser, schedule, times, xT, keys, final='keep')

  x = run(jax.random.normal(jax.random.key(3), (count, 3)), make_keys(count))
  mean, variance = (np.asarray(m) for m in recursions.moments(of(name), schedule, times))
  z = (np.asarray(x) - mean) / np.sqrt(variance)
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
  assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)


@pytest.mark.parametrize('path', ['vp', 've', 'flow'])
def test_euler_ancestral_is_ddim_and_ancestral_sampling_draw_by_draw(make_keys, path):
  # With a nonlinear denoiser; from zero terminal SNR on the flow.
  schedule = schedules.CONTINUOUS[path]()
  times = jnp.linspace(1.0, 0.2, 5)

  @jax.jit
  def run(xT, keys):
    denoiser = clip_x0(DATA.denoiser(schedule), -0.5, 0.5)
    pairs = [(1.0, ancestral('small')), (1.0, ddim(1.0)), (0.5, ddim(0.5)), (0.0, ddim(0.0))]
    return [
      [sample(sampler, denoiser, schedule, times, xT, keys, final='keep') for sampler in pair]
      for pair in ((euler_ancestral(eta), other) for eta, other in pairs)
    ]

  for one, other in run(jax.random.normal(jax.random.key(0), (4, 3)), make_keys(4)):
    np.testing.assert_allclose(one, other, rtol=1e-9)


def ends(sampler, keys):
  """x / alpha at the end of runs through the same values of sigma / alpha, on two paths."""

  def each(keys):
    for schedule in (schedules.flow(), schedules.edm()):
      times = jax.vmap(schedule.time)(jnp.linspace(-5.0, 5.0, 7))
      xT = schedule.alpha(times[0]) * 12 * jnp.array([[1.0, -0.3, 0.2], [0.1, 0.5, -1.0]])
      denoiser = DATA.denoiser(schedule)
      x = sample(sampler, denoiser, schedule, times, xT, keys, final='keep')
      yield x / schedule.alpha(times[-1])

  return jax.jit(lambda keys: list(each(keys)))(keys)


@pytest.mark.parametrize('name', BY_SNR)
def test_a_run_is_the_same_on_every_path(make_keys, name):
  flow, edm = ends(of(name), make_keys(2))
  np.testing.assert_allclose(edm, flow, rtol=1e-8, atol=1e-9)


def test_reverse_diffusion_is_another_on_every_path(make_keys):
  flow, edm = ends(reverse_diffusion(), make_keys(2))
  assert np.abs(flow - edm).min() > 1e-3


def runs(sampler, noise, keys, counts):
  """Where runs of n updates from one xT end, for each n, by one program."""
  schedule, longest = schedules.vp(), max(counts) + 1
  first = DATA.marginal(schedule, even_in_log_snr(schedule, 1)[0])
  xT = jax.vmap(first.sample)(jax.random.normal(keys[0], (len(keys), 3)))

  @jax.jit
  def run(times, n):
    def body(index, state):
      step = Step(times[index], times[index + 1], index)
      draw = NOISES[noise](schedule, keys, xT, step)
      return sampler.update(schedule, DATA.denoiser(schedule), state, step, draw)

    return jax.lax.fori_loop(0, n, body, sampler.init(schedule, times, xT)).x

  return [run(np.resize(even_in_log_snr(schedule, n), longest), n) for n in counts]


@pytest.mark.parametrize('name', ['dpmpp_sde', 'dpmpp_3m_sde'])
def test_runs_along_one_brownian_path_converge_to_one_sample(make_keys, name):
  # With additive noise, to first order however high the weak order.
  counts = (20, 40, 80, 160)
  x = runs(of(name), 'brownian', make_keys(256), counts)
  gaps = [np.sqrt(np.mean((a - b) ** 2)) for a, b in itertools.pairwise(x)]
  measured = -np.polyfit(np.log(counts[:-1]), np.log(gaps), 1)[0]
  assert 0.8 < measured < 1.5
  assert gaps[-1] < 0.1


def test_runs_along_white_noise_do_not(make_keys):
  x = runs(of('dpmpp_sde'), 'white', make_keys(256), (80, 160))
  assert np.sqrt(np.mean((x[0] - x[1]) ** 2)) > 0.5


@pytest.mark.parametrize('name', SOME)
def test_from_zero_terminal_snr_the_law_converges_too(name):
  # From pure noise, alpha = 0, where the first step is infinitely long in log-SNR.
  (sampler, order), schedule = EVERY[name], schedules.flow()
  error = jax.jit(lambda times, n: recursions.weak_error(sampler, schedule, times, n))
  coarse, fine = (
    error(np.resize(np.linspace(1.0, 0.1, n + 1), 81), jnp.array(n)) for n in (10, 80)
  )
  assert fine * 5**order < coarse < 0.4


@pytest.mark.parametrize('eta', [0.5, 1.0])
def test_from_zero_terminal_snr_dpm2_takes_eulers_first_step(make_keys, eta):
  # Where xt says nothing of x0, neither does xt less a better eps.
  schedule, times = schedules.flow(), jnp.array([1.0, 0.6])
  xT = jax.random.normal(jax.random.key(0), (4, 3))
  one, other = (
    sample(make(eta), DATA.denoiser(schedule), schedule, times, xT, make_keys(4), final='keep')
    for make in (dpm2_ancestral, euler_ancestral)
  )
  np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(
  'name', ['dpm2_ancestral', 'dpmpp_2s_ancestral half', 'dpmpp_sde early', 'dpmpp_3m_sde']
)
def test_gradients_pass_zero_terminal_snr(make_keys, name):
  # Each dimension is affine by itself: the slope is a difference of two runs.
  schedule, xT = schedules.flow(), jnp.array([[1.0, -0.5, 0.2]])

  @jax.jit
  @jax.value_and_grad
  def total(x):
    times = jnp.array([1.0, 0.7, 0.4])
    return jnp.sum(sample(of(name), DATA.denoiser(schedule), schedule, times, x, make_keys(1)))

  (value, gradient), (further, _) = total(xT), total(xT + 1)
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(jnp.sum(gradient), further - value, rtol=1e-8, atol=1e-12)


def visited(sampler, schedule, t, s, noise=lambda *_: jnp.ones((1, 3))):
  """The times at which one update from t to s evaluates the denoiser."""
  seen, xt = [], jnp.ones((1, 3))

  def denoiser(xt, t):
    seen.append(t)
    return DATA.denoiser(schedule)(xt, t)

  times = jnp.array([t, s])
  step = Step(times[0], times[1], jnp.array(0))
  state = sampler.init(schedule, times, xt)
  sampler.update(schedule, denoiser, state, step, noise)
  return np.array(seen)


def test_the_middle_of_the_way_down_is_the_next_time_at_full_eta():
  # So that a chain's own times do; for less noise the middle is between them.
  for make in (dpm2_ancestral, dpmpp_2s_ancestral):
    assert not make().between
    np.testing.assert_array_equal(visited(make(), schedules.linear(50), 31, 7), [31, 7])
    assert make(0.5).between
    # On `edm` t = n: n_t = 2 n_s and eta² r = ¼ · ¾, so that n_d² = n_s² 13/16.
    middle = np.sqrt(4.0 * 2.0 * np.sqrt(13 / 16))
    np.testing.assert_allclose(visited(make(0.5), schedules.edm(), 4.0, 2.0), [4.0, middle])


@pytest.mark.parametrize('name', EVERY)
def test_it_costs_what_it_says(name):
  sampler = of(name)
  assert len(visited(sampler, schedules.edm(), 4.0, 2.0)) == sampler.evaluations
  assert (sampler.startup, num_evaluations(sampler, 4)) == (0, 3 * sampler.evaluations + 1)


MAKERS = [
  euler_ancestral,
  dpm2_ancestral,
  dpmpp_2s_ancestral,
  dpmpp_sde,
  dpmpp_2m_sde,
  dpmpp_3m_sde,
]


@pytest.mark.parametrize('make', MAKERS)
def test_noise_scale_multiplies_the_noise_and_eta_zero_has_none(make_world, make):
  world = make_world(0.0)  # a point: what its noise does to later predictions is nothing
  scales = [world.affine(make(noise_scale=scale), 31, 7).scale for scale in (0.5, 1.0, 1.01)]
  np.testing.assert_allclose(scales, np.outer([0.5, 1.0, 1.01], scales[1]), rtol=1e-12)
  assert (scales[1] > 0).all()
  assert not world.affine(make(eta=0.0), 31, 7).scale.any()
  # None is asked for either, so that it needs no keys.
  visited(make(eta=0.0), schedules.edm(), 4.0, 2.0, None)


@pytest.mark.parametrize('H', [-3.0, -0.2, 1e-9, 0.0999, 0.1001, 0.7, 5.0, 300.0])
def test_average_places_are_what_quadrature_finds(H):
  v, weights = np.polynomial.legendre.leggauss(200)
  v = (1 + v) / 2
  weights = weights * np.exp(H * (v - 1))
  expected = [np.sum(weights * v**k) / np.sum(weights) for k in (1, 2)]
  np.testing.assert_allclose(moments(jnp.array(H)), expected, rtol=1e-9)


def test_average_places_keep_single_precision_and_end_at_one():
  with precision(double=False):
    for H in (1e-4, 3e-2, 0.11):
      found = moments(jnp.float32(H))
      assert found[0].dtype == jnp.float32
      np.testing.assert_allclose(found, [1 / 2 + H / 12, 1 / 3 + H / 12 + H**2 / 360], atol=2e-5)
  np.testing.assert_array_equal(moments(jnp.array(jnp.inf)), [1, 1])


@pytest.mark.parametrize(
  ('make', 'options', 'message'),
  [
    (euler_ancestral, {'eta': 1.5}, 'eta: 1.5 is outside [0, 1]'),
    (dpm2_ancestral, {'eta': -0.1}, 'eta: -0.1 is outside [0, 1]'),
    (dpmpp_2s_ancestral, {'noise_scale': 0.0}, 'noise_scale: 0.0 is outside (0, 100]'),
    (dpmpp_sde, {'eta': float('nan')}, 'eta: nan is outside [0, 100]'),
    (dpmpp_sde, {'r': 1.0}, 'r: 1.0 is outside (0, 1)'),
    (dpmpp_2m_sde, {'noise_scale': -1.0}, 'noise_scale: -1.0 is outside (0, 100]'),
    (
      dpmpp_2m_sde,
      {'rule': 'huen'},
      "rule: 'huen' is not one of midpoint, heun; did you mean 'heun'?",
    ),
    (dpmpp_3m_sde, {'eta': -1.0}, 'eta: -1.0 is outside [0, 100]'),
  ],
)
def test_bad_options_are_refused_by_their_names(make, options, message):
  with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
    make(**options)
