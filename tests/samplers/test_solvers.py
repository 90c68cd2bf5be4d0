"""Adaptive solves against the closed-form flow of Gaussian data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import precision

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers.solvers import SOLVERS, solve
from tests.samplers.orders import DATA, begin, flow

pytestmark = pytest.mark.usefixtures('x64')

PATHS = {
  'vp': schedules.vp,
  'flow': schedules.flow,
  'interpolated': lambda: schedules.interpolate(schedules.linear(100, 0.001, 0.1)),
}
# With tolerances for which a solver of its order needs a few hundred evaluations.
ADAPTIVE = {
  'heun12': SOLVERS['heun12'](1e-4, 1e-4),
  'bosh3': SOLVERS['bosh3'](1e-5, 1e-5),
  'dopri5': SOLVERS['dopri5'](),
  'tsit5': SOLVERS['tsit5'](1e-7, 1e-7),
  'dopri8': SOLVERS['dopri8'](1e-9, 1e-9),
}


def test_no_solver_is_left_out():
  assert set(ADAPTIVE) == set(SOLVERS)


@partial(jax.jit, static_argnums=0)
def solved(solver, schedule, x, t, s):
  return solve(solver, schedule, DATA.denoiser(schedule), x, t, s)


@pytest.mark.parametrize('name', SOLVERS)
def test_they_follow_the_flow_both_ways_within_their_tolerance(name):
  schedule, solver = schedules.vp(), ADAPTIVE[name]
  for t, s in ((1.0, 0.01), (0.01, 1.0)):
    x = begin(schedule, t)
    error = np.abs(solved(solver, schedule, x, t, s).x - flow(schedule, x, t, s)).max()
    # What each step may err adds up over the steps, and grows with the flow.
    assert solver.rtol / 100 < error < 30 * solver.rtol


def test_all_paths_are_one_in_y_and_n_and_cost_the_same():
  solver, y = ADAPTIVE['dopri5'], jnp.array([[10.0, -3.0, 2.0], [1.0, 0.0, -7.0]])
  ends, costs = [], []
  for path in PATHS.values():
    schedule = path()
    t, s = schedule.time(-3.0), schedule.time(4.0)
    solution = solved(solver, schedule, schedule.alpha(t) * y, t, s)
    ends.append(solution.x / schedule.alpha(s))
    costs.append(solution.evaluations)
  for end, cost in zip(ends[1:], costs[1:], strict=True):
    np.testing.assert_allclose(end, ends[0], rtol=1e-6)
    np.testing.assert_array_equal(cost, costs[0])


@pytest.mark.parametrize('name', ['heun12', 'dopri5'])
def test_they_count_their_evaluations(name):
  # The one keeps no evaluation from a step to the next, the other does.
  schedule, solver, calls = schedules.vp(), ADAPTIVE[name], []

  def called(x):
    calls.append(1)
    return np.asarray(x)

  def counting(xt, t):
    like = jax.ShapeDtypeStruct(xt.shape, xt.dtype)
    xt = jax.pure_callback(called, like, xt, vmap_method='sequential')
    return DATA.denoiser(schedule)(xt, t)

  # From where the first step is too long, so that some are rejected.
  x = begin(schedule, 1e-4)[:1]
  solution = jax.jit(lambda x: solve(solver, schedule, counting, x, 1e-4, 1.0))(x)
  np.testing.assert_array_equal(solution.evaluations, [len(calls)])


def test_examples_do_not_depend_on_their_batch():
  schedule, solver = schedules.vp(), ADAPTIVE['dopri5']
  x = jnp.array([[0.1, 0.2, 0.3], [30.0, -5.0, 0.0], [-1.0, 1.0, 9.0]])
  one, other = (solved(solver, schedule, x[jnp.array([0, i])], 1.0, 0.01) for i in (1, 2))
  assert one.evaluations[1] != other.evaluations[1]
  np.testing.assert_array_equal(one.x[0], other.x[0])
  assert one.evaluations[0] == other.evaluations[0]


@pytest.mark.parametrize('double', [True, False], ids=['double', 'single'])
def test_noise_alone_is_a_time_like_others(double):
  schedule, solver = schedules.flow(), ADAPTIVE['dopri5']
  assert schedule.alpha(1.0) == 0
  x = np.asarray(begin(schedule, 1.0))
  exact = np.asarray(flow(schedule, x, 1.0, 0.01))
  with precision(double):
    end = solved(solver, schedule, jnp.asarray(x), 1.0, 0.01).x
    back = solved(solver, schedule, end, 0.01, 1.0).x
  assert end.dtype == (jnp.float64 if double else jnp.float32)
  np.testing.assert_allclose(end, exact, atol=2e-4)
  np.testing.assert_allclose(back, x, atol=2e-3)


def test_a_solver_is_a_differentiable_function_of_schedule_denoiser_x_t_and_s():
  schedule, solver = schedules.vp(), SOLVERS['bosh3'](1e-4, 1e-4)

  def total(x):
    return jnp.sum(solver(schedule, DATA.denoiser(schedule), x, 1.0, 0.01))

  x = begin(schedule, 1.0)
  end, slopes = jax.jit(jax.value_and_grad(total))(x)
  exact = flow(schedule, x, 1.0, 0.01)
  np.testing.assert_allclose(end, jnp.sum(exact), atol=1e-2)
  np.testing.assert_allclose(slopes, flow(schedule, x + 1, 1.0, 0.01) - exact, rtol=1e-2)


def test_chains_are_refused_and_told_what_to_use():
  chain = schedules.linear(10)
  with pytest.raises(TypeError, match='use schedules.interpolate'):
    SOLVERS['dopri5']()(chain, DATA.denoiser(chain), jnp.zeros((1, 3)), 10, 1)


def test_too_few_steps_are_an_error():
  schedule, solver = schedules.vp(), SOLVERS['dopri5'](max_steps=3)
  with pytest.raises(RuntimeError, match='maximum number of solver steps'):
    jax.block_until_ready(solved(solver, schedule, begin(schedule, 1.0), 1.0, 0.01))


@pytest.mark.parametrize('field', ['rtol', 'atol', 'max_steps'])
@pytest.mark.parametrize('name', SOLVERS)
def test_bad_tolerances_are_refused_by_their_name(name, field):
  with pytest.raises(ValueError, match=rf'^{field}: 0 is outside'):
    SOLVERS[name](**{field: 0})
