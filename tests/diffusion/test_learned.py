"""The learned schedule: its ends, its order, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import bind, parameters

SEEDS = range(4)


def wild(seed, log_snr_min=-5.0, log_snr_max=13.3):
  """A schedule whose inner leaves are drawn at random, far from where training begins."""
  schedule = schedules.learned(log_snr_min, log_snr_max, width=9)
  inner = ('heights', 'slopes', 'offsets')
  keys = jax.random.split(jax.random.key(seed), 3)
  return bind(
    schedule,
    parameters(schedule)
    | {n: 2 * jax.random.normal(k, (9,)) for n, k in zip(inner, keys, strict=True)},
  )


@pytest.mark.parametrize('seed', SEEDS)
@pytest.mark.parametrize('compiled', [lambda f: f, jax.jit], ids=['eager', 'compiled'])
def test_ends_are_exact(seed, compiled):
  for low, high in [(-5.0, 13.3), (-7.7, 0.1)]:
    log_snr = compiled(lambda schedule, t: schedule.log_snr(t))
    assert log_snr(wild(seed, low, high), 0.0) == jnp.float32(high)
    assert log_snr(wild(seed, low, high), 1.0) == jnp.float32(low)


@pytest.mark.parametrize('seed', SEEDS)
def test_monotone_whatever_the_leaves_are(x64, seed):
  schedule = wild(seed)
  for changed in (schedule, schedule.replace(log_snr_min=jnp.float64(20.0))):
    log_snr = jax.vmap(changed.log_snr)(jnp.linspace(0, 1, 2001))
    assert np.all(np.diff(log_snr) < 0)


slope_of_time = jax.jit(jax.value_and_grad(lambda schedule, log_snr: schedule.time(log_snr)))
time_of = jax.jit(lambda schedule, log_snr: schedule.time(log_snr))


@pytest.mark.parametrize('seed', SEEDS)
def test_time_inverts_and_its_gradient_is_the_implicit_one(x64, seed):
  schedule = wild(seed)
  for t in (0.0, 0.21, 0.8, 1.0):
    assert float(time_of(schedule, schedule.log_snr(t))) == pytest.approx(t, abs=1e-12)
  # With log_snr(t) held fixed, d time = -(d log_snr) / slope, here by central differences.
  level, h = 2.0, 1e-5
  _, gradient = slope_of_time(schedule, level)
  for name, leaf in parameters(schedule).items():
    moved = [time_of(bind(schedule, {name: leaf + sign * h}), level) for sign in (1, -1)]
    expected = float(moved[0] - moved[1]) / (2 * h)
    assert float(jnp.sum(getattr(gradient, name))) == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_begins_nearly_linear():
  schedule = schedules.learned()
  t = jnp.linspace(0, 1, 101)
  line = 13.3 + t * (-5 - 13.3)
  assert np.max(np.abs(jax.vmap(schedule.log_snr)(t) - line)) < 0.05 * 18.3


def test_parameters_and_bind_are_inverse_and_leave_others_alone():
  schedule = wild(0)
  fresh = schedules.learned(width=9)
  assert bind(fresh, parameters(schedule)).log_snr(0.3) == schedule.log_snr(0.3)
  chain = schedules.linear(5)
  assert parameters(chain) == {}
  assert bind(chain, parameters(chain)) is chain
  assert jax.tree.structure(parameters(schedule)) == jax.tree.structure(parameters(fresh))


def test_the_log_density_is_one(x64):
  schedule = bind(schedules.learned(-3.0, 5.0, width=3), {'heights': jnp.array([1.0, -0.5, 0.3])})
  nodes, weights = np.polynomial.legendre.leggauss(60)
  log_snrs = jnp.asarray(1.0 + 4.0 * nodes)
  density = jnp.exp(jax.vmap(schedule.log_density)(log_snrs))
  np.testing.assert_allclose(4.0 * weights @ density, 1, rtol=1e-9)
  # Of log_snr(t) with t uniform: its mean by the density and over t.
  over_t = weights @ jax.vmap(schedule.log_snr)(jnp.asarray((nodes + 1) / 2)) / 2
  np.testing.assert_allclose(4.0 * weights @ (density * log_snrs), over_t, rtol=1e-9)


def variance(schedule, data_variance=0.05, nodes=64):
  """Relative variance over t of the continuous bound's integrand, for exactly denoised N(0, v).

  It is -½ SNR' mmse(SNR) with mmse = v / (1 + v SNR); its mean depends on the ends alone.
  """

  def integrand(t):
    log_snr, slope = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
    snr = jnp.exp(log_snr)
    return -slope * snr * data_variance / (1 + data_variance * snr) / 2

  values = jax.vmap(integrand)((jnp.arange(nodes) + 0.5) / nodes)
  return jnp.var(values), jnp.mean(values)


def test_training_lowers_the_variance_of_the_bounds_estimator_and_not_its_mean():
  schedule = schedules.learned(-6.0, 8.0)
  params = parameters(schedule)
  inner = {k: v for k, v in params.items() if not k.startswith('log_snr')}
  optimizer = optax.adam(0.2)

  def loss(inner):
    return variance(bind(schedule, inner))[0]

  @jax.jit
  def train(inner):
    def step(carry, _):
      inner, state = carry
      value, gradient = jax.value_and_grad(loss)(inner)
      updates, state = optimizer.update(gradient, state)
      return (optax.apply_updates(inner, updates), state), value

    return jax.lax.scan(step, (inner, optimizer.init(inner)), length=80)

  (trained, _), values = train(inner)
  before, after = variance(schedule), variance(bind(schedule, trained))
  assert after[0] < before[0] / 20
  assert values[-1] < values[0] / 20
  # The theorem of VDM: ½ log (1 + v SNR_max) / (1 + v SNR_min), whatever lies between.
  exact = (np.log1p(0.05 * np.exp(8.0)) - np.log1p(0.05 * np.exp(-6.0))) / 2
  assert float(before[1]) == pytest.approx(exact, rel=0.01)
  assert float(after[1]) == pytest.approx(exact, rel=0.01)


def test_every_leaf_trains():
  def loss(params):
    schedule = bind(schedules.learned(width=4), params)
    return schedule.alpha(0.3) + schedule.sigma(0.6) ** 2 + schedule.log_snr(0.5)

  gradient = jax.grad(loss)(parameters(schedules.learned(width=4)))
  assert all(np.all(np.isfinite(leaf)) and np.all(leaf != 0) for leaf in gradient.values())
