"""What holds of every sampler under `sample`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.errors import InputError
from ddpm_jax.samplers import NOISES, SAMPLERS, Step, ddim, prior_sample, sample, time_grid

# A noisy member of each family.
EVERY = {
  'ancestral': SAMPLERS['ancestral']('small'),
  'ddim': SAMPLERS['ddim'](0.7),
}


def test_no_sampler_is_left_out():
  assert set(EVERY) == set(SAMPLERS)


@pytest.fixture(params=EVERY)
def sampler(request):
  return EVERY[request.param]


@pytest.fixture
def world(make_world):
  return make_world()


def run(world, sampler, xT, keys, denoiser=None, num_steps=6, **options):
  times = time_grid('trailing', world.schedule, num_steps)
  return sample(sampler, denoiser or world.denoiser, world.schedule, times, xT, keys, **options)


def test_a_sample_depends_on_its_own_key_and_start_alone(world, make_keys, sampler):
  xT, keys = world.begin(50, 8), make_keys(8)
  together = run(world, sampler, xT, keys)
  shuffled = np.random.default_rng(0).permutation(8)
  for rows in (shuffled[:3], shuffled):
    np.testing.assert_allclose(
      run(world, sampler, xT[rows], keys[rows]), together[rows], rtol=1e-12
    )
  other = run(world, sampler, xT, make_keys(8, seed=2))
  assert (jnp.abs(other - together) > 1e-6).all()


def test_the_last_step_is_the_denoisers_x0(world, make_keys, sampler):
  xT, keys = world.begin(50, 4), make_keys(4)
  kept = run(world, sampler, xT, keys, final='keep')
  last = time_grid('trailing', world.schedule, 6)[-1]
  np.testing.assert_allclose(
    run(world, sampler, xT, keys), world.denoiser(kept, last).x0, rtol=1e-12
  )


@pytest.mark.parametrize(('final', 'length'), [('denoise', 7), ('keep', 6)])
def test_the_path_goes_from_the_start_to_the_sample(world, make_keys, sampler, final, length):
  xT, keys = world.begin(50, 4), make_keys(4)
  x, path = run(world, sampler, xT, keys, return_path=True, final=final)
  assert path.shape == (length, 4, 3)
  np.testing.assert_array_equal(path[0], xT)
  np.testing.assert_array_equal(path[-1], x)
  np.testing.assert_allclose(x, run(world, sampler, xT, keys, final=final), rtol=1e-12)


@pytest.mark.parametrize(('final', 'length'), [('denoise', 2), ('keep', 1)])
def test_one_time_is_one_evaluation(world, make_keys, sampler, final, length):
  xT = world.begin(50, 4)
  x, path = run(world, sampler, xT, make_keys(4), num_steps=1, return_path=True, final=final)
  expected = world.denoiser(xT, 50).x0 if final == 'denoise' else xT
  np.testing.assert_allclose(x, expected, rtol=1e-12)
  assert path.shape == (length, 4, 3)


def test_n_times_cost_n_evaluations(world, make_keys, sampler):
  times_seen = []

  def counting(xt, t):
    jax.debug.callback(lambda time: times_seen.append(int(time)), t)
    return world.denoiser(xt, t)

  run(world, sampler, world.begin(50, 4), make_keys(4), counting)
  jax.effects_barrier()
  assert sorted(times_seen) == sorted(time_grid('trailing', world.schedule, 6).tolist())


def test_the_state_keeps_the_last_prediction(world, sampler):
  xt, times = world.begin(50, 4), jnp.array([50, 20])
  state = sampler.init(world.schedule, times, xt)
  assert state._fields[:2] == ('x', 'x0')
  step = Step(times[0], times[1], jnp.array(0))
  state = sampler.update(world.schedule, world.denoiser, state, step, lambda *_: xt)
  np.testing.assert_allclose(state.x0, world.denoiser(xt, 50).x0, rtol=1e-12)


def test_compiled_once_it_gives_what_it_gives_eagerly(world, make_keys, sampler):
  traces = []

  @jax.jit
  def compiled(xT, keys):
    traces.append(xT.shape)
    return run(world, sampler, xT, keys)

  for seed in (1, 2):
    xT, keys = world.begin(50, 4, seed), make_keys(4, seed)
    np.testing.assert_allclose(compiled(xT, keys), run(world, sampler, xT, keys), rtol=1e-10)
  assert len(traces) == 1


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
