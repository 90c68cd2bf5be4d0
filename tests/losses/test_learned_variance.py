"""The hybrid loss against the bound's own sum, and the learned uncertainty at its optimum."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.codec import pixels
from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules, variational_bound
from ddpm_jax.diffusion.bound import discretized
from ddpm_jax.diffusion.parameterization import VARIANCE_HEADS, make_denoiser
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, LossContext, make_factors
from ddpm_jax.losses.learned_uncertainty import new_uncertainty, uncertainty_of

pytestmark = pytest.mark.usefixtures('x64')

SHAPE, LEVELS, STEPS = (2, 3), 5, 4
CHAIN = schedules.linear(STEPS, 0.05, 0.4)


def network(params, x, noise_label, cond, index=None, keys=None):
  value = params['mean'] * x
  return jnp.concatenate([value, params['head'] * jnp.ones_like(x)], axis=-1)


def in_turn(step_key, index, batch_size, schedule, state):
  """Every time equally often."""
  return 1 + index % STEPS, jnp.ones(index.shape)


PARAMS = {'mean': np.array(0.6), 'head': np.array(-0.3)}


def context_of(head, **factors):
  parameterization = dataclasses.replace(PARAMETERIZATIONS['eps'](), head=VARIANCE_HEADS[head])
  chosen = make_factors('hybrid', **{'timestep_distribution': in_turn, **factors})
  return LossContext(network, CHAIN, parameterization, chosen, 8, codec=pixels(SHAPE, LEVELS))


@functools.partial(jax.jit, static_argnames=('loss', 'head', 'count', 'part'))
def mean_of(params, loss='hybrid', head='range', count=64, part=None):
  index, key = jnp.arange(count), step_key(0, 0)
  batch = {'x': jnp.full((count, *SHAPE), 0.5), 'cond': {}, 'index': index}
  keys = Keys(key, example_keys(key, index))
  output = LOSSES[loss](context_of(head), {'network': params}, (), batch, keys)
  return jnp.mean(output.metrics[part] if part else output.values)


@pytest.mark.parametrize('head', VARIANCE_HEADS)
def test_the_bounds_part_is_the_bound_but_for_its_prior(head):
  context, count = context_of(head), 40_000
  x0 = jnp.full((count // 4, *SHAPE), 0.5)
  denoiser = make_denoiser(network, PARAMS, CHAIN, context.parameterization, {})
  bound = jax.jit(
    lambda: variational_bound(
      CHAIN,
      denoiser,
      x0,
      jax.random.key(0),
      times=jnp.arange(STEPS, 0, -1),
      variance=context.parameterization.head.variance,
      decoder=discretized(LEVELS),
    )
  )()
  each = np.asarray(bound.total - bound.prior) / (6 * np.log(2))
  found = mean_of(PARAMS, head=head, count=count, part='vlb')
  # Both are means of some 10,000 draws of each time.
  assert abs(found - each.mean()) < 7 * each.std() / np.sqrt(each.size)


def test_the_value_is_simple_and_a_thousandth_of_the_bound():
  simple = mean_of(PARAMS, loss='simple')
  vlb = mean_of(PARAMS, part='vlb')
  np.testing.assert_allclose(mean_of(PARAMS), simple + 0.001 * vlb, rtol=1e-12)


@pytest.mark.parametrize('head', VARIANCE_HEADS)
def test_the_bounds_gradient_reaches_the_variance_alone(head):
  hybrid = jax.grad(mean_of)(PARAMS, head=head)
  simple = jax.grad(mean_of)(PARAMS, loss='simple', head=head)
  vlb = jax.grad(lambda params: mean_of(params, head=head, part='vlb'))(PARAMS)
  np.testing.assert_allclose(hybrid['mean'], simple['mean'], rtol=1e-12)
  assert simple['head'] == 0 and vlb['mean'] == 0
  np.testing.assert_allclose(hybrid['head'], 0.001 * vlb['head'], rtol=1e-9)
  assert abs(vlb['head']) > 1e-3


def test_the_uncertainty_is_least_at_the_log_of_the_loss():
  index, key = jnp.arange(32), step_key(0, 0)
  batch = {'x': jnp.full((32, *SHAPE), 0.5), 'cond': {}, 'index': index}
  keys = Keys(key, example_keys(key, index))

  def only(step_key, index, batch_size, schedule, state):
    return jnp.full(index.shape, 2), jnp.ones(index.shape)

  context = context_of('range', timestep_distribution=only)
  own, state = new_uncertainty(context, {}, jax.random.key(0), width=8)
  error = LOSSES['simple'](context, {'network': PARAMS}, (), batch, keys).values.mean()

  @jax.jit
  def mean(own, params=PARAMS):
    given = {'network': params, 'loss': own}
    return LOSSES['uncertainty'](context, given, state, batch, keys).values.mean()

  np.testing.assert_allclose(mean(own), error, rtol=1e-12)  # u = 0 at first
  # u is linear in the amplitudes: along its gradient it can be given any value.
  slope = jax.grad(lambda own: uncertainty_of(own, state['waves'], CHAIN.log_snr(2)))(own)
  size = jnp.sum(jnp.square(slope['amplitude']))
  best = {'amplitude': jnp.log(error) * slope['amplitude'] / size}
  np.testing.assert_allclose(mean(best), 1 + jnp.log(error), rtol=1e-9)
  assert np.abs(jax.grad(mean)(own)['amplitude']).max() > 1e-3
  np.testing.assert_allclose(jax.grad(mean)(best)['amplitude'], 0, atol=1e-12)
