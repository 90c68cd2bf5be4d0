"""Continuous schedules against their differential equations, inverses and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import CONTINUOUS, DISCRETE

PATHS = {
  **CONTINUOUS,
  'flow, shifted': lambda: schedules.flow(shift=3.0),
  'cosine_log_snr, shifted': lambda: schedules.cosine_log_snr(-9.0, 11.0, shift=-2.8),
  **{
    f'interpolated {name}': lambda f=f: schedules.interpolate(f(30)) for name, f in DISCRETE.items()
  },
}
ANSWERS = ('alpha', 'sigma', 'log_snr', 'network_time')


@pytest.fixture(params=PATHS)
def path(request):
  return PATHS[request.param]()


def answers(path, t):
  return tuple(getattr(path, answer)(t) for answer in ANSWERS)


def round_trip(path, t):
  return path.time(path.log_snr(t))


def slopes(path, t):
  """Derivatives of alpha, sigma, log_snr and the round trip."""
  function = lambda t: (*answers(path, t)[:3], round_trip(path, t))  # noqa: E731
  return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]


# Compiled once for all schedules of a family: they are arguments.
compiled = jax.jit(answers)
batched = jax.jit(jax.vmap(answers, (None, 0)))
round_trips = jax.jit(jax.vmap(round_trip, (None, 0)))
all_slopes = jax.jit(jax.vmap(slopes, (None, 0)))
times_of = jax.jit(jax.vmap(lambda path, log_snr: path.time(log_snr), (None, 0)))


def grid(path, size=101):
  return jnp.linspace(path.t_min, path.t_max, size)


def test_log_snr_is_of_alpha_and_sigma_and_falls(path):
  alpha, sigma, log_snr, _ = batched(path, grid(path))
  assert np.all(np.diff(log_snr) < 0)
  assert np.all(sigma > 0)
  with np.errstate(divide='ignore'):
    ratio = 2 * (np.log(np.asarray(alpha, float)) - np.log(np.asarray(sigma, float)))
  np.testing.assert_allclose(log_snr, ratio, rtol=4e-7, atol=2e-6)


def test_compiled_and_batched_is_eager_and_the_schedule_is_an_argument(path):
  times = jnp.asarray([path.t_min, (path.t_min + path.t_max) / 2, path.t_max])
  rows = batched(path, times)
  for i, t in enumerate(times):
    eager = answers(path, t)
    assert all(value.dtype == jnp.float32 for value in eager)
    np.testing.assert_allclose(compiled(path, t), eager, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose([row[i] for row in rows], eager, rtol=1e-6, atol=1e-6)


def test_time_inverts_log_snr(path):
  single = round_trips(path, grid(path))
  np.testing.assert_allclose(single, grid(path), rtol=1e-6, atol=3e-7)
  with jax.enable_x64(True):
    double = round_trips(path, grid(path))
    assert double.dtype == jnp.float64
    # The tables that are interpolated are in single precision, but their inverse is not.
    np.testing.assert_allclose(double, grid(path), rtol=1e-12, atol=1e-13)


def test_time_is_limited_to_the_range(path):
  batch = times_of(path, jnp.array([jnp.inf, *range(40, -41, -1), -jnp.inf]))
  assert np.all((batch >= jnp.float32(path.t_min)) & (batch <= jnp.float32(path.t_max)))
  assert np.all(np.diff(batch) >= 0)
  np.testing.assert_allclose(batch[jnp.array([0, -1])], [path.t_min, path.t_max], atol=2e-7)


@pytest.mark.parametrize('name', PATHS)
def test_derivatives_are_differences_at_the_ends_too(x64, name):
  path = PATHS[name]()
  h = min(1e-6 * path.t_max, (path.t_min or 1) / 100)
  for end, step in [(path.t_min, h), (path.t_max, -h)]:
    # One-sided, of second order.
    values = np.asarray(batched(path, end + step * jnp.arange(3.0)))[:3]
    expected = values @ np.array([-3, 4, -1]) / (2 * step)
    actual = np.array([slope[0] for slope in all_slopes(path, jnp.array([end]))])[:3]
    finite = np.isfinite(values[:, 0])
    np.testing.assert_allclose(actual[finite], expected[finite], rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize('name', PATHS)
def test_derivative_of_time_is_the_reciprocal(x64, name):
  path = PATHS[name]()
  np.testing.assert_allclose(all_slopes(path, grid(path, 9)[1:-1])[3], 1, rtol=1e-9)


@jax.jit
def gradients(path, t):
  return jax.grad(lambda path: path.alpha(t) + path.sigma(t) + path.time(1.0))(path)


def test_parameters_have_finite_gradients_at_both_ends(path):
  for t in [path.t_first, path.t_min, path.t_max]:
    for leaf in jax.tree.leaves(gradients(path, t)):
      assert np.all(np.isfinite(leaf))


# The published drift and squared diffusion coefficients, of Song et al. 2021 (VP, sub-VP, VE),
# Karras et al. 2022 (EDM) and of the straight line.
SDES = {
  'vp': lambda t: (-(0.1 + 19.9 * t) / 2, 0.1 + 19.9 * t),
  'sub_vp': lambda t: (
    -(0.1 + 19.9 * t) / 2,
    (0.1 + 19.9 * t) * (1 - np.exp(-2 * (0.1 * t + 19.9 * t**2 / 2))),
  ),
  've': lambda t: (0, (0.01 * 5000**t) ** 2 * 2 * np.log(5000)),
  'edm': lambda t: (0, 2 * t),
  'flow': lambda t: (-1 / (1 - t), 2 * t / (1 - t)),
}


@pytest.mark.parametrize('name', SDES)
def test_path_solves_its_published_sde(x64, name):
  # f = alpha' / alpha and g² = (sigma²)' - 2 f sigma².
  path = CONTINUOUS[name]()
  t = grid(path, 23)[1:-1]
  alpha, sigma = batched(path, t)[:2]
  alpha_slope, sigma_slope = all_slopes(path, t)[:2]
  f = alpha_slope / alpha
  expected_f, expected_g2 = SDES[name](np.asarray(t))
  np.testing.assert_allclose(f, expected_f, rtol=1e-9, atol=1e-12)
  g2 = 2 * sigma * sigma_slope - 2 * f * sigma**2
  np.testing.assert_allclose(g2, expected_g2, rtol=1e-9, atol=1e-12)


def test_time_of_falling_betas_is_real_where_the_last_is_nearly_zero():
  # B(1) = ½ (beta_min + beta_max), and beta(1)² = beta_min² - 2 (beta_min - beta_max) B(1), which
  # rounding takes below zero for some of these.
  for beta_min in np.linspace(5, 30, 101):
    path = schedules.vp(beta_min=float(beta_min), beta_max=1e-4)
    assert path.time(path.log_snr(1.0)) == pytest.approx(1, abs=1e-3)


def test_published_numbers_of_vp():
  path = schedules.vp()
  ratio = {t: float(jnp.exp(-path.log_snr(t) / 2)) for t in (1e-5, 1e-3, 1.0)}
  assert ratio == pytest.approx({1e-5: 0.0010005, 1e-3: 0.010486, 1.0: 152.16697}, rel=5e-5)


@pytest.mark.parametrize('name', ['vp', 'sub_vp'])
def test_log_snr_has_all_digits_where_alpha_squared_rounds_to_one(name):
  with jax.enable_x64(True):
    exact = np.asarray(batched(CONTINUOUS[name](), np.logspace(-5, 0, 30))[2])
  single = batched(CONTINUOUS[name](), np.logspace(-5, 0, 30, dtype=np.float32))[2]
  np.testing.assert_allclose(single, exact, rtol=3e-7, atol=2e-6)


def test_flow_is_the_straight_line_and_its_shift_scales_the_ratio():
  times = jnp.linspace(0, 1, 11)
  alpha, sigma, _, _ = batched(schedules.flow(), times)
  np.testing.assert_array_equal(sigma, times)
  np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-7)
  shifted_alpha, shifted_sigma, _, _ = batched(schedules.flow(shift=3.0), times)
  np.testing.assert_allclose(shifted_sigma * alpha, 3 * sigma * shifted_alpha, atol=3e-7)
  np.testing.assert_allclose(shifted_alpha + shifted_sigma, 1, rtol=2e-7)
  assert (alpha[-1], sigma[-1]) == (0, 1)
  assert schedules.flow().log_snr(1.0) == -jnp.inf


def test_cosine_in_log_snr_is_the_cosine_where_nothing_is_truncated(x64):
  path = schedules.cosine_log_snr(-60.0, 60.0)
  t = jnp.linspace(0.05, 0.95, 19)
  np.testing.assert_allclose(jax.vmap(path.alpha)(t), np.cos(np.pi * t / 2), rtol=1e-11)
  np.testing.assert_allclose(jax.vmap(path.sigma)(t), np.sin(np.pi * t / 2), rtol=1e-11)


def test_cosine_in_log_snr_reaches_its_ends_and_is_odd():
  path = schedules.cosine_log_snr(-15.0, 15.0)
  assert float(path.log_snr(0.0)) == pytest.approx(15, abs=1e-5)
  assert float(path.log_snr(1.0)) == pytest.approx(-15, abs=1e-5)
  assert float(path.log_snr(0.5)) == pytest.approx(0, abs=1e-6)
  for t in (0.1, 0.25):
    assert float(path.log_snr(t)) == pytest.approx(-float(path.log_snr(1 - t)), abs=1e-5)
  shifted = schedules.cosine_log_snr(-15.0, 15.0, shift=-2.0)
  assert float(shifted.log_snr(0.3)) == pytest.approx(float(path.log_snr(0.3)) - 2, abs=1e-5)


def test_edm_time_is_sigma_and_ve_is_geometric():
  edm, ve = schedules.edm(), schedules.ve(0.02, 2.0)
  for sigma in (0.002, 1.5, 80.0):
    assert edm.sigma(sigma) == jnp.float32(sigma)
    assert edm.alpha(sigma) == 1
  assert [float(ve.sigma(t)) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.02, 0.2, 2.0], rel=1e-6)
  assert ve.t_min == 0


@pytest.mark.parametrize('name', DISCRETE)
def test_interpolation_is_the_chain_at_integers_and_linear_between(x64, name):
  chain = DISCRETE[name](30)
  path = schedules.interpolate(chain)
  assert (path.t_min, path.t_max) == (1, 30)
  for t in (1, 2, 17, 30):
    for answer in ANSWERS:
      value = float(getattr(chain, answer)(t))
      assert float(getattr(path, answer)(t)) == pytest.approx(value, rel=1e-12)
      assert getattr(path, answer)(float(t)) == getattr(path, answer)(t)
  for share in (0.25, 0.5):
    expected = (1 - share) * chain.log_snr(6) + share * chain.log_snr(7)
    assert float(path.log_snr(6 + share)) == pytest.approx(float(expected), rel=1e-13)


def test_interpolation_tells_the_network_the_original_index():
  path = schedules.interpolate(schedules.respace(schedules.linear(100), [10, 40, 90]))
  assert [float(path.network_time(t)) for t in (1.0, 1.5, 3.0)] == [10, 25, 90]


def test_what_cannot_be_interpolated_is_refused():
  with pytest.raises(ValueError, match='no times between'):
    schedules.interpolate(schedules.linear(1))
  with pytest.raises(ValueError, match='the last log-SNR is -inf'):
    schedules.interpolate(schedules.from_betas([0.1, 0.2, 1.0]))


@pytest.mark.parametrize('answer', ANSWERS)
class TestTimes:
  def test_out_of_range_is_refused_where_concrete(self, answer, path):
    for t in (-0.1, path.t_max * 1.01, jnp.float32(-2), np.float32('nan')):
      with pytest.raises(ValueError, match=rf'schedule.{answer}: t = .* is outside \['):
        getattr(path, answer)(t)

  @pytest.mark.parametrize('name', CONTINUOUS)
  def test_an_integer_is_refused(self, answer, name):
    function = getattr(CONTINUOUS[name](), answer)
    message = f'schedule.{answer}: a continuous schedule takes float times'
    for t in (0, 1, np.int64(1), jnp.int32(1), True):
      with pytest.raises(TypeError, match=message):
        function(t)
      with pytest.raises(TypeError, match=message):
        jax.eval_shape(function, t)

  def test_a_batch_is_refused_with_the_mend(self, answer, path):
    with pytest.raises(ValueError, match=rf'use jax.vmap\(schedule.{answer}, \(0,\)\)'):
      getattr(path, answer)(jnp.ones(8))

  def test_a_half_precision_time_is_answered_in_the_default_type(self, answer, path):
    assert getattr(path, answer)(jnp.bfloat16(1.0)).dtype == jnp.float32


def test_out_of_range_is_clamped_where_traced(path):
  for outside, end in [(path.t_max * 1.5, path.t_max), (-3.0, path.t_first)]:
    np.testing.assert_array_equal(compiled(path, outside), compiled(path, end))


def test_time_refuses_a_batch(path):
  with pytest.raises(ValueError, match=r'use jax.vmap\(schedule.time, \(0,\)\)'):
    path.time(jnp.zeros(8))


REFUSED = {
  'beta_min: -1': lambda: schedules.vp(beta_min=-1.0),
  'beta_max: 0 < beta_max is wanted': lambda: schedules.sub_vp(beta_max=0.0),
  '0 < t_min < 1': lambda: schedules.vp(t_min=0.0),
  't_min: 0 < t_min < 1 is': lambda: schedules.flow(t_min=1.0),
  '0 < shift': lambda: schedules.flow(shift=0.0),
  '0 < sigma_min < sigma_max': lambda: schedules.ve(1.0, 0.5),
  'sigma_max: 0 < sigma_min < sigma_max is': lambda: schedules.edm(0.0, 0.5),
  'log_snr_min < log_snr_max': lambda: schedules.cosine_log_snr(1.0, 1.0),
  'log_snr_min < log_snr_max is': lambda: schedules.learned(2.0, 1.0),
  '0 < width': lambda: schedules.learned(width=0),
}


@pytest.mark.parametrize('message', REFUSED)
def test_parameters_of_no_path_are_refused(message):
  with pytest.raises(ValueError, match=message):
    REFUSED[message]()
