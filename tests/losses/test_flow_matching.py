"""Flow matching: the plain loss, its minimum, and how a coupling straightens its paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, NOISE_DISTRIBUTIONS, LossContext, make_factors
from ddpm_jax.losses.context import noise_like

pytestmark = pytest.mark.usefixtures('x64')

# One dimension, x0 ~ N(MEAN, DEVIATION²).
MEAN, DEVIATION = 0.3, 0.5


def velocity_of(slope):
  """A network that says slope(t) (xt - (1 - t) MEAN) - MEAN, and notes down xt and t."""

  def network(params, x, noise_label, cond, index=None, keys=None):
    t = (noise_label / 1000).astype(x.dtype).reshape(-1, 1, 1, 1)
    seen.append((x, t))
    return slope(t) * (x - (1 - t) * MEAN) - MEAN

  seen = []
  network.seen = seen
  return network


def expected(t):
  """Of E[eps - x0 | xt] for independent noise: Cov(eps - x0, xt) / Var xt."""
  return (t - (1 - t) * DEVIATION**2) / ((1 - t) ** 2 * DEVIATION**2 + t**2)


def straight(t):
  """Of the flow that takes each quantile of the data to that of the noise in a straight line."""
  return (1 - DEVIATION) / ((1 - t) * DEVIATION + t)


def evaluate(network, count, distribution='white'):
  flow = PARAMETERIZATIONS['flow']()
  factors = make_factors('flow_matching', noise_distribution=NOISE_DISTRIBUTIONS[distribution])
  context = LossContext(network, schedules.flow(), flow, factors, count)
  index, key = jnp.arange(count), step_key(0, 0)
  keys = Keys(key, example_keys(key, index))
  draw = jax.vmap(lambda key: jax.random.normal(key, (1, 1, 1)))
  x0 = MEAN + DEVIATION * draw(example_keys(jax.random.key(5), index))
  batch = {'x': x0, 'cond': {}, 'index': index}
  loss = jax.jit(
    lambda batch, keys: LOSSES['flow_matching'](context, {'network': ()}, (), batch, keys).values
  )
  values = loss(batch, keys) if distribution == 'transport' else loss.__wrapped__(batch, keys)
  return np.asarray(values), np.asarray(x0), np.asarray(noise_like(x0, keys))


def test_it_is_the_squared_error_of_the_velocity():
  network = velocity_of(expected)
  values, x0, eps = evaluate(network, 16)
  xt, t = network.seen[0]
  np.testing.assert_allclose(xt, (1 - t) * x0 + t * eps, atol=1e-6)
  said = network(None, xt, 1000 * t.ravel(), {})
  np.testing.assert_allclose(values, ((said - (eps - x0)) ** 2).ravel(), atol=1e-5)


def test_at_the_oracle_it_is_the_velocitys_posterior_variance():
  # eps - x0 = (xt - x0) / t has the variance Var[x0 | xt] / t² = DEVIATION² / Var xt.
  network = velocity_of(expected)
  values, *_ = evaluate(network, 20_000)
  t = np.asarray(network.seen[0][1]).ravel()
  gaps = values - DEVIATION**2 / ((1 - t) ** 2 * DEVIATION**2 + t**2)
  assert abs(gaps.mean()) < 5 * gaps.std() / np.sqrt(gaps.size)


def test_the_larger_the_coupled_batch_the_straighter_the_paths():
  # In the limit they are those of the quantiles, whose velocity leaves no error.
  errors = [evaluate(velocity_of(straight), n, 'transport')[0].mean() for n in (4, 32, 256)]
  alone = evaluate(velocity_of(straight), 256)[0].mean()
  assert alone > errors[0] > errors[1] > errors[2]
  assert errors[2] < 0.05 * alone
