"""The orders that samplers state, from pure noise and in mid-path, and what keeps them there."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import SAMPLERS, midway, num_evaluations, sample
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_3m
from ddpm_jax.samplers.multistep import deis, lms, plms, pndm
from ddpm_jax.samplers.unified_corrector import unipc
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers.bent import bent
from tests.samplers.orders import even_in_log_snr, even_in_root, even_in_sigma, slope, trailing

pytestmark = pytest.mark.usefixtures('x64')

# Of the whole path but its last part, and of its second half.
TOP = {
  'log_snr': partial(even_in_log_snr, first=-10.0, last=2.5),
  'karras': partial(even_in_root, first=-10.0, last=2.5),
}
MIDDLE = {'log_snr': partial(even_in_log_snr, first=-1.5, last=2.5), 'karras': even_in_root}
EVEN = partial(even_in_sigma, first=2.0, last=0.3)

DETERMINISTIC = {
  name: make() for name, make in SAMPLERS.items() if not make().stochastic and make().order
}
# In mid-path.
KEPT = {'dpmpp_3m': dpmpp_3m(), 'lms of 3': lms(3), 'lms': lms(4), 'deis of 4': deis(4)}


def measured(sampler, grid):
  return slope(sampler, schedules.vp(), grid, counts=(80, 160, 320))


@pytest.mark.parametrize('name', DETERMINISTIC)
def test_every_sampler_has_the_order_that_it_states(name):
  sampler = DETERMINISTIC[name]
  for grid in TOP.values():
    assert sampler.order - 0.2 < measured(sampler, grid) < sampler.order + 0.3
  started = midway(sampler)
  for grid in MIDDLE.values():
    assert sampler.order - 0.2 < measured(started, grid) < sampler.order + 0.3
  highest = max(sampler.order, sampler.order_even)
  assert highest - 0.2 < measured(started, EVEN) < highest + 0.3


@pytest.mark.parametrize('name', KEPT)
def test_in_mid_path_the_first_step_alone_would_leave_order_two(name):
  sampler = KEPT[name]
  assert 1.9 < measured(sampler, MIDDLE['log_snr']) < 2.2
  assert measured(midway(sampler), MIDDLE['log_snr']) > sampler.order - 0.1


def test_unipc_of_three_is_of_order_three_in_mid_path():
  # Its corrector makes its first step one of order 2.
  assert unipc(3).order == 4
  assert 2.9 < measured(unipc(3), MIDDLE['log_snr']) < 3.3


@pytest.mark.parametrize('sampler', [dpmpp_2m(), dpmpp_3m()], ids=['dpmpp_2m', 'dpmpp_3m'])
def test_on_trailing_no_method_in_log_snr_reaches_two(sampler):
  # The last steps halve sigma / alpha, however many there are.
  assert 1.2 < measured(sampler, trailing) < 1.9


@pytest.mark.parametrize(
  'sampler', [dpmpp_2m(), unipc(3), plms(), pndm()], ids=['dpmpp_2m', 'unipc', 'plms', 'pndm']
)
def test_a_sampler_that_gains_nothing_comes_back_as_it_is(sampler):
  assert midway(sampler) is sampler


def test_it_costs_the_evaluations_that_it_says():
  schedule, sampler, calls = schedules.vp(), midway(dpmpp_3m()), []

  def counting(xt, t):
    jax.debug.callback(lambda: calls.append(1))
    return bent(schedule)(xt, t)

  times, keys = MIDDLE['log_snr'](schedule, 5), jax.random.split(jax.random.key(0), 1)
  sample(sampler, counting, schedule, times, jnp.ones((1, 2)), keys)
  jax.effects_barrier()
  assert len(calls) == num_evaluations(sampler, 6)


def test_zero_snr_is_a_start_like_others():
  # For one point as data every x0 is that point.
  schedule, point = schedules.flow(), GaussianData(jnp.array([0.4, -0.7]), jnp.zeros(2))
  times, keys = jnp.array([1.0, 0.7, 0.4, 0.1]), jax.random.split(jax.random.key(0), 1)
  x = sample(midway(lms(4)), point.denoiser(schedule), schedule, times, jnp.ones((1, 2)), keys)
  np.testing.assert_allclose(x, point.mean[None], atol=1e-9)
