"""Inverse problems on Gaussian data, where q(x0 | xt, y) is Gaussian and known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import ddim, sample, time_grid
from ddpm_jax.samplers.inverse import (
  COVARIANCES,
  conjugate_gradients,
  diagonal,
  dps,
  from_jacobian,
  isotropic,
  pigdm,
)
from ddpm_jax.theory.oracle import GaussianData, correlated

pytestmark = pytest.mark.usefixtures('x64')

MEAN = np.array([0.4, -0.7, 0.1, 1.0])
ROOT = np.random.default_rng(0).normal(size=(4, 4))
COVARIANCE = ROOT @ ROOT.T / 4 + 0.1 * np.eye(4)
MATRIX = np.random.default_rng(1).normal(size=(2, 4))
NOISE = 0.3
Y = np.array([[1.0, 0.5], [-2.0, 0.0], [0.3, 3.0]])

PATHS = {
  'chain': (functools.partial(schedules.linear, 50, 0.002, 0.2), (1, 20, 50)),
  'vp': (schedules.vp, (0.01, 0.4, 1.0)),
  've': (schedules.ve, (0.0, 0.5, 1.0)),
  'edm': (schedules.edm, (0.1, 1.0, 40.0)),
  'flow': (schedules.flow, (0.01, 0.4, 0.99)),
}


def operator(x0):
  return jnp.asarray(MATRIX) @ x0


def data():
  return correlated(MEAN, COVARIANCE)


def given(y, matrix=MATRIX, noise=NOISE, mean=MEAN, covariance=COVARIANCE):
  """x0 | y by conditioning the joint Gaussian of x0 and y: mean and covariance."""
  of_y = matrix @ covariance @ matrix.T + noise**2 * np.eye(len(matrix))
  gain = covariance @ matrix.T @ np.linalg.inv(of_y)
  # The oracle wants a positive covariance, which without noise it is not.
  remaining = covariance - gain @ matrix @ covariance + 1e-12 * np.eye(len(mean))
  return mean + gain @ (y - matrix @ mean), (remaining + remaining.T) / 2


def conditional(schedule, ys=Y, **problem):
  """The oracle of each x0 | y_i: a denoiser on batches of as many."""
  moments = [given(y, **problem) for y in ys]
  each = [correlated(*moment).denoiser(schedule) for moment in moments]

  def denoiser(xt, t):
    parts = [one(x[None], t) for one, x in zip(each, xt, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

  return denoiser


def closed_form(schedule, t, denoised, tweedie):
  """Cov[x0 | xt] of the data, which does not depend on xt."""
  covariance = data().posterior(schedule, jnp.zeros(4), t).covariance
  return lambda v: v @ covariance


def noisy(schedule, t, size=4):
  spread = schedule.alpha(t) + schedule.sigma(t)
  return spread * jax.random.normal(jax.random.key(1), (len(Y), size))


@pytest.mark.parametrize('covariance', [closed_form, from_jacobian])
@pytest.mark.parametrize('path', PATHS)
def test_with_the_posteriors_covariance_it_is_the_conditional_denoiser(path, covariance):
  schedule, times = PATHS[path][0](), PATHS[path][1]
  plain = data().denoiser(schedule)
  denoiser = pigdm(plain, schedule, operator, jnp.asarray(Y), NOISE, covariance)
  both = jax.jit(lambda xt, t: (denoiser(xt, t), conditional(schedule)(xt, t).x0, plain(xt, t)))
  for t in times:
    guided, expected, unguided = both(noisy(schedule, t), t)
    np.testing.assert_allclose(guided.x0, expected, rtol=1e-7, atol=1e-8)
    np.testing.assert_array_equal(guided.x0_variance, unguided.x0_variance)


def test_with_no_signal_a_known_covariance_still_conditions():
  schedule, y = schedules.flow(), jnp.asarray(Y)
  xt, plain = noisy(schedule, 1.0), data().denoiser(schedule)
  known = pigdm(plain, schedule, operator, y, NOISE, closed_form)
  means = [given(y)[0] for y in Y]
  np.testing.assert_allclose(known(xt, 1.0).x0, means, rtol=1e-9)
  # The Jacobian, which is zero there, knows nothing, be there noise or not.
  for noise in (NOISE, 0.0):
    denoiser = pigdm(plain, schedule, operator, y, noise, from_jacobian)
    np.testing.assert_array_equal(denoiser(xt, 1.0).x0, plain(xt, 1.0).x0)


@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_samples_are_those_of_the_conditional_oracle(make_keys, noise):
  # With no noise at all too, where A x0 = y must hold.
  schedule, y = schedules.flow(), jnp.asarray(Y)
  times = time_grid('log_snr', schedule, 12)
  denoiser = pigdm(data().denoiser(schedule), schedule, operator, y, noise, closed_form)
  run = jax.jit(
    lambda denoise: sample(ddim(), denoise, schedule, times, noisy(schedule, 1.0), make_keys(3)),
    static_argnums=0,
  )
  x0 = run(denoiser)
  np.testing.assert_allclose(x0, run(conditional(schedule, noise=noise)), rtol=1e-5, atol=1e-6)
  assert (np.abs(x0 @ MATRIX.T - Y).max() < 1e-6) == (noise == 0)


@pytest.mark.parametrize('covariance', [isotropic, diagonal, from_jacobian])
def test_on_standard_normal_data_every_covariance_is_exact(covariance):
  schedule = schedules.flow()
  plain = GaussianData(jnp.asarray(MEAN), jnp.ones(4)).denoiser(schedule)
  denoiser = pigdm(plain, schedule, operator, jnp.asarray(Y), NOISE, covariance)
  expected = conditional(schedule, covariance=np.eye(4))
  both = jax.jit(lambda xt, t: (denoiser(xt, t).x0, expected(xt, t).x0))
  for t in (0.01, 0.4, 0.99):
    np.testing.assert_allclose(*both(noisy(schedule, t), t), rtol=1e-8, atol=1e-10)


def test_of_independent_components_their_variances_are_enough():
  schedule, variance = schedules.vp(), np.array([0.1, 0.5, 1.0, 3.0])
  plain = GaussianData(jnp.asarray(MEAN), jnp.asarray(variance)).denoiser(schedule)
  expected = conditional(schedule, covariance=np.diag(variance))
  xt = noisy(schedule, 0.3)
  guided = {
    name: jax.jit(pigdm(plain, schedule, operator, jnp.asarray(Y), NOISE, covariance))(xt, 0.3).x0
    for name, covariance in COVARIANCES.items()
  }
  for name in ('diagonal', 'jacobian'):
    np.testing.assert_allclose(guided[name], expected(xt, 0.3).x0, rtol=1e-8)
  assert np.abs(guided['isotropic'] - expected(xt, 0.3).x0).max() > 0.01


def test_examples_may_have_times_of_their_own():
  schedule, y = PATHS['vp'][0](), jnp.asarray(Y)
  times, xt = jnp.array([0.1, 0.5, 0.9]), noisy(schedule, 0.5)
  for method in (
    functools.partial(pigdm, noise=NOISE),
    functools.partial(pigdm, noise=NOISE, covariance=from_jacobian),
    functools.partial(dps, scale=2.0),
  ):
    run = jax.jit(
      lambda y, xt, t, method=method: method(data().denoiser(schedule), schedule, operator, y)(
        xt, t
      )
    )
    together = run(y, xt, times).x0
    for i, t in enumerate(times):
      alone = run(y[i : i + 1], xt[i : i + 1], t).x0
      np.testing.assert_allclose(together[i], alone[0], rtol=1e-8)


def test_a_given_solver_takes_the_place_of_conjugate_gradients():
  # A mask's A Aᵀ is diagonal, and so is the system: each pixel by itself.
  schedule, mask = schedules.vp(), jnp.array([1.0, 0.0, 1.0, 0.0])
  problem = (data().denoiser(schedule), schedule, lambda x0: mask * x0, jnp.ones((3, 4)), NOISE)

  def solve(matrix, b):
    return b / matrix(jnp.ones_like(b))

  xt = noisy(schedule, 0.4)
  np.testing.assert_allclose(
    pigdm(*problem, solve=solve)(xt, 0.4).x0, pigdm(*problem)(xt, 0.4).x0, rtol=1e-9
  )


def test_pictures_and_singular_operators_are_taken_as_they_are():
  # Averages over 2 by 2 pixels, each measured twice and exactly: A Aᵀ is not invertible.
  def averages(x0):
    means = x0.reshape(4, 2, 4, 2, 1).mean(axis=(1, 3))
    return jnp.stack([means, means])

  schedule, truth = schedules.vp(), jax.random.normal(jax.random.key(2), (2, 8, 8, 1))
  plain = GaussianData(jnp.zeros((8, 8, 1)), jnp.ones(())).denoiser(schedule)
  denoiser = pigdm(plain, schedule, averages, jax.vmap(averages)(truth), 0.0)
  x0 = jax.jit(denoiser)(jax.random.normal(jax.random.key(3), truth.shape), 0.5).x0
  np.testing.assert_allclose(jax.vmap(averages)(x0), jax.vmap(averages)(truth), atol=1e-9)


def systems(count, size, seed=0):
  root = np.random.default_rng(seed).normal(size=(count, size, size))
  return root @ root.transpose(0, 2, 1), np.random.default_rng(seed + 1).normal(size=(count, size))


def test_conjugate_gradients_solve_each_system_for_itself():
  matrices, b = systems(5, 6)
  b[3] = 0
  matrices[4] = np.eye(6)

  def solve(rows):
    matrix = jnp.asarray(matrices[rows])
    return conjugate_gradients(lambda w: jnp.einsum('bij,bj->bi', matrix, w), jnp.asarray(b[rows]))

  together = solve(slice(None))
  expected = np.stack([np.linalg.solve(m, v) for m, v in zip(matrices, b, strict=True)])
  np.testing.assert_allclose(together, expected, rtol=1e-6)
  for i in range(5):
    np.testing.assert_allclose(solve(slice(i, i + 1))[0], together[i], rtol=1e-12)


def test_conjugate_gradients_end_where_they_cannot_succeed():
  singular = conjugate_gradients(lambda w: w * jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 1.0]]))
  assert np.isfinite(singular).all()
  nothing = conjugate_gradients(jnp.zeros_like, jnp.ones((2, 3)))
  np.testing.assert_array_equal(nothing, np.zeros((2, 3)))


@pytest.mark.parametrize('path', PATHS)
def test_dps_moves_by_the_covariance_towards_y(path):
  # By Tweedie's formula of second order its gradient is Cov[x0 | xt] Aᵀ (y - A x0) / |y - A x0|.
  schedule, times = PATHS[path][0](), PATHS[path][1]
  plain, y = data().denoiser(schedule), jnp.asarray(Y)
  guided = jax.jit(
    lambda xt, t: (plain(xt, t).x0, dps(plain, schedule, operator, y, 0.7)(xt, t).x0)
  )
  for t in times:
    x0, moved = guided(noisy(schedule, t), t)
    covariance = data().posterior(schedule, jnp.zeros(4), t).covariance
    residual = Y - x0 @ MATRIX.T
    towards = residual / np.linalg.norm(residual, axis=1, keepdims=True) @ MATRIX @ covariance
    np.testing.assert_allclose(moved - x0, 0.7 * towards, rtol=1e-6, atol=1e-9)


def test_dps_takes_any_differentiable_operator():
  # Of |x0|² alone, radially: on isotropic data the pull is along x0.
  schedule, y = schedules.vp(), jnp.full((3, 1), 25.0)
  plain = GaussianData(jnp.zeros(4), jnp.ones(4)).denoiser(schedule)
  xt = noisy(schedule, 0.4)
  denoiser = dps(plain, schedule, lambda x0: jnp.sum(jnp.square(x0), keepdims=True), y, 0.1)
  ratio = jax.jit(denoiser)(xt, 0.4).x0 / plain(xt, 0.4).x0
  assert (ratio > 1).all()
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-9)


def test_dps_stays_where_it_has_arrived_and_where_nothing_is_known():
  schedule, plain = schedules.flow(), data().denoiser(schedules.flow())
  for t in (0.5, 1.0):
    xt = noisy(schedule, t)
    reached = jax.vmap(operator)(plain(xt, t).x0)
    np.testing.assert_array_equal(
      dps(plain, schedule, operator, reached)(xt, t).x0, plain(xt, t).x0
    )
  xt = noisy(schedule, 1.0)
  denoiser = dps(plain, schedule, operator, jnp.asarray(Y), 5.0)
  np.testing.assert_array_equal(denoiser(xt, 1.0).x0, plain(xt, 1.0).x0)


def test_dps_brings_samples_close_to_what_was_measured(make_keys):
  schedule, y = schedules.vp(), jnp.asarray(Y)
  times = time_grid('log_snr', schedule, 60)
  xT, residuals = noisy(schedule, 1.0), []

  @jax.jit
  def run(scale):
    denoiser = dps(data().denoiser(schedule), schedule, operator, y, scale)
    return sample(ddim(), denoiser, schedule, times, xT, make_keys(3))

  residuals = [np.linalg.norm(run(scale) @ MATRIX.T - Y, axis=1) for scale in (0.0, 1.0, 8.0)]
  assert (residuals[1] < residuals[0]).all()
  assert (residuals[2] < 1e-3).all()


def test_bad_problems_are_refused():
  schedule, plain = schedules.vp(), data().denoiser(schedules.vp())
  xt = noisy(schedule, 0.5)
  with pytest.raises(InputError, match=r'^noise: -0.1 is negative$'):
    pigdm(plain, schedule, operator, jnp.asarray(Y), -0.1)
  with pytest.raises(InputError, match=r'^scale: 0.0 is not above zero$'):
    dps(plain, schedule, operator, jnp.asarray(Y), 0.0)
  for denoiser in (
    pigdm(plain, schedule, operator, jnp.zeros((3, 5)), NOISE),
    dps(plain, schedule, operator, jnp.zeros((3, 5))),
  ):
    with pytest.raises(InputError, match=r'y: has shape \(3, 5\), but the .* makes \(3, 2\)'):
      denoiser(xt, 0.5)
