"""The variational loss against the bound's closed forms, for a denoiser that errs by a constant.

All data is the one point C and x0_hat the point C - ERROR, so that a step from t to s costs
½ (SNR(s) - SNR(t)) ERROR² a dimension with the variance 'small', and all steps of any path
½ (SNR(t_min) - SNR(t_max)) ERROR².
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codec import pixels
from ddpm_jax.diffusion import PARAMETERIZATIONS, Denoised, density, schedules, variational_bound
from ddpm_jax.diffusion.learned import ENDS, INSIDE
from ddpm_jax.diffusion.schedules import CONTINUOUS, bind, parameters
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, WEIGHTS, LossContext, make_factors

pytestmark = pytest.mark.usefixtures('x64')

LEVELS, C, ERROR, SHAPE = 5, 0.5, 0.3, (2, 3)
# Of moderate ends each, so that no level dominates the mean.
SETTINGS = {
  'vp': {'t_min': 0.05},
  'sub_vp': {'t_min': 0.1},
  've': {'sigma_min': 0.1, 'sigma_max': 5.0},
  'edm': {'sigma_min': 0.1, 'sigma_max': 5.0},
  'flow': {'t_min': 0.1},
  'cosine_log_snr': {'log_snr_min': -4.0, 'log_snr_max': 4.0},
  'learned': {'log_snr_min': -3.0, 'log_snr_max': 3.0, 'width': 4},
}


def path(name):
  return CONTINUOUS[name](**SETTINGS[name]) if name != 'chain' else chain()


def chain():
  return schedules.linear(20, 0.01, 0.4)


def network(params, x, noise_label, cond, index=None, keys=None):
  """x0_hat; params is by how much it errs."""
  return jnp.full_like(x, C) - params


def make_context(schedule, batch_size=512):
  x0 = PARAMETERIZATIONS['x0'](noise_label='log_snr')
  factors = make_factors('variational')
  return LossContext(network, schedule, x0, factors, batch_size, codec=pixels(SHAPE, LEVELS))


def evaluate(schedule, count=512, error=ERROR, **options):
  index = jnp.arange(count)
  key = step_key(0, 0)
  batch = {'x': jnp.full((count, *SHAPE), C), 'cond': {}, 'index': index}
  params = {'network': jnp.asarray(error), 'schedule': {}, 'loss': {}}
  keys = Keys(key, example_keys(key, index))
  return compiled(schedule, params, batch, keys, **options)


@functools.partial(jax.jit, static_argnames='variance')
def compiled(schedule, params, batch, keys, **options):
  context = make_context(schedule, batch['index'].size)
  return LOSSES['variational'](context, params, (), batch, keys, **options)


def snr(schedule, t):
  return math.exp(schedule.log_snr(t))


@pytest.mark.parametrize('name', ['chain', *CONTINUOUS])
def test_the_steps_cost_the_range_of_snr(name):
  schedule = path(name)
  output = evaluate(schedule, 4096)
  truth = 0.5 * (snr(schedule, schedule.t_min) - snr(schedule, schedule.t_max)) * ERROR**2
  # One draw from each of 4096 strata: what is left is the integrand's variation within them.
  np.testing.assert_allclose(np.mean(output.metrics['steps']), truth, rtol=2e-3)


@pytest.mark.parametrize('name', ['chain', 'vp'])
def test_the_ends_cost_what_they_do_in_closed_form(name):
  schedule = path(name)
  output = evaluate(schedule, 4096)
  alpha, sigma = float(schedule.alpha(schedule.t_max)), float(schedule.sigma(schedule.t_max))
  prior = 0.5 * ((alpha * C) ** 2 + sigma**2 - 1 - math.log(sigma**2))
  np.testing.assert_allclose(output.metrics['prior'], prior, rtol=1e-9)
  # The decoder's posterior over the levels at C + n eps, n = sigma / alpha, by quadrature over eps.
  n = math.exp(-float(schedule.log_snr(schedule.t_min)) / 2)
  eps, weights = np.polynomial.hermite_e.hermegauss(201)
  values = np.linspace(-1, 1, LEVELS)
  odds = np.exp(-0.5 * ((C + n * eps)[:, None] - values) ** 2 / n**2)
  log_p = np.log(odds[:, 3] / odds.sum(axis=1))
  draws = output.metrics['reconstruction']
  error = np.std(draws) / math.sqrt(draws.size)
  assert abs(np.mean(draws) + weights @ log_p / weights.sum()) < 5 * error


def test_the_value_is_the_sum_of_its_parts():
  for name in ('chain', 'vp', 'learned'):
    output = evaluate(path(name))
    np.testing.assert_allclose(output.values, sum(output.metrics.values()), rtol=1e-12)


@pytest.mark.parametrize('variance', ['small', 'large'])
def test_a_wrong_variance_costs_its_divergence(variance):
  # Σ KL of two normals whose variances have the ratio w = small / large, by hand.
  schedule = chain()
  output = evaluate(schedule, 20_000, variance=variance)
  s, t = np.arange(1, 20), np.arange(2, 21)
  w = {'small': np.ones(19), 'large': np.asarray(schedule.sigmas)[s] ** 2}[variance]
  w = w / np.asarray(schedule.sigmas)[t] ** 2 if variance == 'large' else w
  gaps = np.diff(-np.exp(np.asarray(schedule.log_snrs)[1:]))
  truth = np.sum(0.5 * (w - 1 - np.log(w)) + 0.5 * w * gaps * ERROR**2)
  np.testing.assert_allclose(np.mean(output.metrics['steps']), truth, rtol=2e-3)


def gradient(schedule):
  """That of the mean value in a learned schedule's leaves."""

  def mean(params):
    return jnp.mean(evaluate(bind(schedule, params)).values)

  return jax.grad(mean)(parameters(schedule))


def test_the_ends_train_on_the_bound():
  schedule, step = path('learned'), 1e-5
  found = gradient(schedule)
  for name in ENDS:
    leaf = parameters(schedule)[name]
    up, down = (
      jnp.mean(evaluate(bind(schedule, {name: leaf + sign * step})).values) for sign in (1, -1)
    )
    np.testing.assert_allclose(found[name], (up - down) / (2 * step), rtol=1e-6)


def test_the_rest_trains_on_the_variance_of_the_steps():
  # Of f = ½ |dSNR / dt| ERROR² over t, by quadrature and differentiation through all of it.
  schedule = path('learned')
  inside = {name: parameters(schedule)[name] for name in INSIDE}
  nodes, weights = np.polynomial.legendre.leggauss(80)

  def moments(inside):
    path = bind(schedule, inside)
    times = jnp.asarray((nodes + 1) / 2)
    rates = jax.vmap(jax.grad(lambda t: jnp.exp(path.log_snr(t))))(times)
    steps = -0.5 * rates * ERROR**2
    mean, square = (jnp.asarray(weights / 2) @ values for values in (steps, jnp.square(steps)))
    return {'square': square, 'variance': square - jnp.square(mean)}

  truth, found = jax.jacrev(moments)(inside), gradient(schedule)
  for name in INSIDE:
    np.testing.assert_allclose(truth['variance'][name], truth['square'][name], atol=1e-9)
    np.testing.assert_allclose(found[name], truth['variance'][name], rtol=0.01, atol=1e-4)


def test_a_network_trains_as_if_the_schedule_did_not():
  def slope(schedule):
    return jax.grad(lambda error: jnp.mean(evaluate(schedule, error=error).values))(ERROR)

  learned = path('learned')
  bound = 0.5 * (snr(learned, 0.0) - snr(learned, 1.0)) * 2 * ERROR
  np.testing.assert_allclose(slope(learned), bound, rtol=0.01)


def test_the_weight_of_the_same_name_sums_to_what_the_error_costs_the_bound():
  schedule, x0 = chain(), jnp.full((1, *SHAPE), C)

  def total(error):
    def denoiser(xt, t):
      return Denoised(jnp.full_like(xt, C - error))

    options = {'times': jnp.arange(20, 0, -1), 'variance': 'small', 'decoder': density}
    return variational_bound(schedule, denoiser, x0, jax.random.key(0), **options).total[0]

  times = jnp.arange(1, 21)
  weights = jax.vmap(WEIGHTS['variational'], (None, 0))(schedule, times)
  eps_errors = np.exp(np.asarray(schedule.log_snrs)[1:]) * ERROR**2
  cost = (total(ERROR) - total(0.0)) / x0.size
  np.testing.assert_allclose(np.sum(weights * eps_errors), cost, rtol=1e-9)


@pytest.mark.parametrize('name', CONTINUOUS)
def test_in_continuous_time_that_weight_integrates_to_the_range_of_snr(name):
  schedule, (nodes, masses) = path(name), np.polynomial.legendre.leggauss(200)
  half = (schedule.t_max - schedule.t_min) / 2
  times = jnp.asarray(schedule.t_min + half * (nodes + 1))
  weights = jax.vmap(WEIGHTS['variational'], (None, 0))(schedule, times)
  snrs = np.exp(jax.vmap(schedule.log_snr)(times))
  truth = 0.5 * (snr(schedule, schedule.t_min) - snr(schedule, schedule.t_max))
  np.testing.assert_allclose(half * masses @ (weights * snrs), truth, rtol=1e-6)


def test_an_examples_value_is_its_own():
  schedule = path('learned')
  index, key = jnp.array([5, 2, 7]), step_key(0, 0)
  batch = {'x': jnp.full((3, *SHAPE), C), 'cond': {}, 'index': index}
  params = {'network': jnp.asarray(ERROR)}
  keys = Keys(key, example_keys(key, index))
  context = make_context(schedule, 8)
  loss = jax.jit(lambda batch, keys: LOSSES['variational'](context, params, (), batch, keys).values)
  alone = loss(batch, keys)
  np.testing.assert_allclose(alone, evaluate(schedule, 8).values[index], rtol=1e-12)


def test_the_learned_fraction_trains_and_finds_its_optimum():
  """With x0_hat exact the best variance is the posterior's own, fraction 0: the slope is uphill."""

  def doubled(params, x, *rest, **told):
    exact = jnp.full_like(x, C)
    return jnp.concatenate([exact, jnp.full_like(x, params)], axis=-1)

  context = dataclasses.replace(make_context(chain(), 64), network=doubled)
  index, key = jnp.arange(64), step_key(0, 0)
  batch = {'x': jnp.full((64, *SHAPE), C), 'cond': {}, 'index': index}
  keys = Keys(key, example_keys(key, index))

  @jax.jit
  def mean(head):
    params = {'network': head}
    output = LOSSES['variational'](context, params, (), batch, keys, variance='fraction')
    return jnp.mean(output.metrics['steps'])

  assert float(mean(-40.0)) == pytest.approx(0.0, abs=1e-12)
  assert (jax.grad(mean)(0.0) > 0) and (mean(0.0) > 0)
