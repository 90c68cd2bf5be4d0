"""Progressive distillation against the sampler whose two steps it teaches as one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, Denoised, schedules
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, WEIGHTS, LossContext, make_factors, start
from ddpm_jax.losses.context import noise_like
from ddpm_jax.losses.timestep_distributions import uniforms
from ddpm_jax.samplers import ddim, sample, time_grid
from ddpm_jax.theory.oracle import GaussianData

pytestmark = pytest.mark.usefixtures('x64')

PATHS = {
  'chain': lambda: schedules.linear(24, 0.01, 0.4),
  'vp': schedules.vp,
  'flow': schedules.flow,
}
COUNT, NUM_STEPS = 64, 4


def data(variance=0.3):
  return GaussianData(jnp.array([[0.2, -0.4]]), jnp.array(variance))


def network_on(schedule, oracle):
  """The teacher, exact, where params is the scalar 0; a student says params itself as x0."""

  def network(params, x, t, cond, index=None, keys=None):
    times = jnp.round(t).astype(int) if isinstance(schedule, schedules.Discrete) else t / 1000
    mean = jax.vmap(lambda x, t: oracle.posterior(schedule, x, t).mean)
    return params if params.ndim else mean(x, times)

  return network


def make_context(schedule, variance=0.3):
  x0 = PARAMETERIZATIONS['x0']()
  exact = type(x0)(x0.row, lambda schedule, t: schedule.network_time(t))
  factors = make_factors('progressive', weight=WEIGHTS['output'])
  network, frozen = network_on(schedule, data(variance)), {'teacher': jnp.zeros(())}
  return LossContext(network, schedule, exact, factors, COUNT, frozen=frozen)


def setting():
  index, key = jnp.arange(COUNT), step_key(0, 0)
  images = jax.vmap(data().sample)(example_keys(jax.random.key(1), index))
  return {'x': images, 'cond': {}, 'index': index}, Keys(key, example_keys(key, index))


@pytest.mark.parametrize('path', PATHS)
def test_one_step_of_ddim_with_the_target_is_two_of_the_teacher(path):
  schedule, (batch, keys) = PATHS[path](), setting()
  context = make_context(schedule)

  @jax.jit
  def loss(said):
    params = {'network': said}
    return jnp.sum(
      LOSSES['progressive'](context, params, (), batch, keys, num_steps=NUM_STEPS).values
    )

  # The loss of x0 is mean (said - target)², hence the target by its slope at zero.
  targets = -jax.grad(loss)(jnp.zeros_like(batch['x']))
  grid = time_grid('trailing', schedule, 2 * NUM_STEPS)
  place = 2 * np.floor(NUM_STEPS * np.asarray(uniforms(keys.step, batch['index']))).astype(int)
  assert set(place) == {0, 2, 4, 6}
  eps = noise_like(batch['x'], keys)
  for first in (0, 2, 4, 6):
    rows = place == first
    t = grid[first]
    xt = schedule.alpha(t) * batch['x'][rows] + schedule.sigma(t) * eps[rows]
    last = first == 6  # its second step is the one to data
    final = 'denoise' if last else 'keep'
    ends = [
      sample(ddim(), denoiser, schedule, times, xt, keys.examples[rows], final=final)
      for denoiser, times in (
        (data().denoiser(schedule), grid[first : first + 3]),
        (lambda x, t, to=targets[rows]: Denoised(to), grid[first : first + 3 : 2]),
      )
    ]
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-5, atol=1e-6)


def test_a_teacher_of_straight_paths_has_nothing_to_teach_its_twin():
  for path, schedule in PATHS.items():
    batch, keys = setting()
    params, context = {'network': jnp.zeros(())}, make_context(schedule(), 0.0)
    values = LOSSES['progressive'](context, params, (), batch, keys).values
    np.testing.assert_allclose(values, 0, atol=1e-12, err_msg=path)
    # On data with a variance the same twin errs: its one long step is not two short ones.
    values = LOSSES['progressive'](make_context(schedule()), params, (), batch, keys).values
    assert values.mean() > 1e-6


def test_the_teacher_is_frozen_and_has_no_gradient():
  batch, keys = setting()
  params = {'network': {'w': jnp.arange(3.0)}}
  context = make_context(schedules.vp())
  assert start(LOSSES['progressive'], context, params, jax.random.key(0)) == ({}, ())

  def network(params, x, *rest):
    return params * x

  context = dataclasses.replace(context, network=network)

  def value(params, teacher):
    taught = dataclasses.replace(context, frozen={'teacher': teacher})
    output = LOSSES['progressive'](taught, {'network': params}, (), batch, keys)
    assert output.state == ()
    return jnp.sum(output.values)

  by_student, by_teacher = jax.grad(value, (0, 1))(jnp.asarray(0.4), jnp.asarray(0.5))
  assert by_student != 0 and by_teacher == 0
  assert value(0.4, 0.5) != value(0.4, 0.6)  # yet it is read


def test_an_examples_value_is_its_own():
  batch, keys = setting()
  context, params = make_context(PATHS['vp']()), {'network': jnp.zeros(())}
  together = LOSSES['progressive'](context, params, (), batch, keys).values
  part = jax.tree.map(lambda leaf: leaf[10:14], batch)
  own = Keys(keys.step, keys.examples[10:14])
  alone = LOSSES['progressive'](context, params, (), part, own).values
  np.testing.assert_allclose(alone, together[10:14], rtol=1e-9)


def test_more_steps_than_the_chain_has_are_refused():
  context = make_context(PATHS['chain']())
  loss = functools.partial(LOSSES['progressive'], num_steps=14)
  with pytest.raises(ValueError, match=r"^num_steps: 14, .* 28 is more than the chain's 24"):
    start(loss, context, {'network': {}}, jax.random.key(0))
