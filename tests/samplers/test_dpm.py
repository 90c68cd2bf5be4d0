import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import ddim
from ddpm_jax.samplers.dpm import dpm_solver
from tests.samplers.bent import PATHS, bent, times_at, walk

pytestmark = pytest.mark.usefixtures('x64')

LOG_SNRS = [-4.0, -2.5, 0.1, 1.0, 3.0]


@pytest.mark.parametrize('multistep', [False, True])
@pytest.mark.parametrize('path', PATHS)
def test_order_one_is_ddim(path, multistep):
  schedule = PATHS[path]()
  times, xT = times_at(schedule, LOG_SNRS), schedule.sigma(1.0) * jnp.array([[0.3, -1.4]])
  first, expected = (
    walk(sampler, bent(schedule), schedule, times, xT)
    for sampler in (dpm_solver(1, multistep), ddim())
  )
  for ours, theirs in zip(first, expected, strict=True):
    np.testing.assert_allclose(ours.x, theirs.x, rtol=1e-12)


def test_every_option_changes_the_method():
  schedule = schedules.vp()
  times, xT = times_at(schedule, LOG_SNRS), jnp.array([[0.3, -1.4]])
  samplers = [
    *(dpm_solver(order) for order in (1, 2, 3)),
    *(dpm_solver(order, multistep=True) for order in (2, 3)),
    *(dpm_solver(order, r1=0.4) for order in (2, 3)),
  ]
  ends = [walk(sampler, bent(schedule), schedule, times, xT)[-1].x for sampler in samplers]
  assert len({tuple(np.round(np.ravel(x), 6)) for x in ends}) == len(samplers)


@pytest.mark.parametrize(('order', 'usual'), [(2, 1 / 2), (3, 1 / 3)])
def test_it_predicts_where_the_paper_does(order, usual):
  schedule, seen = schedules.vp(), []

  def noting(xt, t):
    seen.append(float(schedule.log_snr(t)))
    return bent(schedule)(xt, t)

  for r1, first in ((None, usual), (0.25, 0.25)):
    seen.clear()
    times = times_at(schedule, [-2.0, 4.0])
    walk(dpm_solver(order, r1=r1), noting, schedule, times, jnp.ones((1, 2)))
    expected = [-2.0, -2.0 + 6 * first, -2.0 + 6 * 2 / 3][:order]
    np.testing.assert_allclose(seen, expected, atol=1e-9)


@pytest.mark.parametrize('order', [0, 4, 1.5])
def test_an_order_without_a_method_is_refused(order):
  with pytest.raises(ValueError, match=rf'^order: {order} is not one of 1, 2, 3$'):
    dpm_solver(order)


@pytest.mark.parametrize('r1', [0.0, 1.0, -0.5, float('nan')])
@pytest.mark.parametrize('order', [2, 3])
def test_a_point_that_is_not_on_the_way_is_refused(order, r1):
  with pytest.raises(ValueError, match=rf'^r1: {r1} is outside \(0, 1\)$'):
    dpm_solver(order, r1=r1)


@pytest.mark.parametrize('options', [(1, False), (2, True), (1, True)])
def test_a_point_that_nothing_uses_is_refused(options):
  with pytest.raises(ValueError, match=r'^r1: only a single-step method'):
    dpm_solver(*options, r1=0.5)
