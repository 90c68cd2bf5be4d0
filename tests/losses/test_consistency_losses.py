"""Consistency losses on Gaussian data, whose flow takes each quantile to the data's."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, schedules
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, LossContext, make_factors, start
from ddpm_jax.losses.consistency import neighbors
from tests.readouts import preconditioned, seen

pytestmark = pytest.mark.usefixtures('x64')

MEAN, VARIANCE, SIGMA_MIN = 0.3, 0.2, 0.002
COUNT = 2000
# A distance that is the square of the difference over 2 c, for differences far below c.
SQUARE = {'huber': 1e4}


def levels(schedule, t):
  return (jax.vmap(f)(t).reshape(-1, 1, 1) for f in (schedule.alpha, schedule.sigma))


def consistency_function(y, n):
  """Along the flow the deviations from the mean keep their ratio to those of the marginal."""
  return MEAN + jnp.sqrt((VARIANCE + SIGMA_MIN**2) / (VARIANCE + n**2)) * (y - MEAN)


def denoised(y, n):
  return MEAN + VARIANCE / (VARIANCE + n**2) * (y - MEAN)


def exact(schedule):
  """The teacher where params is 'T', else the student, whose output is off by params."""

  def network(params, x, t, cond, index=None, keys=None):
    alpha, sigma = levels(schedule, t)
    xt, n = x / seen('edm', alpha, sigma), sigma / alpha
    if params.ndim:
      return preconditioned(xt, denoised(xt / alpha, n), alpha, sigma, 0.0)
    inside = n > SIGMA_MIN * (1 + 1e-9)
    safe = jnp.where(inside, sigma, 2 * SIGMA_MIN * alpha)
    out = preconditioned(xt, consistency_function(xt / alpha, n), alpha, safe, SIGMA_MIN)
    return jnp.where(inside, out, 0.0) + params

  return network


TEACHER = jnp.zeros(1)


def make_context(schedule, network=None):
  parameterization = PARAMETERIZATIONS['consistency']()
  exactly = dataclasses.replace(parameterization, noise_label=lambda schedule, t: t)
  factors = make_factors('consistency_training')
  network, frozen = network or exact(schedule), {'teacher': TEACHER}
  return LossContext(network, schedule, exactly, factors, COUNT, frozen=frozen)


def evaluate(loss, context, params=0.0, state=(), count=COUNT, **options):
  index, key = jnp.arange(count), step_key(0, 0)
  keys = Keys(key, example_keys(key, index))
  draw = jax.vmap(lambda key: jax.random.normal(key, (2, 2)))
  images = MEAN + np.sqrt(VARIANCE) * draw(example_keys(jax.random.key(3), index))
  batch = {'x': images, 'cond': {}, 'index': index}
  return LOSSES[loss](context, {'network': jnp.asarray(params)}, state, batch, keys, **options)


def orders(values):
  return np.log2(np.array(values[:-1]) / np.array(values[1:]))


@pytest.mark.parametrize('path', [schedules.edm(), schedules.vp()], ids=['edm', 'vp'])
def test_distilling_an_exact_teacher_leaves_heuns_error(path):
  # The squared local error is of order 6 in the gap, and the weight one over it.
  context = make_context(path)
  values = [
    np.mean(evaluate('consistency_distillation', context, num_steps=n, **SQUARE).values)
    for n in (64, 128, 256)
  ]
  np.testing.assert_allclose(orders(values), 5, atol=0.3)


def test_training_leaves_an_error_of_the_first_order():
  # The noised data is off the flow by the gap times a deviation; squared, and over the gap.
  context = make_context(schedules.edm())
  values = [
    np.mean(
      evaluate('consistency_training', context, state=jnp.array(0), first_steps=n, **SQUARE).values
    )
    for n in (80, 160, 320)
  ]
  np.testing.assert_allclose(orders(values), 1, atol=0.1)


@pytest.mark.parametrize('loss', ['consistency_training', 'consistency_distillation'])
def test_the_exact_function_is_better_than_its_neighbors(loss):
  state = jnp.array(0) if loss == 'consistency_training' else ()
  options = {'first_steps': 40} if loss == 'consistency_training' else {'num_steps': 40}
  context = make_context(schedules.edm())

  @jax.jit
  def value(off):
    return jnp.mean(evaluate(loss, context, off, state, **options, **SQUARE).values)

  assert value(0.0) < value(0.2) and value(0.0) < value(-0.2)


def test_the_number_of_levels_doubles_to_its_last():
  context = make_context(schedules.edm())
  options = {'first_steps': 10, 'last_steps': 50, 'double_every': 100}
  for step, wanted in ((0, 10), (99, 10), (100, 20), (250, 40), (399, 50), (10**6, 50)):
    output = evaluate('consistency_training', context, state=jnp.array(step), count=2, **options)
    assert (output.metrics['levels'] == wanted).all()
    assert output.state == step + 1


def test_pairs_are_neighbors_on_karras_grid_with_their_log_normal_masses():
  context, key = make_context(schedules.edm()), step_key(0, 0)
  keys = Keys(key, example_keys(key, jnp.arange(40_000)))
  n_s, n_t = (np.asarray(n) for n in neighbors(context, keys, jnp.asarray(6.0), -1.1, 2.0))
  grid = (0.002 ** (1 / 7) + np.arange(7) / 6 * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7
  cells = np.searchsorted(grid * (1 - 1e-9), n_s, side='right') - 1
  np.testing.assert_allclose(n_s, grid[cells], rtol=1e-9)
  np.testing.assert_allclose(n_t, grid[cells + 1], rtol=1e-9)
  # Song and Dhariwal 2023, section 3.5: differences of erf over the cells' ends, normalized.
  from scipy.special import erf

  masses = np.diff(erf((np.log(grid) + 1.1) / (np.sqrt(2) * 2.0)))
  shares = np.bincount(cells, minlength=6) / cells.size
  assert np.abs(shares - masses / masses.sum()).max() < 5 * 0.5 / np.sqrt(cells.size)


def test_the_distance_is_pseudo_huber_over_the_whole_example():
  # A student of x0 = 0 but for the skip: at a gap known by hand.
  context = make_context(schedules.edm(), lambda params, x, *rest: 0 * x)
  wide, narrow = (
    evaluate('consistency_distillation', context, num_steps=1, huber=huber).values
    for huber in (1e-9, 1e4)
  )
  # |d| / gap and d² / (2 c gap), c = huber √4: together they tell the gap, sigma_max - sigma_min.
  np.testing.assert_allclose(wide**2 / narrow, 2 * 1e4 * 2 / (80 - SIGMA_MIN), rtol=1e-3)


def test_the_target_and_the_teacher_have_no_gradient():
  # Of two cells, an output that only targets have: at the last level the network says nothing.
  def network(params, x, t, cond, index=None, keys=None):
    return params * (t < 79.0).reshape(-1, 1, 1) * jnp.ones_like(x)

  context = make_context(schedules.edm(), network)

  def values(params, teacher):
    taught = dataclasses.replace(context, frozen={'teacher': teacher})
    return evaluate(
      'consistency_distillation', taught, params, count=400, num_steps=2, mean=3.0
    ).values

  by_student, by_teacher = jax.jacfwd(values, (0, 1))(0.5, jnp.asarray(0.5))
  assert not by_teacher.any()
  last = np.asarray(by_student) == 0
  assert 0 < last.sum() < 400  # the other cell trains
  changed = values(0.6, jnp.asarray(0.5)) != values(0.5, jnp.asarray(0.5))
  assert changed[last].all()


def test_the_teacher_is_frozen_and_no_part_of_what_is_trained():
  params = {'network': {'w': jnp.arange(3.0)}}
  loss, context = 'consistency_distillation', make_context(schedules.edm())
  assert start(LOSSES[loss], context, params, jax.random.key(0)) == ({}, ())
  assert evaluate(loss, context, count=2).state == ()
  # Of another teacher, the point that f is to take to the same end is another.
  off = dataclasses.replace(context, frozen={'teacher': jnp.asarray(0.1)})
  assert (evaluate(loss, off, count=2).values != evaluate(loss, context, count=2).values).all()


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'parameterization': PARAMETERIZATIONS['edm']()}, r"^parameterization: .*'consistency'"),
    ({'schedule': schedules.linear(20)}, r'^schedule\.continuous: '),
    ({'schedule': schedules.flow()}, r'^schedule: it ends at zero SNR|sigma_min'),
    ({'schedule': schedules.edm(sigma_min=0.1)}, r'sigma_min: 0\.002 is below the schedule'),
  ],
)
def test_what_has_no_consistency_function_is_refused(changes, message):
  context = dataclasses.replace(make_context(schedules.edm()), **changes)
  with pytest.raises(ValueError, match=message):
    start(LOSSES['consistency_training'], context, {'network': {}}, jax.random.key(0))
