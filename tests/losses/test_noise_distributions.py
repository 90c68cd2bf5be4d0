"""Noise distributions against their covariances, their couplings and what they make of a loss."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, NOISE_DISTRIBUTIONS, LossContext, make_factors

pytestmark = pytest.mark.usefixtures('x64')

SHAPE = (2, 3, 2)


def setting(index, step=0):
  """Batch and keys of the examples with these positions in the stream, uniform in [-1, 1]."""
  index = jnp.asarray(index)
  key = step_key(0, step)
  draw = functools.partial(jax.random.uniform, shape=SHAPE, minval=-1.0)
  images = jax.vmap(draw)(example_keys(jax.random.key(7), index))
  return {'x': images, 'cond': {}, 'index': index}, Keys(key, example_keys(key, index))


def context(network=None, distribution='white', gather=lambda x: x, **options):
  factors = make_factors(
    'simple', noise_distribution=functools.partial(NOISE_DISTRIBUTIONS[distribution], **options)
  )
  eps = PARAMETERIZATIONS['eps']()
  return LossContext(network, schedules.linear(20, 0.01, 0.4), eps, factors, 8, gather)


def draws(distribution, index, step=0, gather=lambda x: x, **options):
  return NOISE_DISTRIBUTIONS[distribution](context(gather=gather), *setting(index, step), **options)


@functools.partial(jax.jit, static_argnums=0)
def compiled(distribution, index):
  return draws(distribution, index)[0]


def flat(x):
  return np.asarray(x).reshape(x.shape[0], -1)


def many(distribution, **options):
  """(20000, 12) draws, as of batches of 8 examples over steps."""
  run = jax.jit(
    jax.vmap(lambda step: draws(distribution, jnp.arange(8) + 8 * step, step, **options)[1])
  )
  return flat(run(jnp.arange(2500)).reshape(-1, *SHAPE))


def covariance(distribution, scale):
  """Of a channel-last (2, 3, 2) example's noise shown, in closed form."""
  same_channel = np.kron(np.ones((6, 6)), np.eye(2))
  return (
    np.eye(12)
    + {'offset': scale**2 * same_channel, 'perturbed': scale**2 * np.eye(12)}[distribution]
  )


@pytest.mark.parametrize(('distribution', 'scale'), [('offset', 0.5), ('perturbed', 0.5)])
def test_the_noise_shown_has_its_covariance(distribution, scale):
  shown, truth = many(distribution, scale=scale), covariance(distribution, scale)
  # A product of normals deviates by at most √2 times the product of their deviations.
  error = np.sqrt(2 * np.outer(truth.diagonal(), truth.diagonal()) / len(shown))
  assert (np.abs(shown.T @ shown / len(shown) - truth) < 5 * error).all()
  assert (np.abs(shown.mean(0)) < 5 * np.sqrt(truth.diagonal() / len(shown))).all()


@pytest.mark.parametrize('distribution', ['white', 'transport'])
def test_the_noise_of_an_example_is_standard_normal(distribution):
  eps = np.sort(many(distribution).ravel())
  quantiles = jax.scipy.special.ndtri((jnp.arange(eps.size) + 0.5) / eps.size)
  inside = slice(eps.size // 1000, -eps.size // 1000)
  np.testing.assert_allclose(eps[inside], quantiles[inside], atol=0.05)
  shown = many(distribution)
  assert np.abs(shown.T @ shown / len(shown) - np.eye(12)).max() < 5 * np.sqrt(2 / len(shown))


@pytest.mark.parametrize('distribution', ['offset', 'perturbed'])
def test_at_scale_zero_a_distribution_is_white(distribution):
  for drawn, plain in zip(
    draws(distribution, range(8), scale=0.0), draws('white', range(8)), strict=True
  ):
    np.testing.assert_array_equal(drawn, plain)


def test_only_a_perturbed_input_differs_from_the_target():
  for distribution in NOISE_DISTRIBUTIONS:
    eps, shown = draws(distribution, range(8))
    assert np.array_equal(eps, shown) == (distribution != 'perturbed')


@pytest.mark.parametrize('step', range(5))
def test_transport_costs_what_the_best_assignment_does(step):
  index = np.arange(24)
  x0 = flat(setting(index, step)[0]['x'])
  white, dealt = (
    flat(draws(distribution, index, step)[0]) for distribution in ('white', 'transport')
  )
  costs = ((x0[:, None] - white[None]) ** 2).sum(-1)
  least = costs[linear_sum_assignment(costs)].sum()
  np.testing.assert_allclose(((x0 - dealt) ** 2).sum(), least, rtol=1e-12)
  assert least < 0.9 * costs.trace()
  np.testing.assert_array_equal(np.sort(white, axis=0), np.sort(dealt, axis=0))


def test_a_larger_batch_is_coupled_more_closely():
  def cost(size):
    parts = np.arange(64).reshape(-1, size)
    eps = np.concatenate([compiled('transport', part) for part in parts])
    return ((setting(range(64))[0]['x'] - eps) ** 2).mean()

  assert cost(64) < cost(16) < cost(4)


@pytest.mark.parametrize('distribution', NOISE_DISTRIBUTIONS)
def test_devices_and_order_change_nothing(distribution):
  together = draws(distribution, range(8))[1]
  batch, _ = setting(range(8))
  white = draws('white', range(8))[0]
  whole = {'index': batch['index'], 'x': batch['x'], 'eps': white}

  def gather(part):
    """The array of which `part` is a half."""
    return next(a for a in whole.values() if part.shape[1:] == a.shape[1:] and holds(a, part))

  halves = [draws(distribution, half, gather=gather)[1] for half in (range(4), range(4, 8))]
  np.testing.assert_allclose(np.concatenate(halves), together, rtol=1e-12)
  shuffled = np.array([3, 7, 0, 5, 1, 2, 6, 4])
  np.testing.assert_allclose(draws(distribution, shuffled)[1], together[shuffled], rtol=1e-12)


def holds(whole, part):
  size = part.shape[0]
  return any(np.array_equal(whole[i : i + size], part) for i in (0, size))


def test_input_perturbation_wants_the_regression_of_eps_on_what_is_shown():
  # With x0 = 0, xt = sigma (eps + scale z): the slope of eps on xt / sigma is 1 / (1 + scale²).
  def network(params, x, noise_label, cond, index=None, keys=None):
    sigma = jax.vmap(base.schedule.sigma)(noise_label.astype(int))
    return params * x / sigma.reshape(-1, 1, 1, 1)

  base = context(network, 'perturbed', scale=0.7)
  batch, keys = setting(range(4000))
  batch['x'] = jnp.zeros_like(batch['x'])

  @jax.jit
  def slopes(strength):
    def values(strength):
      return LOSSES['simple'](base, {'network': strength}, (), batch, keys).values

    return jax.jacfwd(values)(strength)

  at_best = slopes(1 / (1 + 0.7**2))
  assert abs(at_best.mean()) < 5 * at_best.std() / np.sqrt(at_best.size)
  assert slopes(1.0).mean() > 10 * slopes(1.0).std() / np.sqrt(at_best.size)
