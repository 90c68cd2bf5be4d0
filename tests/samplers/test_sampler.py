"""What holds of every sampler under `sample`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import (
  NOISES,
  SAMPLERS,
  Step,
  ddim,
  num_evaluations,
  prior_sample,
  sample,
  time_grid,
)
from ddpm_jax.theory.oracle import GaussianData
from tests.samplers import few_steps

# Those with a noisy member that is not the default.
OPTIONS = {'ddim': {'eta': 0.7}}
# One of each kind: of one step, of several stages, with noise within, with a memory, corrected.
KINDS = ['ancestral', 'ddim', 'heun', 'edm', 'dpmpp_2m', 'unipc']


def make(name):
  return SAMPLERS[name](**OPTIONS.get(name, {}))


@pytest.fixture
def sampler(request):
  return make(request.param)


every = pytest.mark.parametrize('sampler', SAMPLERS, indirect=True)
kinds = pytest.mark.parametrize('sampler', KINDS, indirect=True)


@pytest.fixture
def world(make_world):
  """On a chain's continuous reading, since some ask for times between."""
  world = make_world()
  return world._replace(schedule=schedules.interpolate(world.schedule))


def run(world, sampler, xT, keys, denoiser=None, num_steps=6, **options):
  times = time_grid('trailing', world.schedule, num_steps)
  return sample(sampler, denoiser or world.denoiser, world.schedule, times, xT, keys, **options)


@every
def test_a_sample_depends_on_its_own_key_and_start_alone(world, make_keys, sampler):
  xT, keys = world.begin(50, 8), make_keys(8)
  traces = []

  @jax.jit
  def compiled(xT, keys):
    traces.append(xT.shape)
    return run(world, sampler, xT, keys)

  together = compiled(xT, keys)
  assert np.isfinite(together).all()
  shuffled = np.random.default_rng(0).permutation(8)
  for rows in (shuffled[:3], shuffled):
    np.testing.assert_allclose(compiled(xT[rows], keys[rows]), together[rows], rtol=1e-10)
  moved = np.abs(compiled(xT, make_keys(8, seed=2)) - together) > 1e-6
  assert (moved == sampler.stochastic).all()
  assert traces == [(8, 3), (3, 3)], 'a program for each shape, and no other'


@every
def test_it_costs_the_evaluations_that_it_says(world, make_keys, sampler):
  times_seen = []

  def counting(xt, t):
    jax.debug.callback(lambda time: times_seen.append(float(time)), t)
    return world.denoiser(xt, t)

  for num_steps in (1, 6):
    times_seen.clear()
    run(world, sampler, world.begin(50, 2), make_keys(2), counting, num_steps)
    jax.effects_barrier()
    assert len(times_seen) == num_evaluations(sampler, num_steps)
  if not sampler.between and sampler.evaluations == 1 and not sampler.startup:
    np.testing.assert_allclose(sorted(times_seen), sorted(time_grid('trailing', world.schedule, 6)))


@every
def test_it_is_finite_from_zero_snr_on_and_a_point_mass_is_found(sampler, make_keys, x64):
  # The flow path ends at alpha = 0. For one point as data every x0 is that point.
  path, point = schedules.flow(), GaussianData(jnp.array([0.4, -0.7]), jnp.zeros(2))
  times = time_grid('trailing', path, 8)
  xT = prior_sample(path, times[0], make_keys(3), (2,))

  @jax.jit
  def compiled(xT):
    return sample(sampler, point.denoiser(path), path, times, xT, make_keys(3))

  np.testing.assert_allclose(compiled(xT), jnp.broadcast_to(point.mean, (3, 2)), atol=1e-9)
  slope = jax.jit(jax.grad(lambda xT: jnp.sum(compiled(xT))))(xT)
  np.testing.assert_allclose(slope, 0, atol=1e-9)


@pytest.fixture(scope='module')
def runs_of_few_steps():
  return few_steps.stacked()


# Beside the defaults, the members whose formulas have roots and logarithms of their own.
OTHERS = [('ddim', {'eta': 1.0}), ('ddim', {'eta': 0.7}), ('dpm2_ancestral', {'eta': 0.5})]


@pytest.mark.parametrize('name, options', [*((name, {}) for name in SAMPLERS), *OTHERS])
def test_every_path_and_grid_of_few_steps_is_finite_in_single_precision(
  runs_of_few_steps, name, options
):
  names, *cases = runs_of_few_steps
  finite = np.isfinite(few_steps.finals(SAMPLERS[name](**options), *cases)).all(axis=(1, 2))
  assert finite.all(), [which for which, fine in zip(names, finite, strict=True) if not fine]


@pytest.mark.slow
@pytest.mark.parametrize('path', few_steps.paths())
@pytest.mark.parametrize('name', SAMPLERS)
def test_so_it_is_by_sample_itself(make_keys, name, path):
  schedule = few_steps.paths()[path]
  keys, variance = make_keys(64), few_steps.VARIANCE
  data = GaussianData(jnp.zeros(4), jnp.full(4, variance))

  @jax.jit
  def run(times):
    xT = prior_sample(schedule, times[0], keys, (4,))
    return sample(make(name), data.denoiser(schedule), schedule, times, xT, keys)

  for which, times in few_steps.grids(schedule):
    assert np.isfinite(run(jnp.asarray(times))).all(), which


@kinds
def test_the_last_step_is_the_denoisers_x0(world, make_keys, sampler):
  xT, keys = world.begin(50, 4), make_keys(4)
  kept = run(world, sampler, xT, keys, final='keep')
  last = time_grid('trailing', world.schedule, 6)[-1]
  np.testing.assert_allclose(
    run(world, sampler, xT, keys), world.denoiser(kept, last).x0, rtol=1e-12
  )


@kinds
def test_the_path_goes_from_the_start_to_the_sample(world, make_keys, sampler):
  xT, keys = world.begin(50, 4), make_keys(4)
  for final, length in (('denoise', 7), ('keep', 6)):
    x, path = run(world, sampler, xT, keys, return_path=True, final=final)
    assert path.shape == (length, 4, 3)
    np.testing.assert_array_equal(path[0], xT)
    np.testing.assert_array_equal(path[-1], x)
    np.testing.assert_allclose(x, run(world, sampler, xT, keys, final=final), rtol=1e-12)


@kinds
def test_one_time_is_one_evaluation(world, make_keys, sampler):
  xT = world.begin(50, 4)
  for final, length in (('denoise', 2), ('keep', 1)):
    x, path = run(world, sampler, xT, make_keys(4), num_steps=1, return_path=True, final=final)
    expected = world.denoiser(xT, 50.0).x0 if final == 'denoise' else xT
    np.testing.assert_allclose(x, expected, rtol=1e-12)
    assert path.shape == (length, 4, 3)


@every
def test_the_state_begins_with_x_and_the_prediction(world, sampler):
  xt, times = world.begin(50, 4), jnp.array([50.0, 20.0])
  state = sampler.init(world.schedule, times, xt)
  assert state._fields[:2] == ('x', 'x0')
  np.testing.assert_array_equal(state.x, xt)


@kinds
def test_compiled_it_gives_what_it_gives_eagerly(world, make_keys, sampler):
  xT, keys = world.begin(50, 4), make_keys(4)
  eager = run(world, sampler, xT, keys)
  np.testing.assert_allclose(
    jax.jit(lambda xT, keys: run(world, sampler, xT, keys))(xT, keys), eager, rtol=1e-10
  )


@kinds
def test_gradients_reach_the_start(world, make_keys, sampler):
  # The run is affine, each dimension by itself: its slope is a difference of two runs.
  xT, keys = world.begin(50, 4), make_keys(4)
  slope = jax.grad(lambda x: jnp.sum(run(world, sampler, x, keys)))(xT)
  np.testing.assert_allclose(
    slope, run(world, sampler, xT + 1, keys) - run(world, sampler, xT, keys), rtol=1e-9
  )


@pytest.mark.parametrize('name', NOISES)
def test_noise_is_standard_normal_and_new_at_each_step_and_draw(world, make_keys, name):
  count = 5000
  keys, like = make_keys(count), jnp.zeros((count, 2))

  def draw(index, number):
    t, s = ((20, 10), (10, 7))[index]
    step = Step(jnp.array(t), jnp.array(s), jnp.array(index))
    return NOISES[name](world.schedule, keys, like, step)(t, s, number)

  draws = [draw(index, number) for index in (0, 1) for number in (0, 1)]
  z = np.concatenate(draws, axis=1)
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
  assert np.abs(z.T @ z / count - np.eye(8)).max() < 5 * np.sqrt(2 / count)


def test_the_start_is_the_marginal_of_standard_normal_data(make_world, make_keys):
  world, count = make_world(1.0, (0.0, 0.0, 0.0)), 20_000
  for t in (50, 10):
    x = prior_sample(world.schedule, t, make_keys(count), (3,))
    mean, variance = world.marginal(t)
    z = (np.asarray(x) - mean) / np.sqrt(variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
    assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)


def test_starts_depend_on_their_own_keys_and_differ_from_the_steps_noise(world, make_keys):
  keys = make_keys(6)
  together = prior_sample(world.schedule, 50, keys, (3,))
  np.testing.assert_array_equal(together[2:4], prior_sample(world.schedule, 50, keys[2:4], (3,)))
  step = Step(jnp.array(20), jnp.array(10), jnp.array(0))
  noise = NOISES['white'](world.schedule, keys, together, step)(20, 10)
  assert not np.isclose(noise, together).any()


def test_unknown_ends_and_noises_are_refused(world, make_keys):
  with pytest.raises(ValueError, match="final: 'denoised' is not one of denoise, keep"):
    run(world, ddim(), world.begin(50, 1), make_keys(1), final='denoised')
  with pytest.raises(InputError, match="noise: 'wite' is not one of .*did you mean 'white'"):
    run(world, ddim(), world.begin(50, 1), make_keys(1), noise='wite')
