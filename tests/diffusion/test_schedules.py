import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import DISCRETE


def rational_linear(num_steps):
  """∏ (1 - beta_i) with rational betas, evenly spaced from 1/10000 to 1/50: no rounding at all."""
  first, last = Fraction(1, 10_000), Fraction(1, 50)
  products = [Fraction(1)]
  for i in range(num_steps):
    beta = first + (last - first) * i / (num_steps - 1)
    products.append(products[-1] * (1 - beta))
  return np.array([float(product) for product in products])


def telescoped_cosine(num_steps):
  """The betas' product telescopes to f(t) / f(0), but for the last beta, which is 0.999.

  Here cos² u is (1 + cos 2u) / 2, the common half left out.
  """
  angles = math.pi * (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008
  products = (1 + np.cos(angles)) / (1 + math.cos(angles[0]))
  products[-1] = products[-2] / 1000
  return products


def logarithmic_quadratic(first, last):
  """Each beta is (p + q i)², so that log alpha_bar sums log((1 - p - q i) (1 + p + q i))."""

  def alphas_bar(num_steps):
    p, q = math.sqrt(first), (math.sqrt(last) - math.sqrt(first)) / (num_steps - 1)
    logs = [math.log1p(-(p + q * i)) + math.log1p(p + q * i) for i in range(num_steps)]
    return np.exp([math.fsum(logs[:t]) for t in range(num_steps + 1)])

  return alphas_bar


def telescoped_sigmoid(num_steps):
  """By tanh: sigmoid(x) is (1 + tanh(x / 2)) / 2; the last beta is 0.999."""
  u = np.tanh(np.linspace(-1.5, 1.5, num_steps + 1))
  products = (u[-1] - u) / (u[-1] - u[0])
  products[-1] = products[-2] / 1000
  return products


ALPHAS_BAR = {
  'linear': rational_linear,
  'scaled_linear': logarithmic_quadratic(0.00085, 0.012),
  'quadratic': logarithmic_quadratic(1e-4, 0.02),
  'cosine': telescoped_cosine,
  'sigmoid': telescoped_sigmoid,
}

CHAINS = {
  **{name: lambda name=name: DISCRETE[name](40) for name in DISCRETE},
  'zero terminal SNR': lambda: schedules.from_betas([0.1, 0.3, 0.6, 1.0]),
  'rescaled to zero SNR': lambda: schedules.zero_terminal_snr(schedules.linear(30)),
  'from alphas_bar': lambda: schedules.from_alphas_bar([0.9, 0.5, 0.49, 0.1]),
  'one step': lambda: schedules.from_betas([0.4]),
}


@pytest.fixture(params=CHAINS)
def chain(request):
  return CHAINS[request.param]()


def over_times(function, schedule, first=0):
  return np.asarray(jax.jit(jax.vmap(function))(jnp.arange(first, schedule.num_steps + 1)))


@pytest.mark.parametrize('num_steps', [5, 1000])
@pytest.mark.parametrize('name', DISCRETE)
def test_alphas_bar_by_an_independent_route(x64, name, num_steps):
  expected = ALPHAS_BAR[name](num_steps)
  schedule = DISCRETE[name](num_steps)
  assert schedule.alphas_bar.dtype == jnp.float64
  np.testing.assert_allclose(schedule.alphas_bar, expected, rtol=1e-11)
  np.testing.assert_allclose(schedule.alphas, np.sqrt(expected), rtol=1e-11)
  np.testing.assert_allclose(schedule.sigmas**2, 1 - expected, rtol=1e-11)


@pytest.mark.parametrize('name', DISCRETE)
def test_single_precision_tables_are_the_double_ones_rounded_once(name):
  # Computed in float32, sigma_1 = sqrt(1 - alpha_bar_1) would be off by 6e-8 / 1e-4 / 2.
  single = DISCRETE[name]()
  with jax.enable_x64(True):
    double = DISCRETE[name]()
  for table in ('betas', 'alphas_bar', 'alphas', 'sigmas', 'log_snrs'):
    rounded = getattr(single, table)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, np.asarray(getattr(double, table)), rtol=2**-24)


def test_rescaled_linear_chains_tend_to_the_continuous_one():
  # log alpha_bar_T = Σ log(1 - beta) -> -1000 (beta_start + beta_end) / 2, with an error
  # that falls as 1/T.
  lengths = (10_000, 100_000)
  ends = [schedules.linear(n, rescale=True).log_snrs[-1] for n in lengths]
  limit = math.exp(-1000 * (1e-4 + 0.02) / 2)
  near, nearer = (math.log(limit / (1 - limit)) - float(end) for end in ends)
  assert nearer > 0
  assert near / nearer == pytest.approx(10, rel=0.01)


def test_linear_does_not_rescale_unless_asked():
  np.testing.assert_allclose(schedules.linear(3).betas[1:], [1e-4, 0.01005, 0.02], rtol=1e-6)
  np.testing.assert_array_equal(
    schedules.linear(1000, rescale=True).betas, schedules.linear(1000).betas
  )


def test_only_the_last_beta_of_cosine_is_clipped():
  betas = schedules.cosine().betas
  assert betas[-1] == jnp.float32(0.999)
  # sin²(x) / sin²(2x) = 1/4 for small x: the angle left to π/2 halves in the last step but one.
  assert float(betas[-2]) == pytest.approx(3 / 4, abs=1e-5)


def test_signal_and_noise_share_unit_variance(chain):
  power = over_times(chain.alpha, chain) ** 2 + over_times(chain.sigma, chain) ** 2
  np.testing.assert_allclose(power, 1, atol=2**-22)


def test_log_snr_is_of_alpha_and_sigma_and_falls(chain):
  log_snr = over_times(chain.log_snr, chain)
  assert np.all(np.diff(log_snr) < 0)
  with np.errstate(divide='ignore'):
    alpha, sigma = (np.asarray(over_times(f, chain), float) for f in (chain.alpha, chain.sigma))
    np.testing.assert_allclose(log_snr, 2 * np.log(alpha / sigma), rtol=1e-5, atol=1e-6)


def test_betas_are_the_steps_of_alphas_bar(x64, chain):
  del x64
  alphas_bar = np.asarray(chain.alphas_bar, float)
  np.testing.assert_allclose(chain.betas[1:], 1 - alphas_bar[1:] / alphas_bar[:-1], atol=1e-6)


def test_time_zero_is_the_data(chain):
  assert chain.alpha(0) == 1
  assert chain.sigma(0) == 0
  assert not np.signbit(chain.sigma(0))
  assert chain.log_snr(0) == jnp.inf
  assert chain.betas[0] == 0
  assert (chain.t_min, chain.t_max) == (1, chain.num_steps)


def test_time_inverts_log_snr(chain):
  times = over_times(lambda t: chain.time(chain.log_snr(t)), chain, first=1)
  np.testing.assert_array_equal(times, np.arange(1, chain.num_steps + 1))


def test_time_is_the_nearest_one_in_the_chain():
  chain = schedules.linear(40)
  nearly = chain.log_snr(7) + 0.49 * (chain.log_snr(8) - chain.log_snr(7))
  assert chain.time(nearly) == 7
  assert chain.time(jnp.inf) == 1
  assert chain.time(-jnp.inf) == 40


def test_a_network_is_told_the_index_in_the_chain(chain):
  told = over_times(chain.network_time, chain)
  np.testing.assert_array_equal(told, np.arange(chain.num_steps + 1))
  assert told.dtype == jnp.float32


ANSWERS = ('alpha', 'sigma', 'log_snr', 'network_time')
# The schedule is an argument: compiled once for all chains of one length.
COMPILED = {
  answer: jax.jit(lambda schedule, t, answer=answer: getattr(schedule, answer)(t))
  for answer in ANSWERS
}


@pytest.mark.parametrize('answer', ANSWERS)
class TestTimes:
  def test_out_of_range_is_refused_where_concrete(self, answer):
    function = getattr(schedules.linear(10), answer)
    for t in (-1, 11, jnp.int32(-1), np.int64(11)):
      with pytest.raises(IndexError, match=rf'schedule.{answer}: t = {t} is outside .* 0 … 10'):
        function(t)

  def test_out_of_range_is_clamped_where_traced(self, answer):
    function = getattr(schedules.linear(10), answer)
    assert jax.jit(function)(-1) == function(0)
    assert jax.jit(function)(11) == function(10)

  @pytest.mark.parametrize('t', [3.0, np.float32(3), jnp.float32(3), True])
  def test_what_is_no_integer_is_refused(self, answer, t):
    function = getattr(schedules.linear(10), answer)
    with pytest.raises(TypeError, match=f'schedule.{answer}: a discrete chain takes integer times'):
      function(t)
    with pytest.raises(TypeError, match='integer times'):
      jax.jit(function)(t)

  def test_a_batch_is_refused_with_the_mend(self, answer):
    function = getattr(schedules.linear(10), answer)
    with pytest.raises(
      ValueError, match=rf'shape \(8,\): use jax.vmap\(schedule.{answer}, \(0,\)\)'
    ):
      function(jnp.arange(8))

  def test_compiled_is_eager_and_the_schedule_is_an_argument(self, answer, chain):
    compiled = COMPILED[answer]
    batched = jax.vmap(compiled, (None, 0))(chain, jnp.arange(chain.num_steps + 1))
    for t in {0, 1, chain.num_steps // 2, chain.num_steps}:
      assert compiled(chain, t) == getattr(chain, answer)(t) == batched[t]


def test_time_refuses_a_batch():
  with pytest.raises(ValueError, match=r'use jax.vmap\(schedule.time, \(0,\)\)'):
    schedules.linear(10).time(jnp.zeros(8))


def test_a_schedule_has_gradients():
  gradient = jax.grad(lambda schedule: schedule.alpha(3) * schedule.sigma(2))(schedules.linear(5))
  assert gradient.alphas[3] == schedules.linear(5).sigma(2)
  assert gradient.sigmas[2] == schedules.linear(5).alpha(3)


def test_schedules_stack_under_vmap():
  chains = [schedules.linear(6), schedules.cosine(6)]
  stacked = jax.tree.map(lambda *tables: jnp.stack(tables), *chains)
  alphas = jax.vmap(lambda schedule: schedule.alpha(4))(stacked)
  np.testing.assert_array_equal(alphas, [chain.alpha(4) for chain in chains])


@pytest.mark.parametrize(
  ('betas', 'named'),
  [
    ([0.1, 0.0, 0.2], 'beta_2 = 0.0'),
    ([-0.1, 0.2], 'beta_1 = -0.1'),
    ([0.1, 1.0, 0.2], 'beta_2 = 1.0'),
    ([0.1, 1.5], 'beta_2 = 1.5'),
    ([0.1, math.nan], 'beta_2 = nan'),
  ],
)
def test_a_beta_outside_is_refused_by_name(betas, named):
  with pytest.raises(ValueError, match=f'{named} is outside'):
    schedules.from_betas(betas)


@pytest.mark.parametrize('betas', [[], [[0.1, 0.2]], 0.1])
def test_betas_are_a_vector(betas):
  with pytest.raises(
    ValueError, match='betas has shape .*: a chain needs a vector of at least one'
  ):
    schedules.from_betas(betas)


def test_a_rescaled_beta_above_one_is_refused():
  with pytest.raises(ValueError, match=r'beta_6 = 1\.1\d* is outside'):
    schedules.linear(10, rescale=True)


def test_a_last_beta_of_one_leaves_nothing_of_the_data():
  chain = schedules.from_betas([0.5, 1.0])
  assert chain.alpha(2) == 0
  assert chain.sigma(2) == 1
  assert chain.log_snr(2) == -jnp.inf


# What the published codes give, recomputed by others in double precision; their index is t - 1.
GOLDEN = {
  'linear': lambda: (
    schedules.linear().alphas_bar,
    {2: 0.99978009, 500: 0.0785872, 1000: 4.03583e-5},
  ),
  'scaled_linear': lambda: (schedules.scaled_linear().alphas_bar, {1: 0.99915, 1000: 0.0046600985}),
  'cosine': lambda: (schedules.cosine().alphas_bar, {500: 0.4938436, 1000: 2.4288e-9}),
  'sigmoid': lambda: (schedules.sigmoid().betas, {1: 3.0028e-4}),
  'zero SNR of linear': lambda: (
    schedules.zero_terminal_snr(schedules.linear()).betas,
    {2: 1.20687e-4, 999: 0.752267, 1000: 1},
  ),
  'zero SNR of scaled_linear': lambda: (
    schedules.zero_terminal_snr(schedules.scaled_linear()).betas,
    {2: 9.17334e-4, 999: 0.751137, 1000: 1},
  ),
  '50 of linear': lambda: (
    schedules.respace(schedules.linear(), 1 + np.round(np.linspace(0, 999, 50)).astype(int)).betas,
    {1: 1e-4, 2: 0.0061652, 50: 0.3298091},
  ),
}


@pytest.mark.parametrize('name', GOLDEN)
def test_published_numbers(name):
  table, expected = GOLDEN[name]()
  for t, value in expected.items():
    assert float(table[t]) == pytest.approx(value, rel=2e-5)


def test_alphas_bar_and_betas_name_the_same_chain(x64):
  chain = schedules.from_betas(np.linspace(0.01, 0.3, 20))
  again = schedules.from_alphas_bar(np.asarray(chain.alphas_bar)[1:])
  for one, other in zip(jax.tree.leaves(chain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-12)


@pytest.mark.parametrize(
  ('alphas_bar', 'named'),
  [
    ([0.9, 0.9], 'alpha_bar_2 = 0.9 is outside'),
    ([0.9, 0.95, 0.1], 'alpha_bar_2 = 0.95 is outside'),
    ([1.0, 0.5], 'alpha_bar_1 = 1.0 is outside'),
    ([0.5, 0.0, 0.0], 'alpha_bar_2 = 0.0 is outside'),
    ([0.5, -0.1], 'alpha_bar_2 = -0.1 is outside'),
    ([math.nan], 'alpha_bar_1 = nan is outside'),
    ([], 'alphas_bar has shape'),
  ],
)
def test_alphas_bar_that_do_not_fall_are_refused_by_name(alphas_bar, named):
  with pytest.raises(ValueError, match=named):
    schedules.from_alphas_bar(alphas_bar)


@pytest.mark.parametrize('name', DISCRETE)
def test_zero_terminal_snr_is_affine_in_alpha_between_its_ends(x64, name):
  chain = schedules.respace(DISCRETE[name](40), np.arange(3, 41))
  changed = schedules.zero_terminal_snr(chain)
  assert changed.alpha(chain.t_max) == 0
  assert changed.log_snr(chain.t_max) == -jnp.inf
  assert changed.betas[-1] == 1
  alphas = np.asarray(chain.alphas)[1:]
  line = np.interp(-alphas, [-alphas[0], -alphas[-1]], [alphas[0], 0])
  np.testing.assert_allclose(changed.alphas[1:], line, atol=1e-12)
  np.testing.assert_array_equal(changed.original, chain.original)
  again = schedules.zero_terminal_snr(changed)
  np.testing.assert_allclose(again.alphas, changed.alphas, atol=1e-12)


def test_zero_terminal_snr_needs_two_steps():
  with pytest.raises(ValueError, match='two steps or more'):
    schedules.zero_terminal_snr(schedules.linear(1))


def test_respacing_keeps_the_marginals_and_the_betas_follow(x64, chain):
  del x64
  steps = sorted({1, max(chain.num_steps // 3, 1), chain.num_steps})
  kept = schedules.respace(chain, steps)
  assert kept.num_steps == len(steps)
  for table in ('alphas_bar', 'alphas', 'sigmas', 'log_snrs'):
    np.testing.assert_array_equal(getattr(kept, table)[1:], getattr(chain, table)[jnp.array(steps)])
  before = np.concatenate([[1.0], np.asarray(kept.alphas_bar, float)[1:-1]])
  np.testing.assert_allclose(
    kept.betas[1:], 1 - np.asarray(kept.alphas_bar, float)[1:] / before, atol=1e-6
  )
  assert [float(kept.network_time(t)) for t in range(1, len(steps) + 1)] == steps
  assert kept.network_time(0) == 0


def test_respacing_twice_is_respacing_once():
  chain, outer, inner = schedules.linear(40), np.array([2, 5, 9, 20, 33, 40]), np.array([1, 3, 6])
  once = schedules.respace(chain, outer[inner - 1])
  twice = schedules.respace(schedules.respace(chain, outer), inner)
  for one, other in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
    np.testing.assert_allclose(one, other, rtol=3e-7)


def test_respacing_to_the_whole_chain_is_no_respacing(chain):
  whole = schedules.respace(chain, np.arange(1, chain.num_steps + 1))
  for one, other in zip(jax.tree.leaves(chain), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(one, other, rtol=1.2e-7)


@pytest.mark.parametrize('steps', [[0, 1], [1, 1], [3, 2], [1, 11], [[1, 2]], []])
def test_steps_that_do_not_increase_within_the_chain_are_refused(steps):
  with pytest.raises(ValueError, match='steps'):
    schedules.respace(schedules.linear(10), np.asarray(steps, int))


def test_steps_are_integers():
  with pytest.raises(TypeError, match='integers, not float64'):
    schedules.respace(schedules.linear(10), [1.0, 2.0])
