"""The product losses, held against the Gaussian oracle, whose every expectation is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import (
  DISTANCES,
  LOSSES,
  OF_TEACHERS,
  PRESETS,
  TIMESTEP_DISTRIBUTIONS,
  WEIGHTS,
  LossContext,
  make_factors,
  start,
)
from ddpm_jax.losses.context import noise_like
from ddpm_jax.theory.oracle import GaussianData
from tests.losses.test_timestep_distributions import ESTIMATES
from tests.readouts import READOUTS, seen

pytestmark = pytest.mark.usefixtures('x64')

SHAPE = (2, 3)
NUM_STEPS = 20
VARIANCE = 0.3


def chain():
  return schedules.linear(NUM_STEPS, 0.01, 0.4)


def data():
  return GaussianData(jnp.linspace(-0.5, 0.5, 6).reshape(SHAPE), jnp.array(VARIANCE))


def levels(t):
  """alpha and sigma at times (B,), shaped to go with a batch."""
  schedule = chain()
  return (jax.vmap(level)(t).reshape(-1, 1, 1) for level in (schedule.alpha, schedule.sigma))


def oracle_network(name, perturbation=jnp.tanh, calls=None):
  """The exact x0 + params · perturbation(xt), read out as `name`; notes down how it is called."""

  def network(params, x, noise_label, cond, index=None, keys=None):
    t = noise_label.astype(int)
    xt = x / seen(name, *levels(t))
    if calls is not None:
      calls.append(
        {'x': xt, 'seen': x, 'cond': cond, 'index': index, 'keys': keys, 'params': params}
      )
      calls[-1]['t'] = noise_label
    x0 = data().denoiser(chain())(xt, t).x0 + params * perturbation(xt)
    return READOUTS[name](xt, x0, *levels(t))

  return network


def with_head(params, x, *told):
  """The oracle's eps, and a head of half of it."""
  value = oracle_network('eps')(params, x, *told)
  return jnp.concatenate([value, value / 2], axis=-1)


def make_context(name='eps', batch_size=8, network=None, **factors):
  network = network or oracle_network(name)
  chosen = make_factors('simple')._replace(**factors)
  return LossContext(
    network, chain(), PARAMETERIZATIONS[name](noise_label='time'), chosen, batch_size
  )


def make_batch(index):
  keys = example_keys(jax.random.key(9), jnp.asarray(index))
  return {'x': jax.vmap(data().sample)(keys), 'cond': {}, 'index': jnp.asarray(index)}


def evaluate(context, index, strength=0.1, step=0, loss='simple', **changes):
  index = jnp.asarray(index)
  key = step_key(0, step)
  params = {'network': jnp.asarray(strength), 'schedule': {}}
  params['loss'], state = start(LOSSES[loss], context, params, jax.random.key(1))
  batch = make_batch(index) | changes
  return LOSSES[loss](context, params, state, batch, Keys(key, example_keys(key, index)))


def always(time):
  """A timestep distribution, such as a user may plug in."""
  return lambda key, index, batch_size, schedule, state: (
    jnp.full(index.shape, time),
    jnp.ones(index.shape),
  )


def assert_mean(values, truth, errors=5):
  """The mean of independent values is the truth, within that many standard errors."""
  values = np.asarray(values)
  assert abs(values.mean() - truth) < errors * values.std() / np.sqrt(values.size)


# One weight, one objective.


@pytest.mark.parametrize('weight', sorted(set(WEIGHTS) - {'output'}))
def test_a_weight_is_one_objective_under_every_parameterization(weight):
  values = [
    evaluate(make_context(name, weight=WEIGHTS[weight]), range(8)).values
    for name in PARAMETERIZATIONS
  ]
  for other in values[1:]:
    np.testing.assert_allclose(other, values[0], rtol=1e-9)


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_simple_is_the_squared_error_of_eps(name):
  calls = []
  network = oracle_network(name, calls=calls)
  values = evaluate(make_context(name, network=network), range(8)).values
  xt, t = calls[0]['x'], calls[0]['t'].astype(int)
  predicted = data().denoiser(chain())(xt, t).x0 + 0.1 * jnp.tanh(xt)
  alpha, sigma = levels(t)
  noises = [(xt - alpha * x0) / sigma for x0 in (make_batch(range(8))['x'], predicted)]
  np.testing.assert_allclose(values, np.mean((noises[0] - noises[1]) ** 2, (1, 2)), rtol=1e-9)


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_output_is_the_plain_error_of_what_the_network_says(name):
  calls = []
  network = oracle_network(name, calls=calls)
  values = evaluate(make_context(name, network=network, weight=WEIGHTS['output']), range(8)).values
  xt, t = calls[0]['x'], calls[0]['t']
  said = network(0.1, calls[0]['seen'], t, {})
  target = READOUTS[name](xt, make_batch(range(8))['x'], *levels(t.astype(int)))
  np.testing.assert_allclose(values, np.mean((said - target) ** 2, (1, 2)), rtol=1e-9)


# Expectations at the oracle.


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
@pytest.mark.parametrize('time', [1, 7, NUM_STEPS])
def test_the_oracles_simple_loss_is_the_posterior_variance_of_eps(name, time):
  # eps and xt are jointly Gaussian with covariance sigma: Var[eps | xt] = 1 - sigma² / Var[xt].
  alpha, sigma = float(chain().alpha(time)), float(chain().sigma(time))
  truth = 1 - sigma**2 / (alpha**2 * VARIANCE + sigma**2)
  context = make_context(name, timestep_distribution=always(time))
  assert_mean(evaluate(context, range(4000), strength=0.0).values, truth)


@pytest.mark.parametrize('distribution', ESTIMATES)
def test_over_the_distribution_of_t_it_is_the_mean_over_the_chain(distribution):
  schedule = chain()
  alpha, sigma = (np.asarray(level)[1:] for level in (schedule.alphas, schedule.sigmas))
  truth = np.mean(1 - sigma**2 / (alpha**2 * VARIANCE + sigma**2))
  context = make_context(
    timestep_distribution=TIMESTEP_DISTRIBUTIONS[distribution], batch_size=4000
  )
  assert_mean(evaluate(context, range(4000), strength=0.0).values, truth)


@pytest.mark.parametrize('distance', DISTANCES)
@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_the_oracle_is_a_stationary_point_and_a_minimum(name, distance):
  # The posterior is symmetric about the oracle, so that its mean is best under every distance.
  context = make_context(name, distance=DISTANCES[distance])

  @jax.jit
  def slopes(strength):
    return jax.jacfwd(lambda s: evaluate(context, range(2000), s).values)(strength)

  assert_mean(slopes(0.0), 0.0)
  for strength in (-0.3, 0.3):
    slope = slopes(strength)
    assert np.sign(strength) * slope.mean() > 10 * slope.std() / np.sqrt(slope.size)


@pytest.mark.parametrize('loss', sorted(set(PRESETS) - {'simple'} - set(OF_TEACHERS)))
def test_the_oracle_is_a_stationary_point_of_every_preset(loss):
  context = make_context(network=with_head if loss == 'hybrid' else None)
  context = dataclasses.replace(context, factors=make_factors(loss))
  slopes = jax.jit(jax.jacfwd(lambda s: evaluate(context, range(2000), s, loss=loss).values))
  assert_mean(slopes(0.0), 0.0)
  assert np.mean(slopes(0.3)) > 0


# Examples on their own.


@pytest.mark.parametrize(
  ('loss', 'distribution'),
  [
    *((loss, 'uniform') for loss in sorted(set(PRESETS) - set(OF_TEACHERS))),
    *(('simple', distribution) for distribution in TIMESTEP_DISTRIBUTIONS),
  ],
)
def test_an_examples_value_depends_on_no_other_example_and_no_layout(loss, distribution):
  factors = make_factors(loss, timestep_distribution=TIMESTEP_DISTRIBUTIONS[distribution])
  network = with_head if loss == 'hybrid' else None
  context = dataclasses.replace(make_context(network=network), factors=factors)
  together = evaluate(context, range(8), loss=loss).values
  assert together.shape == (8,)
  halves = [evaluate(context, half, loss=loss).values for half in (range(4), range(4, 8))]
  np.testing.assert_allclose(np.concatenate(halves), together, rtol=1e-12)
  shuffled = np.random.default_rng(0).permutation(8)
  again = evaluate(context, shuffled, loss=loss).values
  np.testing.assert_allclose(again, together[shuffled], rtol=1e-12)
  np.testing.assert_raises(
    AssertionError, np.testing.assert_allclose, evaluate(context, range(8), step=1).values, together
  )


def test_noise_is_standard_normal_and_white():
  key = jax.random.key(3)
  keys = Keys(key, example_keys(key, jnp.arange(5000)))
  eps = np.asarray(noise_like(jnp.zeros((5000, *SHAPE)), keys)).reshape(5000, -1)
  # Means have standard error 1/√n; second moments 1/√n, or √2/√n on the diagonal.
  assert np.abs(eps.mean(axis=0)).max() < 5 / np.sqrt(5000)
  assert np.abs(eps.T @ eps / 5000 - np.eye(6)).max() < 5 * np.sqrt(2 / 5000)
  neighbors = np.mean(eps[1:] * eps[:-1])
  assert abs(neighbors) < 5 / np.sqrt(eps.size)


# What the network is told.


def test_a_learned_variance_in_the_output_is_left_alone():
  def doubled(params, x, *rest):
    value = oracle_network('eps')(params['mean'], x, *rest)
    return jnp.concatenate([value, params['head'] * x], axis=-1)

  context = make_context(network=doubled)

  def run(params):
    key = step_key(0, 0)
    index = jnp.arange(8)
    keys = Keys(key, example_keys(key, index))
    return LOSSES['simple'](context, {'network': params}, None, make_batch(index), keys).values

  plain = evaluate(make_context(), range(8), 0.1).values
  np.testing.assert_allclose(run({'mean': 0.1, 'head': 5.0}), plain, rtol=1e-12)
  slopes = jax.jacfwd(run)({'mean': 0.1, 'head': 5.0})
  assert not slopes['head'].any()
  assert slopes['mean'].all()


def test_the_network_gets_its_own_parameters_the_condition_and_the_index():
  calls = []
  context = make_context(network=oracle_network('eps', calls=calls))
  cond = {'label': jnp.arange(8) % 3, 'text': {'tokens': jnp.ones((8, 2, 5))}}
  evaluate(context, range(10, 18), cond=cond)
  evaluate(context, range(10, 18))
  assert calls[0]['cond'] is cond
  np.testing.assert_array_equal(calls[0]['index'], np.arange(10, 18))
  assert calls[0]['params'] == 0.1
  assert calls[1]['cond'] == {}
  assert calls[0]['t'].dtype == jnp.float32


def test_keys_reach_the_network_only_in_training():
  calls = []
  context = make_context(network=oracle_network('eps', calls=calls))
  training = evaluate(context, range(8)).values
  evaluation = evaluate(dataclasses.replace(context, train=False), range(8)).values
  np.testing.assert_array_equal(
    jax.random.key_data(calls[0]['keys']),
    jax.random.key_data(example_keys(step_key(0, 0), jnp.arange(8))),
  )
  assert calls[1]['keys'] is None
  np.testing.assert_array_equal(training, evaluation)


def test_a_distributions_correction_multiplies_and_the_state_is_passed_on():
  def distribution(key, index, batch_size, schedule, state):
    return jnp.full(index.shape, 5), 1.0 + index

  plain = evaluate(make_context(timestep_distribution=always(5)), range(8))
  corrected = evaluate(make_context(timestep_distribution=distribution), range(8))
  np.testing.assert_allclose(corrected.values, plain.values * np.arange(1, 9), rtol=1e-12)
  key = step_key(0, 0)
  keys = Keys(key, example_keys(key, jnp.arange(8)))
  state = {'history': jnp.arange(3)}
  params = {'network': jnp.asarray(0.1)}
  passed = LOSSES['simple'](make_context(), params, state, make_batch(range(8)), keys).state
  assert passed is state
