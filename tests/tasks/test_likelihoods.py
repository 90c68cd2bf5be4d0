"""Bits per dimension under an exact denoiser, by each of the likelihoods."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import data
from ddpm_jax.codec import pixels, quantize
from ddpm_jax.condition import labels
from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.split_bits import split_bits
from ddpm_jax.models.mlp import MLP
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.likelihoods import LIKELIHOODS, measures

LEVELS = 33
VARIANCE = 0.08
SHAPE = (2, 2, 1)


def exact(network, schedule, num_levels, spec, **evaluation):
  """The experiment of a network that is told the log-SNR and says x0, as on any VP path."""
  config = tiny()
  config = dataclasses.replace(
    config, evaluation=dataclasses.replace(config.evaluation, **evaluation)
  )
  return dataclasses.replace(
    build(config),
    config=config,
    codec=pixels(SHAPE, num_levels),
    schedule=schedule,
    parameterization=PARAMETERIZATIONS['x0'](noise_label='log_snr'),
    module=MLP(spec=spec),
    network=network,
  )


def path_at(log_snr):
  """alpha and sigma of a VP path, broadcast over an example of SHAPE."""
  alpha = jnp.sqrt(jax.nn.sigmoid(log_snr))[:, None, None, None]
  return alpha, jnp.sqrt(jax.nn.sigmoid(-log_snr))[:, None, None, None]


def gaussian(params, x, log_snr, cond):
  """E[x0 | xt] of data N(0, VARIANCE)."""
  alpha, sigma = path_at(log_snr)
  return alpha * VARIANCE * x / (alpha**2 * VARIANCE + sigma**2)


@pytest.fixture(scope='module')
def dataset():
  """Gaussian data on the grid of levels."""
  x = np.random.default_rng(0).normal(0, VARIANCE**0.5, (30, *SHAPE)).clip(-1, 1)
  split = data.Arrays(np.asarray(quantize(jnp.asarray(x), LEVELS)))
  return data.Dataset('gaussian', split, split, SHAPE, LEVELS)


@pytest.fixture(scope='module')
def measured(dataset):
  """measured(strata, **options) -> the Estimate by a chain of 40 steps; None takes every time."""
  compiled = {}

  def measure(strata, **options):
    if strata not in compiled:
      chain = schedules.linear(40, rescale=True)
      experiment = exact(gaussian, chain, LEVELS, {}, **{'strata': strata} if strata else {})
      compiled[strata] = measures(experiment, ['chain'], 'large', exact=strata is None)['chain']
    given = {'seed': 0, 'batch_size': 16} | options
    trained = {'network': {}}
    return split_bits(compiled[strata], trained, {'codec': {}}, dataset, dataset.test, **given)

  return measure


def test_strata_and_every_time_agree_within_their_errors(measured):
  whole = measured(None, tolerance=0.0, most=40)
  few = measured(4, tolerance=0.0, most=40, seed=1)
  assert 0 < whole.error < few.error
  assert abs(few.mean - whole.mean) < 4 * np.hypot(few.error, whole.error)


def test_the_bound_is_above_the_entropy_and_near_it(dataset, measured):
  """Exact data, exact denoiser: what is left is the gap of a chain of 40 steps."""
  edges = (np.arange(LEVELS + 1) - 0.5) * 2 / (LEVELS - 1) - 1
  edges[0], edges[-1] = -np.inf, np.inf
  mass = np.diff(jax.scipy.stats.norm.cdf(edges, 0, VARIANCE**0.5))
  truth = -np.log2(mass[dataset.test[:]['x']]).mean()
  found = measured(None, tolerance=0.0, most=20)
  assert truth - 4 * found.error < found.mean < truth + 0.3


def test_the_error_is_the_spread_of_repeats(measured):
  few = [measured(4, tolerance=0.0, most=4, seed=seed) for seed in range(40)]
  spread = np.std([one.mean for one in few], ddof=1)
  claimed = np.sqrt(np.mean([one.error**2 for one in few]))
  assert claimed == pytest.approx(spread, rel=0.4)  # 40 repeats know it to 11 %


@pytest.mark.parametrize('name', LIKELIHOODS)
def test_with_the_exact_denoiser_all_likelihoods_agree(name):
  """Pixels of three levels with odds that the label has: each likelihood is their log-odds."""
  odds = jnp.array([[0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
  values = jnp.array([-1.0, 0.0, 1.0]).reshape(1, 1, 1, 1, 3)
  schedule = schedules.cosine_log_snr(-9.0, 6.0)  # at the end, noise of a twentieth of a level

  def posterior_mean(params, x, log_snr, cond):
    alpha, sigma = path_at(log_snr)
    fits = -0.5 * jnp.square((x[..., None] - alpha[..., None] * values) / sigma[..., None])
    prior = jnp.log(odds[cond['label']])[:, None, None, None, :]
    return jnp.sum(jax.nn.softmax(fits + prior) * values, axis=-1)

  rng, label = np.random.default_rng(0), np.arange(40, dtype=np.int32) % 2
  image = np.stack([rng.choice(3, SHAPE, p=np.asarray(odds[n])) for n in label])
  split = data.Arrays(image.astype(np.uint8), {'label': label})
  dataset = data.Dataset('odds', split, split, SHAPE, 3, labels(2))
  experiment = exact(posterior_mean, schedule, 3, labels(2), strata=200, decoder='categorical')
  (measure,) = measures(experiment, [name], 'small').values()
  found = split_bits(
    measure,
    {'network': {}},
    {'codec': {}},
    dataset,
    split,
    seed=0,
    batch_size=40,
    tolerance=0.0,
    most=8,
  )
  truth = -np.log2(np.asarray(odds))[label[:, None, None, None], image].mean()
  # A chain of 1000 steps and the flow's solver are within half a hundredth of their limits.
  assert abs(found.mean - truth) < 4 * found.error + 0.005
  assert found.error < 0.02


def test_what_has_no_likelihood_is_refused_in_one_line():
  chain = schedules.linear(40, rescale=True)
  experiment = exact(gaussian, chain, LEVELS, {})
  lossy = dataclasses.replace(experiment, codec=experiment.codec._replace(num_levels=None))
  for refused, options, words in (
    (lossy, {}, 'config.codec.name: bits/dim is a probability of the data, and this codec'),
    (experiment, {'names': ['chian']}, "--likelihood: 'chian' is not one of"),
    (experiment, {'variance': 'fraction'}, '--variance: this network learned no fraction'),
  ):
    with pytest.raises(InputError) as caught:
      measures(refused, **options)
    assert words in str(caught.value) and '\n' not in str(caught.value)
