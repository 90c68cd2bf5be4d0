import jax
import jax.numpy as jnp
import numpy as np
from tiny import tiny

from ddpm_jax.diffusion import SCHEDULES, Denoised
from ddpm_jax.keys import example_keys
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.heldout import eps_errors, levels
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training.task import load_frozen

SCHEDULE = SCHEDULES['linear'](1000)


def test_levels_are_distinct_and_close_to_evenly_spaced_in_log_snr():
  log_snr = levels(SCHEDULE, 10)
  assert len(set(log_snr.tolist())) == 10
  gap = (float(SCHEDULE.log_snr(1)) - float(SCHEDULE.log_snr(1000))) / 10
  np.testing.assert_allclose(-np.diff(log_snr), gap, rtol=0.25)


def test_gaussian_data_and_its_best_denoiser_give_the_closed_form():
  """For x0 ~ N(0, c²) the least eps-MSE at SNR s is s Var[x0 | xt] = s c² / (1 + s c²)."""
  spread = 0.6
  x0 = spread * jax.random.normal(jax.random.key(0), (4000, 8))

  def best(xt, t):
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    return Denoised(alpha * spread**2 * xt / (alpha**2 * spread**2 + sigma**2))

  times = jax.vmap(SCHEDULE.time)(levels(SCHEDULE, 10))
  keys = example_keys(jax.random.key(1), jnp.arange(4000))
  errors = jax.jit(lambda x0, keys: eps_errors(SCHEDULE, best, x0, times, keys))(x0, keys)
  snr = np.array([float(jnp.exp(SCHEDULE.log_snr(int(t)))) for t in times])
  # The mean of 32,000 squares has a relative standard error of sqrt(2 / 32,000) = 0.8 %.
  np.testing.assert_allclose(errors, snr * spread**2 / (1 + snr * spread**2), rtol=0.04)


def test_a_denoiser_that_knows_the_data_has_no_error():
  x0 = jax.random.uniform(jax.random.key(0), (5, 3))
  keys = example_keys(jax.random.key(1), jnp.arange(5))
  errors = eps_errors(SCHEDULE, lambda xt, t: Denoised(x0), x0, jnp.array([1, 500]), keys)
  np.testing.assert_array_equal(errors, [0, 0])


def test_a_network_of_zeros_predicts_no_noise_and_errs_by_its_variance():
  experiment = build(tiny(**{'evaluation.batch_size': 256}))
  task = make_task(experiment)
  params = jax.tree.map(jnp.zeros_like, task.init(None)[0])
  scalars = task.heldout(params, load_frozen(task))
  mean = scalars.pop('heldout/eps_mse')
  values = np.array(list(scalars.values()))
  # eps_hat = 0: the error is the mean of 256 * 64 squares of standard normals.
  np.testing.assert_allclose(values, 1, atol=6 * np.sqrt(2 / (256 * 64)))
  assert np.isclose(mean, values.mean()) and len(values) >= 5
