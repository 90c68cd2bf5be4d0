import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.diffusion import (
  Denoised,
  categorical,
  discretized,
  make_denoiser,
  oracle,
  schedules,
)
from ddpm_jax.evaluation.likelihood import (
  LIKELIHOODS,
  Settings,
  estimate,
  make_bits,
  split_bits,
)

LEVELS = 33


@pytest.fixture(scope='module')
def gaussian():
  """Gaussian data on the grid of levels, its exact denoiser, a short chain."""
  schedule = schedules.linear(40, rescale=True)
  truth = oracle.GaussianData(jnp.zeros((2, 2, 1)), jnp.asarray(0.08))
  x = np.random.default_rng(0).normal(0, 0.08**0.5, (30, 2, 2, 1)).clip(-1, 1)
  image = np.asarray(data.quantize(jnp.asarray(x), LEVELS))
  split = data.Arrays(image, np.zeros(30, np.int32))

  def make(schedule, params, cond):
    return truth.denoiser(schedule)

  return make, schedule, split


@pytest.fixture(scope='module')
def measure(gaussian):
  make, schedule, split = gaussian

  @functools.cache
  def compiled(strata):
    settings = Settings(discretized(LEVELS), 'large', strata)
    return make_bits(make, LIKELIHOODS['chain'](schedule, settings), LEVELS, conditional=False)

  def measure(strata, **arguments):
    return split_bits(compiled(strata), {}, split, **{'seed': 0, 'batch_size': 16} | arguments)

  return measure


def test_strata_and_every_time_agree_within_their_errors(measure):
  exact = measure(None, tolerance=0.0, most=40)
  few = measure(4, tolerance=0.0, most=40, seed=1)
  assert 0 < exact.error < few.error
  assert abs(few.mean - exact.mean) < 4 * np.hypot(few.error, exact.error)


def test_the_bound_is_above_the_entropy_and_near_it(gaussian, measure):
  """Exact data, exact denoiser: what is left is the gap of a chain of 40 steps."""
  image = gaussian[2][:]['image']
  edges = (np.arange(LEVELS + 1) - 0.5) * 2 / (LEVELS - 1) - 1
  edges[0], edges[-1] = -np.inf, np.inf
  mass = np.diff(jax.scipy.stats.norm.cdf(edges, 0, 0.08**0.5))
  truth = -np.log2(mass[image]).mean()
  found = measure(None, tolerance=0.0, most=20)
  assert truth - 4 * found.error < found.mean < truth + 0.3


@pytest.mark.parametrize('name', LIKELIHOODS)
def test_with_the_exact_denoiser_all_likelihoods_agree(name):
  """Pixels of three levels with odds that the label has: each likelihood is their log-odds."""
  odds = jnp.array([[0.5, 0.1, 0.4], [0.2, 0.2, 0.6]])
  values = jnp.array([[[[-1.0, 0.0, 1.0]]]])
  schedule = schedules.cosine_log_snr(-9.0, 6.0)  # at the end, noise of a twentieth of a level

  def make(schedule, params, cond):
    def denoise(x, t, label):
      alpha, sigma = schedule.alpha(t), schedule.sigma(t)
      fits = -0.5 * jnp.square((x[..., None] - alpha * values) / sigma)
      posterior = jax.nn.softmax(fits + jnp.log(odds[label]).reshape(values.shape))
      return Denoised(jnp.sum(posterior * values, axis=-1))

    labels = cond['label']
    return lambda xt, t: jax.vmap(denoise)(xt, jnp.broadcast_to(t, xt.shape[:1]), labels)

  rng, labels = np.random.default_rng(0), np.arange(40, dtype=np.int32) % 2
  image = np.stack([rng.choice(3, (2, 2, 1), p=np.asarray(odds[n])) for n in labels])
  likelihood = LIKELIHOODS[name](schedule, Settings(categorical(3), 'small', 200))
  bits = make_bits(make, likelihood, 3, conditional=True)
  split = data.Arrays(image.astype(np.uint8), labels)
  found = split_bits(bits, {}, split, seed=0, batch_size=40, tolerance=0.0, most=8)
  truth = -np.log2(np.asarray(odds))[labels[:, None, None, None], image].mean()
  # A chain of 1000 steps and the flow's solver are within half a hundredth of their limits.
  assert abs(found.mean - truth) < 4 * found.error + 0.005
  assert found.error < 0.02


def test_the_error_is_the_spread_of_repeats(measure):
  few = [measure(4, tolerance=0.0, most=4, seed=seed) for seed in range(40)]
  spread = np.std([one.mean for one in few], ddof=1)
  claimed = np.sqrt(np.mean([one.error**2 for one in few]))
  assert claimed == pytest.approx(spread, rel=0.4)  # 40 repeats know it to 11 %


def test_replicates_stop_at_the_tolerance(measure):
  loose = measure(4, tolerance=1e9)
  assert loose.replicates == 2
  tolerance = loose.error / 2
  tight = measure(4, tolerance=tolerance, most=100)
  assert tight.error <= tolerance
  assert tight.replicates == pytest.approx(8, abs=4), 'the error goes with 1 / sqrt(replicates)'


@pytest.mark.parametrize('name', ['chain', 'continuous'])
def test_padding_and_batches_change_nothing(experiment, params, digits, name):
  def make(schedule, params, cond):
    network, parameterization = experiment.network, experiment.parameterization
    return make_denoiser(network, params, schedule, parameterization, cond)

  settings = Settings(discretized(digits.num_levels), 'small', 2)
  likelihood = LIKELIHOODS[name](experiment.schedule, settings)
  bits = make_bits(make, likelihood, digits.num_levels, conditional=True)
  split = data.Arrays(**dict(digits.test[:27].items()))
  done = []
  padded = split_bits(bits, params, split, seed=0, batch_size=16, most=2, advance=done.append)
  whole = split_bits(bits, params, split, seed=0, batch_size=32, most=2)
  assert sum(done) == 2 * 27
  assert padded.mean == pytest.approx(whole.mean, rel=1e-5)
  assert padded.error == pytest.approx(whole.error, rel=1e-4)


def test_estimate_by_hand():
  """Two replicates of two examples: s² = 2 and 0, hence sqrt((2 + 0) / 2) / 2."""
  found = estimate(np.array([[1.0, 5.0], [3.0, 5.0]]))
  assert found == (3.5, 0.5, 2)
