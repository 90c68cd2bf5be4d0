"""The measures of exactness where they are known, and every variant trained until it is near."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits, mixture
from ddpm_jax import data
from ddpm_jax.data.plane import COVARIANCES, MEANS, WEIGHTS
from ddpm_jax.diffusion import Denoised, schedules
from ddpm_jax.keys import example_keys
from ddpm_jax.models import init_network
from ddpm_jax.samplers.solvers import solve, tsit5
from ddpm_jax.tasks import train
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job
from ddpm_jax.theory.oracle import GaussianMixture
from experiments.benchmarks import exactness_rows as table
from experiments.benchmarks import excess as measures

COUNT = 2000


def keys():
  return example_keys(jax.random.key(2), jnp.arange(COUNT))


def draws():
  plane = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
  return jax.vmap(plane.sample)(keys()).reshape(-1, 1, 2, 1)


def excess(schedule, denoiser):
  exact = measures.exact_denoiser(schedule)
  return measures.excess_errors(schedule, denoiser, exact, draws(), keys())


def test_the_exact_denoiser_has_no_excess_and_a_biased_one_its_bias():
  schedule = schedules.vp()
  exact = measures.exact_denoiser(schedule)
  # The two may be compiled apart: by the square of float32's rounding.
  rounding = 10 * jnp.finfo(jnp.float32).eps
  np.testing.assert_allclose(excess(schedule, exact), 0, atol=rounding**2)

  def off(xt, t):
    found = exact(xt, t)
    return found._replace(x0=found.x0 + 0.5 * jnp.sqrt(found.x0_variance))

  np.testing.assert_allclose(excess(schedule, off), 0.25, rtol=1e-4)


def test_the_posterior_variance_is_what_it_cannot_do_better_than():
  # E |mean - x0*|² = Var[x0] - E Var[x0 | xt]: by excess + 1 it is Var[x0] / E Var.
  schedule, x0 = schedules.vp(), draws()
  plane = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
  mean = plane.mean.reshape(1, 1, 2, 1)
  ratios = excess(schedule, lambda xt, t: Denoised(jnp.broadcast_to(mean, xt.shape)))
  for log_snr, ratio in zip(measures.LOG_SNRS[:3], ratios, strict=False):
    t = schedule.time(log_snr)
    eps = jax.random.normal(jax.random.key(5), x0.shape)
    xt = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    squares = jnp.mean((measures.exact_denoiser(schedule)(xt, t).x0 - x0) ** 2)
    np.testing.assert_allclose(ratio + 1, jnp.mean(plane.variance) / squares, rtol=0.1)


def test_the_exact_consistency_function_is_the_end_of_an_adaptive_solve():
  schedule = schedules.edm()
  x = draws()[:16] + 2.0 * jax.random.normal(jax.random.key(1), (16, 1, 2, 1))
  found = jax.jit(lambda x: measures.exact_consistency(schedule)(x, 2.0).x0)(x)
  exact = measures.exact_denoiser(schedule)
  truth = jax.jit(lambda x: solve(tsit5(), schedule, exact, x, 2.0, 0.002).x)(x)
  np.testing.assert_allclose(found, truth, atol=0.01)


def test_sliced_wasserstein_is_a_shift_times_the_mean_cosine():
  x = np.random.default_rng(0).normal(size=(500, 2))
  assert measures.sliced_wasserstein(x, x[::-1]) == 0
  found = measures.sliced_wasserstein(x, x + np.array([0.3, 0.0]), directions=64)
  np.testing.assert_allclose(found, 0.3 * 2 / np.pi, rtol=1e-3)


def fresh(config, plugins):
  """Parameters that stand for a teacher's."""
  experiment = build(config)
  network = init_network(experiment.module, jax.random.key(0), experiment.codec.shape)
  return {'network': network, 'schedule': {}}


@pytest.mark.slow
@pytest.mark.parametrize('config', [digits.get_config, mixture.get_config])
def test_every_row_of_the_table_can_begin(config, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'init_from', fresh)
  for settings in table.variants().values():
    experiment = build(table.make_config(config(), settings, tmp_path, 400))
    check_training(experiment, make_job(experiment))


def test_a_network_that_says_zero_has_an_error_of_eps_of_one(as_run, tmp_path):
  """E |eps|² = 1; a U-Net begins with zero, and a loaded run brings no examples."""
  experiment = build(table.make_config(digits.get_config(), {}, tmp_path, 1))
  none = data.Arrays(np.zeros((0, 8, 8, 1)), {'label': np.zeros(0, int)})
  empty = dataclasses.replace(
    experiment, dataset=dataclasses.replace(experiment.dataset, test=none)
  )
  run = as_run(empty, make_task(experiment).init(None)[0]['network'])
  assert table.error_of_eps(run) == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_every_variant_trains_to_near_the_exact_denoiser(tmp_path):
  # A tenth of the config's steps; what says the mean of the data has an excess above ten.
  for name, settings in table.variants().items():
    run = table.trained(mixture.get_config(), settings, tmp_path, name, 400)
    excess, distance = table.judged(run)
    assert np.isfinite(distance), name
    assert excess < 1 or name in table.OTHER_OPTIMUM, name


@pytest.mark.parametrize('level', range(7))
def test_levels_are_on_every_path_used(level):
  for schedule in (schedules.vp(), schedules.edm(), schedules.cosine()):
    t = schedule.time(measures.LOG_SNRS[level])
    np.testing.assert_allclose(schedule.log_snr(t), measures.LOG_SNRS[level], atol=0.1)
