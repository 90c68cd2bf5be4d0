import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, convert, make_denoiser, q_sample, schedules
from ddpm_jax.diffusion.parameterization import (
  NOISE_LABELS,
  check_invertible,
  eps_slope,
  network_input,
  split_variance,
  to_x0,
)
from ddpm_jax.diffusion.schedules import CONTINUOUS


def velocity(x0, eps, alpha, sigma):
  """d xt / d angle where alpha = cos, sigma = sin of the angle, by differentiation."""
  angle = jnp.arctan2(sigma, alpha)
  path = lambda angle: jnp.cos(angle) * x0 + jnp.sin(angle) * eps  # noqa: E731
  return jax.jvp(path, (angle,), (jnp.ones_like(angle),))[1]


def gradient_of_log_density(x0, eps, alpha, sigma):
  """By differentiating log N(xt; alpha x0, sigma²)."""
  log_density = lambda xt: -jnp.sum(jnp.square((xt - alpha * x0) / sigma)) / 2  # noqa: E731
  return jax.grad(log_density)(alpha * x0 + sigma * eps)


def preconditioned(x0, eps, alpha, sigma):
  """EDM's equation 8: (y - c_skip (y + n)) / c_out, in the path's own variables, sigma_data = ½."""
  n = sigma / alpha
  skip, out = 0.25 / (n**2 + 0.25), n * 0.5 / jnp.sqrt(n**2 + 0.25)
  # y - c_skip y, whose digits would cancel at low noise, is n² / (n² + ¼) y.
  return (n**2 / (n**2 + 0.25) * x0 - skip * n * eps) / out


def bounded(x0, eps, alpha, sigma):
  """The same of the consistency model's c_skip and c_out, sigma_min = 0.002."""
  n = sigma / alpha
  m = n - 0.002
  skip, out = 0.25 / (m**2 + 0.25), m * 0.5 / jnp.sqrt(n**2 + 0.25)
  return (m**2 / (m**2 + 0.25) * x0 - skip * n * eps) / out


DEFINITIONS = {
  'x0': lambda x0, eps, alpha, sigma: x0,
  'eps': lambda x0, eps, alpha, sigma: eps,
  'v': velocity,
  'score': gradient_of_log_density,
  'flow': lambda x0, eps, alpha, sigma: eps - x0,
  'edm': preconditioned,
  'consistency': bounded,
}
PAIRS = list(itertools.product(PARAMETERIZATIONS, PARAMETERIZATIONS))
LOG_SNRS = np.linspace(-12, 12, 25)
SIZE = 64


def rms(x):
  """Over each row, in double precision."""
  return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=-1))


def on_the_circle():
  """x0, eps and xt of VP paths, one row for each of LOG_SNRS, and the paths' alpha and sigma."""
  alpha, sigma = (jnp.asarray(1 / np.sqrt(1 + np.exp(sign * LOG_SNRS))) for sign in (-1, 1))
  x0, eps = map(jnp.asarray, np.random.default_rng(0).normal(size=(2, LOG_SNRS.size, SIZE)))
  return x0, eps, alpha[:, None] * x0 + sigma[:, None] * eps, alpha, sigma


def tolerance(value, alpha, sigma):
  alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
  conditioning = np.maximum(alpha / sigma, sigma / alpha)
  # 32 halves of the machine's epsilon.
  return 16 * float(jnp.finfo(value.dtype).eps) * conditioning * rms(value)


@pytest.fixture(params=[False, True], ids=['float32', 'float64'])
def precision(request):
  with jax.enable_x64(request.param):
    yield jnp.float64 if request.param else jnp.float32


@pytest.mark.parametrize(('source', 'target'), PAIRS)
def test_convert_agrees_with_the_definitions_and_closes(precision, source, target):
  @jax.jit
  @jax.vmap
  def there_and_back(x0, eps, xt, alpha, sigma):
    value, expected = (DEFINITIONS[name](x0, eps, alpha, sigma) for name in (source, target))
    there = convert(value, xt, alpha, sigma, source=source, target=target)
    back = convert(there, xt, alpha, sigma, source=target, target=source)
    return value, expected, there, back

  x0, eps, xt, alpha, sigma = on_the_circle()
  value, expected, there, back = there_and_back(x0, eps, xt, alpha, sigma)
  assert there.dtype == back.dtype == precision
  assert np.all(rms(there - expected) <= tolerance(expected, alpha, sigma))
  assert np.all(rms(back - value) <= tolerance(value, alpha, sigma))


def test_convert_heeds_the_options_of_a_parameterization(x64):
  x0, eps, alpha, sigma = 0.7, -1.2, jnp.float64(0.6), jnp.float64(0.8)
  xt = alpha * x0 + sigma * eps
  for sigma_data in (0.5, 2.0):
    n = sigma / alpha
    of_data = (n * x0 - sigma_data**2 * eps) / (sigma_data * np.hypot(n, sigma_data))
    made = PARAMETERIZATIONS['edm'](sigma_data=sigma_data)
    assert convert(x0, xt, alpha, sigma, source='x0', target=made) == pytest.approx(of_data)
    assert convert(of_data, xt, alpha, sigma, source=made, target='eps') == pytest.approx(eps)
  half, two = (PARAMETERIZATIONS['edm'](sigma_data=sigma_data) for sigma_data in (0.5, 2.0))
  there = convert(0.3, xt, alpha, sigma, source=half, target=two)
  assert abs(there - 0.3) > 0.1
  assert convert(there, xt, alpha, sigma, source=two, target='edm') == pytest.approx(0.3)
  assert convert(0.3, xt, alpha, sigma, source='edm', target=half) == 0.3


def test_convert_reads_consistency_at_its_boundary(x64):
  # x0 is xt / alpha there, whatever the output: no noise is left to be seen.
  made = PARAMETERIZATIONS['consistency'](sigma_min=0.01)
  read = functools.partial(convert, 3.0, 0.5, jnp.float64(0.8), jnp.float64(0.008), source=made)
  assert read(target='x0') == pytest.approx(0.625)
  assert read(target='eps') == pytest.approx(0, abs=1e-12)


def test_convert_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="parameterization 'epsilon' is not one of x0, eps, v"):
    convert(1.0, 1.0, 0.6, 0.8, source='epsilon', target='x0')


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
@pytest.mark.parametrize('t', [1, 12, 30, jnp.array([1, 7, 19, 30])], ids=str)
def test_denoiser_of_the_exact_network_gives_the_data_back(x64, name, t):
  schedule = schedules.linear(30)
  x0, eps = jax.random.normal(jax.random.key(0), (2, 4, 3, 3, 2))
  times = jnp.broadcast_to(t, 4)
  column = lambda values: values[:, None, None, None]  # noqa: E731
  alpha, sigma = (column(jax.vmap(f)(times)) for f in (schedule.alpha, schedule.sigma))
  xt = jax.vmap(q_sample, (None, 0, 0, 0))(schedule, x0, times, eps)

  def network(params, x, noise_label, cond):
    scale = column(
      jax.vmap(parameterization.input_scale)(
        jax.vmap(schedule.alpha)(times), jax.vmap(schedule.sigma)(times)
      )
      * jnp.ones(4)
    )
    np.testing.assert_allclose(x, scale * xt, rtol=1e-13)
    assert noise_label.shape == (4,)
    assert noise_label.dtype == jnp.float32
    return (
      params * cond['label'] * jax.vmap(DEFINITIONS[name])(x0, eps, *map(jnp.ravel, (alpha, sigma)))
    )

  parameterization, cond = PARAMETERIZATIONS[name](), {'label': jnp.float64(0.5)}
  denoised = make_denoiser(network, 2.0, schedule, parameterization, cond)(xt, t)
  np.testing.assert_allclose(denoised.x0, x0, atol=1e-12)
  assert denoised.x0_variance is None
  assert denoised.fraction is None


READABLE = [name for name in PARAMETERIZATIONS if name not in ('eps', 'score')]
# Their limits at alpha = 0, where n is infinite: c_skip n is 0 and c_out sigma_data.
AT_ZERO = {'edm': lambda x0, *_: 2 * x0, 'consistency': lambda x0, *_: 2 * x0}


@pytest.mark.parametrize('name', READABLE)
def test_denoiser_is_finite_at_zero_terminal_snr(name):
  schedule = schedules.from_betas([0.2, 1.0])
  x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 2))
  target = (AT_ZERO | {k: v for k, v in DEFINITIONS.items() if k not in AT_ZERO})[name](
    x0, eps, jnp.float32(0), jnp.float32(1)
  )
  denoiser = make_denoiser(lambda *_: target, {}, schedule, PARAMETERIZATIONS[name](), {})
  np.testing.assert_allclose(denoiser(eps, 2).x0, x0, atol=1e-6)


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_second_half_of_the_channels_is_the_learned_variance(name):
  schedule, xt = schedules.linear(10), jax.random.normal(jax.random.key(0), (2, 3, 3, 2))
  head = jnp.linspace(-100, 100, xt.size).reshape(xt.shape)
  make = lambda network: make_denoiser(network, {}, schedule, PARAMETERIZATIONS[name](), {})  # noqa: E731
  alone = make(lambda params, x, noise_label, cond: x)(xt, 4)
  both = make(lambda params, x, noise_label, cond: jnp.concatenate([x, head], -1))(xt, 4)
  np.testing.assert_array_equal(both.x0, alone.x0)
  assert both.fraction.shape == xt.shape
  assert np.all(np.diff(both.fraction.ravel()) >= 0)
  assert (both.fraction.min(), both.fraction.max()) == (0, 1)
  middle = make(lambda params, x, noise_label, cond: jnp.concatenate([x, 0 * x], -1))(xt, 4)
  np.testing.assert_array_equal(middle.fraction, jnp.full(xt.shape, 0.5))


@pytest.mark.parametrize('shape', [(2, 4, 4, 3), (2, 4, 4, 4), (2, 4, 2, 2), (4, 4, 1)])
def test_an_output_of_another_shape_is_refused(shape):
  with pytest.raises(ValueError, match='neither that shape nor twice its channels'):
    split_variance(jnp.zeros(shape), jnp.zeros((2, 4, 4, 1)))


LABELS = {
  'time': [1, 2, 3],
  # By the odds: alpha_bar / (1 - alpha_bar) is 1e12, then 9, then 0.
  'log_snr': [20, np.log(9), -20],
  'edm': [-2.5, -np.log(9) / 8, 2.5],
}


@pytest.mark.parametrize('label', NOISE_LABELS)
@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_noise_labels(precision, label, name):
  del precision  # what the network is told is float32 in both
  schedule = schedules.from_betas([1e-12, 0.1, 1.0])
  parameterization = PARAMETERIZATIONS[name](noise_label=label)
  _, told = network_input(parameterization, schedule, jnp.zeros((3, 2)), jnp.array([1, 2, 3]))
  assert told.dtype == jnp.float32
  np.testing.assert_allclose(told, LABELS[label], rtol=1e-5)


def test_an_unknown_noise_label_is_refused():
  with pytest.raises(ValueError, match="^noise_label: 'tme' is not one of time, log_snr, edm"):
    PARAMETERIZATIONS['eps'](noise_label='tme')


@pytest.mark.parametrize('name', ['edm', 'consistency'])
@pytest.mark.parametrize('sigma_data', [0.5, 1.7])
def test_what_the_network_sees_has_variance_one(x64, name, sigma_data):
  parameterization = PARAMETERIZATIONS[name](sigma_data=sigma_data)
  for path in (schedules.edm(), schedules.vp(), schedules.flow()):
    for t in (path.t_min, path.t_max):
      alpha, sigma = path.alpha(t), path.sigma(t)
      variance = (alpha * sigma_data) ** 2 + sigma**2
      scale = parameterization.input_scale(alpha, sigma)
      assert float(scale**2 * variance) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize('sigma_data', [0.5, 1.7])
def test_edm_target_has_variance_one_and_is_uncorrelated_with_the_input(x64, sigma_data):
  row = PARAMETERIZATIONS['edm'](sigma_data=sigma_data).row
  for log_snr in LOG_SNRS:
    alpha, sigma = 1 / np.sqrt(1 + np.exp(-log_snr)), 1 / np.sqrt(1 + np.exp(log_snr))
    a, b = map(float, row(alpha, sigma))
    assert (a * sigma_data) ** 2 + b**2 == pytest.approx(1, rel=1e-12)
    # Hence c_skip xt is the best linear guess, and the network has only to learn the rest.
    assert a * alpha * sigma_data**2 + b * sigma == pytest.approx(0, abs=1e-12)


def test_edm_on_data_of_variance_one_is_minus_v(x64):
  edm, v = PARAMETERIZATIONS['edm'](sigma_data=1.0).row, PARAMETERIZATIONS['v']().row
  for alpha, sigma in [(0.6, 0.8), (1.0, 3.0), (0.0, 1.0)]:
    np.testing.assert_allclose(edm(alpha, sigma), [-x for x in v(alpha, sigma)], atol=1e-15)


@pytest.mark.parametrize('alpha', [1.0, 0.3])
def test_consistency_is_the_identity_at_its_boundary(x64, alpha):
  xt, alpha = jnp.array([0.7, -3.0, 100.0]), jnp.float64(alpha)
  for sigma_min in (0.002, 0.1):
    row = PARAMETERIZATIONS['consistency'](sigma_min=sigma_min).row
    for value in (0.0, 1e6):
      read = to_x0(jnp.full(3, value), xt, alpha, sigma_min * alpha, row)
      np.testing.assert_array_equal(read, xt / alpha)


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_slope_of_eps_is_how_an_error_moves_it(x64, name):
  row = PARAMETERIZATIONS[name]().row
  for alpha, sigma in [(0.6, 0.8), (1.0, 5.0), (0.99, 0.01)]:
    alpha, sigma = jnp.float64(alpha), jnp.float64(sigma)
    read = functools.partial(convert, xt=1.3, alpha=alpha, sigma=sigma, source=name, target='eps')
    slope = float(eps_slope(alpha, sigma, row))
    assert slope == pytest.approx(float(jax.grad(read)(0.4)), rel=1e-12)


@pytest.mark.parametrize('snr', [1e-3, 1.0, 400.0])
def test_errors_of_eps_x0_and_v_differ_by_the_snr(x64, snr):
  # On a VP path, in squares: of eps SNR times that of x0, of v 1 + SNR times.
  alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
  of_x0, of_v = (eps_slope(alpha, sigma, PARAMETERIZATIONS[name]().row) for name in ('x0', 'v'))
  assert of_x0**2 == pytest.approx(snr, rel=1e-12)
  assert (of_x0 / of_v) ** 2 == pytest.approx(1 + snr, rel=1e-12)


@pytest.mark.parametrize('name', CONTINUOUS)
@pytest.mark.parametrize('target', PARAMETERIZATIONS)
def test_data_is_read_back_on_every_path(x64, name, target):
  path, row = CONTINUOUS[name](), PARAMETERIZATIONS[target]().row
  x0, eps = jnp.array([0.7, -0.2]), jnp.array([1.1, 0.4])
  for t in (path.t_min, 0.4, path.t_max):
    alpha, sigma = path.alpha(t), path.sigma(t)
    at_boundary = target == 'consistency' and sigma == 0.002 * alpha
    if at_boundary or (alpha == 0 and target not in READABLE):
      continue
    a, b = row(alpha, sigma)
    read = to_x0(a * x0 + b * eps, alpha * x0 + sigma * eps, alpha, sigma, row)
    np.testing.assert_allclose(read, x0, rtol=1e-10)


ZERO_SNR = {
  'chain': lambda: schedules.from_betas([0.2, 1.0]),
  'rescaled': lambda: schedules.zero_terminal_snr(schedules.linear(20)),
  'flow': schedules.flow,
}


@pytest.mark.parametrize('path', ZERO_SNR)
@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_what_says_nothing_of_the_data_at_zero_snr_is_refused(path, name):
  parameterization, path = PARAMETERIZATIONS[name](), ZERO_SNR[path]()
  if name in READABLE:
    check_invertible(parameterization, path)
    return
  with pytest.raises(ValueError, match='at zero terminal SNR .* says nothing of x0'):
    make_denoiser(lambda *_: 0.0, {}, path, parameterization, {})
  # Within a compiled function too, if the path is not traced itself.
  with pytest.raises(ValueError, match='at zero terminal SNR'):
    jax.jit(lambda x: make_denoiser(lambda *_: x, {}, path, parameterization, {})(x, 1).x0)(
      jnp.zeros((1, 2))
    )


@pytest.mark.parametrize('name', PARAMETERIZATIONS)
def test_what_ends_above_zero_snr_is_let_through(name):
  for path in (schedules.linear(), schedules.cosine(), schedules.vp(), schedules.learned()):
    check_invertible(PARAMETERIZATIONS[name](), path)


@pytest.mark.parametrize('value', [0.0, -1.0, float('nan'), float('inf')])
def test_scales_are_positive(value):
  for name, field in [
    ('edm', 'sigma_data'),
    ('consistency', 'sigma_data'),
    ('consistency', 'sigma_min'),
  ]:
    with pytest.raises(ValueError, match=f'^{field}: .* is not a positive number'):
      PARAMETERIZATIONS[name](**{field: value})
