import math

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import ddim
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2s, dpmpp_3m
from tests.samplers.bent import bent, times_at, walk

pytestmark = pytest.mark.usefixtures('x64')

LOG_SNRS = [-4.0, -2.5, 0.1, 1.0, 3.0]


def run(sampler):
  schedule = schedules.vp()
  times = times_at(schedule, LOG_SNRS)
  return schedule, times, walk(sampler, bent(schedule), schedule, times, jnp.array([[0.3, -1.4]]))


def step_with(schedule, xt, prediction, t, s):
  """A first-order step that takes `prediction` for x0."""
  h = (float(schedule.log_snr(s)) - float(schedule.log_snr(t))) / 2
  kept = schedule.sigma(s) / schedule.sigma(t)
  return kept * xt + schedule.alpha(s) * (1 - math.exp(-h)) * prediction


def test_multistep_steps_are_those_of_the_published_combination():
  schedule, times, states = run(dpmpp_2m())
  for i in range(1, len(states)):
    ratio = (LOG_SNRS[i] - LOG_SNRS[i - 1]) / (LOG_SNRS[i + 1] - LOG_SNRS[i])
    share = 1 / (2 * ratio)
    mixed = (1 + share) * states[i].x0 - share * states[i - 1].x0
    expected = step_with(schedule, states[i - 1].x, mixed, times[i], times[i + 1])
    np.testing.assert_allclose(states[i].x, expected, rtol=1e-10)


@pytest.mark.parametrize('r1', [0.5, 0.3, 0.9])
def test_single_steps_are_those_of_the_published_combination(r1):
  schedule = schedules.vp()
  (t, middle, s), xt = times_at(schedule, [-2.0, -2.0 + 3 * r1, 1.0]), jnp.array([[0.3, -1.4]])
  x0 = bent(schedule)(xt, t).x0
  x0_middle = bent(schedule)(step_with(schedule, xt, x0, t, middle), middle).x0
  mixed = (1 - 1 / (2 * r1)) * x0 + 1 / (2 * r1) * x0_middle
  x = walk(dpmpp_2s(r1), bent(schedule), schedule, [t, s], xt)[-1].x
  np.testing.assert_allclose(x, step_with(schedule, xt, mixed, t, s), rtol=1e-10)


def test_the_start_goes_up_through_the_orders():
  first, second, third = (run(sampler)[2] for sampler in (ddim(), dpmpp_2m(), dpmpp_3m()))
  np.testing.assert_allclose(third[0].x, first[0].x, rtol=1e-12)
  np.testing.assert_allclose(third[1].x, second[1].x, rtol=1e-12)
  assert np.abs(third[1].x - first[1].x).max() > 1e-4
  assert np.abs(third[2].x - second[2].x).max() > 1e-4


def test_the_published_third_order_differs_from_the_third_step_on():
  ours, published = (run(dpmpp_3m(published=choice))[2] for choice in (False, True))
  for i in (0, 1):
    np.testing.assert_allclose(ours[i].x, published[i].x, rtol=1e-12)
  assert np.abs(ours[2].x - published[2].x).max() > 1e-4


@pytest.mark.parametrize('r1', [0.0, 1.0, 1.5, float('nan')])
def test_a_point_that_is_not_on_the_way_is_refused(r1):
  with pytest.raises(ValueError, match=rf'^r1: {r1} is outside \(0, 1\)$'):
    dpmpp_2s(r1)
