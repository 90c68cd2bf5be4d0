"""Multistep consistency sampling with an exact consistency function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import Denoised, schedules
from ddpm_jax.samplers import sample
from ddpm_jax.samplers.consistency_models import consistency
from tests.samplers import recursions
from tests.samplers.orders import DATA, even_in_log_snr

pytestmark = pytest.mark.usefixtures('x64')


class Flowing:
  """Gaussian data whose denoiser is its consistency function: each quantile to the data's."""

  def marginal(self, schedule, t):
    return DATA.marginal(schedule, t)

  def denoiser(self, schedule):
    def one(x, t):
      marginal = DATA.marginal(schedule, t)
      return DATA.mean + jnp.sqrt(DATA.variance / marginal.variance) * (x - marginal.mean)

    return lambda xt, t: Denoised(jax.vmap(one, (0, None))(xt, t))


@pytest.mark.parametrize(
  ('path', 'times'),
  [
    (schedules.vp, [1.0, 0.5]),
    (schedules.edm, [80.0, 5.0, 0.5, 0.02]),
    (schedules.flow, [1.0, 0.7, 0.2]),
    (schedules.linear, [1000, 400, 1]),
  ],
  ids=['vp', 'edm', 'flow from zero SNR', 'chain'],
)
def test_a_consistency_function_keeps_every_marginal_in_any_steps(path, times):
  sampler, path, times = consistency(), path(), jnp.array(times)
  run = jax.jit(lambda times: recursions.moments(sampler, path, times, data=Flowing()))
  np.testing.assert_allclose(run(times), recursions.marginal(path, times[-1]), rtol=1e-10)


def test_it_gives_data_by_one_step_or_many(make_keys):
  # One step is the function itself; many are draws of the data.
  count, path = 20_000, schedules.vp()
  xT = jax.random.normal(jax.random.key(0), (count, 3))
  xT = jax.vmap(DATA.marginal(path, 1.0).sample)(xT)
  run = jax.jit(
    lambda times, xT, keys: sample(consistency(), Flowing().denoiser(path), path, times, xT, keys)
  )
  for times in ([1.0], [1.0, 0.6, 0.3]):
    x = np.asarray(run(jnp.array(times), xT, make_keys(count)))
    z = (x - np.asarray(DATA.mean)) / np.sqrt(DATA.variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
    assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)
    if len(times) == 1:
      np.testing.assert_allclose(x, Flowing().denoiser(path)(xT, 1.0).x0, atol=1e-12)


def test_a_denoiser_that_predicts_the_mean_does_not_converge():
  sampler, path = consistency(), schedules.vp()
  assert sampler.order == 0
  error = jax.jit(lambda times, n: recursions.weak_error(sampler, path, times, n))
  errors = [error(np.resize(even_in_log_snr(path, n), 321), n) for n in (40, 320)]
  assert errors[1] > 0.9 * errors[0] > 0.01
