"""Every weight in its paper's form and target, on any path, finite at every noise level."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.losses import WEIGHTS, LossContext, make_factors
from ddpm_jax.losses.products import output_weight

VP = schedules.cosine_log_snr()
LOG_SNRS = np.linspace(-9.0, 9.0, 13)

# (what is predicted, the paper's weight of its squared error) at SNR s, for VP and n = 1 / sqrt(s).
PUBLISHED = {
  'simple': [('eps', lambda s: 1 + 0 * s), ('x0', lambda s: s), ('v', lambda s: s / (s + 1))],
  'snr': [('x0', lambda s: s)],
  'truncated_snr': [('x0', lambda s: np.maximum(s, 1))],
  'snr_plus_one': [('x0', lambda s: s + 1), ('v', lambda s: 1 + 0 * s)],
  'inverse_snr': [('x0', lambda s: 1 + 0 * s), ('eps', lambda s: 1 / s)],
  'min_snr': [
    ('eps', lambda s: np.minimum(s, 5) / s),
    ('x0', lambda s: np.minimum(s, 5)),
    ('v', lambda s: np.minimum(s, 5) / (s + 1)),
  ],
  'soft_min_snr': [('x0', lambda s: 1 / (1 / s + 1 / 4))],
  'p2': [('eps', lambda s: 1 / (1 + s))],
  'edm': [
    ('x0', lambda s: (1 / s + 0.5**2) / (0.5**2 / s)),
    ('edm', lambda s: 1 + 0 * s),
  ],
  'flow': [('flow', lambda s: 1 + 0 * s)],
}
# ∫ w d log_snr of densities, the eps error being one.
TOTALS = {'laplace': 1.0, 'cosh': 1.0}
DENSITIES = ('variational', 'sigmoid', 'laplace', 'cosh', 'logit_normal')


def at(weight, schedule, log_snrs, target):
  """The weight of the target's squared error."""
  context = LossContext(
    None, schedule, PARAMETERIZATIONS[target](), make_factors('simple', weight=weight), 1
  )
  times = jax.vmap(schedule.time)(jnp.asarray(log_snrs))
  return np.asarray(jax.vmap(lambda t: output_weight(context, t))(times))


def test_every_weight_is_held_against_its_paper():
  assert set(PUBLISHED) | set(DENSITIES) | {'output'} == set(WEIGHTS)


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_weight_is_its_papers_in_its_papers_target(name, x64):
  for target, published in PUBLISHED[name]:
    found = at(WEIGHTS[name], VP, LOG_SNRS, target)
    np.testing.assert_allclose(found, published(np.exp(LOG_SNRS)), rtol=1e-9)


def test_min_snr_keeps_to_its_paper_in_single_precision():
  for target, published in PUBLISHED['min_snr']:
    weight = functools.partial(WEIGHTS['min_snr'], gamma=5.0)
    times = jax.vmap(VP.time)(jnp.asarray(LOG_SNRS))
    levels = np.asarray(jax.vmap(VP.log_snr)(times), np.float64)
    found = at(weight, VP, LOG_SNRS, target)
    np.testing.assert_allclose(found, published(np.exp(levels)), rtol=2e-5)


@pytest.mark.parametrize('schedule', [VP, schedules.cosine(4000), schedules.ve(0.01, 80.0)])
@pytest.mark.parametrize('name', TOTALS)
def test_a_density_sums_to_one_over_uniform_times(name, schedule, x64):
  if isinstance(schedule, schedules.Discrete):
    times = jnp.arange(1, 4001)
  else:
    times = (jnp.arange(4000) + 0.5) / 4000
  weights = jax.vmap(WEIGHTS[name], (None, 0))(schedule, times)
  low, high = (float(schedule.log_snr(t)) for t in (schedule.t_max, schedule.t_min))
  distribution = {'laplace': stats.laplace(scale=0.5), 'cosh': stats.hypsecant(scale=2)}[name]
  np.testing.assert_allclose(
    np.mean(weights), distribution.cdf(high) - distribution.cdf(low), rtol=1e-3
  )


def test_sigmoid_is_the_bound_at_high_noise_and_integrates_to_its_closed_form(x64):
  times = (jnp.arange(4000) + 0.5) / 4000
  path = schedules.ve(0.01, 80.0)
  weights = jax.vmap(WEIGHTS['sigmoid'], (None, 0))(path, times)
  # ½ ∫ sigmoid(2 - l) dl, by the difference of softplus at the ends.
  low, high = float(path.log_snr(1.0)), float(path.log_snr(0.0))
  truth = 0.5 * (np.logaddexp(0, 2 - low) - np.logaddexp(0, 2 - high))
  np.testing.assert_allclose(np.mean(weights), truth, rtol=1e-5)
  bound = jax.vmap(WEIGHTS['variational'], (None, 0))(path, times[-5:])
  np.testing.assert_allclose(weights[-5:], bound, rtol=1e-4)


def test_logit_normal_on_its_own_path_is_the_density_of_its_time(x64):
  path = schedules.flow(t_min=1e-3)
  t = jnp.linspace(0.05, 0.95, 7)
  found = at(WEIGHTS['logit_normal'], path, jax.vmap(path.log_snr)(t), 'flow')
  logit = np.log(t / (1 - t))
  truth = stats.norm.pdf(logit) / (t * (1 - t)) * (1 - 1e-3)  # times fill [1e-3, 1]
  np.testing.assert_allclose(found, truth, rtol=1e-9)


@pytest.mark.parametrize('name', WEIGHTS)
def test_a_weight_and_its_slope_are_finite_at_every_level(name):
  # A path whose time is minus the log-SNR.
  path = types.SimpleNamespace(alpha=jnp.ones_like, log_snr=lambda t: -t, t_min=-20.0, t_max=20.0)
  times = jnp.linspace(-20, 20, 81)
  values, slopes = jax.vmap(jax.value_and_grad(lambda t: WEIGHTS[name](path, t)))(times)
  assert np.isfinite(values).all() and np.isfinite(slopes).all()
  assert (values >= 0).all()


@pytest.mark.parametrize(
  'path', [schedules.zero_terminal_snr(schedules.linear(50)), schedules.flow()]
)
@pytest.mark.parametrize('name', sorted(set(WEIGHTS) - {'output'}))
def test_at_zero_snr_the_weight_in_the_output_is_finite(name, path):
  for target in ('v', 'x0', 'flow', 'edm'):
    factors = make_factors('simple', weight=WEIGHTS[name])
    context = LossContext(None, path, PARAMETERIZATIONS[target](), factors, 1)
    value = output_weight(context, jnp.asarray(path.t_max))
    assert np.isfinite(value) and value >= 0
  if name == 'inverse_snr':  # the squared error of x0, also there
    factors = make_factors('simple', weight=WEIGHTS[name])
    context = LossContext(None, path, PARAMETERIZATIONS['x0'](), factors, 1)
    np.testing.assert_allclose(output_weight(context, jnp.asarray(path.t_max)), 1, rtol=1e-5)
