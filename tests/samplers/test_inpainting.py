"""Inpainting of Gaussian data, where the open part given the known one is Gaussian and known."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import (
  Sampler,
  Step,
  ancestral,
  ddim,
  num_evaluations,
  prior_sample,
  sample,
  time_grid,
)
from ddpm_jax.samplers.inpainting import keep_known, repaint, replacement
from ddpm_jax.theory.oracle import GaussianData, correlated

pytestmark = pytest.mark.usefixtures('x64')

# Two correlated pixels, of which the first is known.
MEAN = np.array([0.3, -0.2])
COVARIANCE = np.array([[1.0, 0.8], [0.8, 1.0]])
KNOWN, MASK = np.array([[1.5, 0.0]]), np.array([[True, False]])
# The second one given the first, by regression.
OPEN_MEAN = -0.2 + 0.8 * (1.5 - 0.3)
OPEN_VARIANCE = 1 - 0.8**2

METHODS = {'replacement': replacement, 'repaint': repaint}


def world(num_steps=20):
  """The path, the times, and the exact denoiser with the known part put in."""
  schedule = schedules.vp()
  times = time_grid('log_snr', schedule, num_steps)
  denoiser = keep_known(correlated(MEAN, COVARIANCE).denoiser(schedule), KNOWN, MASK)
  return schedule, times, denoiser


def draw(sampler, keys, num_steps=20, **options):
  schedule, times, denoiser = world(num_steps)

  @jax.jit
  def run(keys):
    xT = prior_sample(schedule, times[0], keys, (2,))
    return sample(sampler, denoiser, schedule, times, xT, keys, **options)

  return run(keys)


def without_noise(sampler, denoiser, schedule, times, x):
  """The last state of a run whose every draw is zero."""

  @jax.jit
  def run(x):
    def update(state, step):
      return sampler.update(schedule, denoiser, state, step, lambda *_: jnp.zeros_like(x)), None

    steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
    return jax.lax.scan(update, sampler.init(schedule, times, x), steps)[0]

  return run(x)


def mean_of(sampler, num_steps=20):
  """The samples' mean, exactly: all here is affine in the noise, so that it is had without any."""
  schedule, times, denoiser = world(num_steps)
  state = without_noise(sampler, denoiser, schedule, times, jnp.zeros((1, 2)))
  return float(denoiser(state.x, times[-1]).x0[0, 1])


def test_repainting_converges_to_the_conditional_mean_and_replacement_does_not():
  # Half of replacement's error is gone at once, and all but a hundredth of the mean in the end.
  def error(method, num_steps, *options):
    return abs(mean_of(method(ancestral('optimal'), KNOWN, MASK, *options), num_steps) - OPEN_MEAN)

  assert error(replacement, 20) > error(replacement, 320) > 0.3
  errors = [error(repaint, 40, resample) for resample in (1, 4, 32, 256)]
  assert (np.diff(errors) < 0).all()
  assert errors[1] < 0.5 * errors[0]
  assert errors[-1] < 0.01 * OPEN_MEAN
  assert error(repaint, 40, 32, 3) < 0.1 * errors[0]


def test_repainted_samples_have_the_conditional_moments(make_keys):
  # Five standard errors, and what the test before allows for the bias of 60 repetitions.
  count = 3000
  x = np.asarray(draw(repaint(ancestral('optimal'), KNOWN, MASK, 60), make_keys(count)))[:, 1]
  assert abs(x.mean() - OPEN_MEAN) < 5 * np.sqrt(OPEN_VARIANCE / count) + 0.02
  assert abs(x.var() / OPEN_VARIANCE - 1) < 5 * np.sqrt(2 / count) + 0.02


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('sampler', [ddim(), ancestral()], ids=['ddim', 'ancestral'])
def test_known_pixels_are_kept_exactly_and_open_ones_are_drawn(make_keys, method, sampler):
  x = np.asarray(draw(METHODS[method](sampler, KNOWN, MASK), make_keys(5)))
  np.testing.assert_array_equal(x[:, 0], 1.5)
  assert len(set(x[:, 1])) == 5


@pytest.mark.parametrize('method', METHODS)
def test_on_the_way_the_known_part_has_its_own_noise_of_the_right_level(make_keys, method):
  count, num_steps = 4000, 5
  sampler = METHODS[method](ancestral(), KNOWN, MASK)
  schedule, times, _ = world(num_steps)
  _, path = draw(sampler, make_keys(count), num_steps, return_path=True, final='keep')
  alpha, sigma = (jax.vmap(level)(times)[1:, None] for level in (schedule.alpha, schedule.sigma))
  eps = np.asarray((path[1:, :, 0] - alpha * 1.5) / sigma)
  assert np.abs(eps.mean(axis=1)).max() < 5 / np.sqrt(count)
  # Independent from step to step.
  assert np.abs(eps @ eps.T / count - np.eye(num_steps - 1)).max() < 5 * np.sqrt(2 / count)


@pytest.mark.parametrize('jump', [1, 2, 4])
def test_with_nothing_known_repainting_keeps_every_marginal(make_keys, jump):
  # The exact reverse step and the forward one undo each other in distribution.
  count, schedule = 4000, schedules.vp()
  data = GaussianData(jnp.array([0.4, -0.7]), jnp.array([0.3, 2.0]))
  times = time_grid('log_snr', schedule, 5)
  sampler = repaint(ancestral('optimal'), jnp.zeros((1, 2)), jnp.zeros((1, 2), bool), 3, jump)
  first = data.marginal(schedule, times[0])

  @jax.jit
  def run(keys):
    xT = jax.vmap(first.sample)(jax.random.normal(jax.random.key(5), (count, 2)))
    arguments = (sampler, data.denoiser(schedule), schedule, times, xT, keys)
    return sample(*arguments, return_path=True, final='keep')[1]

  for x, t in zip(run(make_keys(count)), times, strict=True):
    marginal = data.marginal(schedule, t)
    mean, variance = (np.asarray(moment) for moment in marginal)
    z = (np.asarray(x) - mean) / np.sqrt(variance)
    assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
    assert np.abs(z.T @ z / count - np.eye(2)).max() < 5 * np.sqrt(2 / count)


def test_one_repetition_is_replacement(make_keys):
  for jump in (1, 3):
    np.testing.assert_allclose(
      draw(repaint(ancestral(), KNOWN, MASK, 1, jump), make_keys(4)),
      draw(replacement(ancestral(), KNOWN, MASK), make_keys(4)),
      rtol=1e-12,
    )


@pytest.mark.parametrize('method', METHODS)
def test_a_sample_depends_on_its_own_key_alone(make_keys, method):
  sampler, keys = METHODS[method](ancestral(), KNOWN, MASK), make_keys(6)
  together = draw(sampler, keys)
  np.testing.assert_allclose(draw(sampler, keys[2:4]), together[2:4], rtol=1e-9)


class Diary(NamedTuple):
  """In x the times of all updates, the last first; in the rest what a history would be."""

  x: jax.Array
  x0: jax.Array
  count: jax.Array
  last: jax.Array


def write(schedule, denoiser, state, step, noise):
  """Notes the time, negative where the history is not of a time above, or not of all of them."""
  as_ever = (state.last > step.t) & (state.count == step.index)
  x = jnp.roll(state.x, 1).at[0, 0].set(jnp.where(as_ever, step.t, -step.t))
  return Diary(x, state.x0, state.count + 1, step.t)


DIARY = Sampler(lambda schedule, times, x: Diary(x, x, jnp.array(0), jnp.array(jnp.inf)), write)


@pytest.mark.parametrize(
  ('resample', 'jump', 'visited'),
  [
    (1, 2, [5, 4, 3, 2]),
    (3, 1, [5, 5, 5, 4, 4, 4, 3, 3, 3, 2, 2, 2]),
    (2, 2, [5, 4, 5, 4, 3, 2, 3, 2]),
    (2, 4, [5, 4, 3, 2, 5, 4, 3, 2]),
    (2, 3, [5, 4, 3, 5, 4, 3, 2]),
    (2, 5, [5, 4, 3, 2]),
  ],
)
def test_jumps_are_repeated_in_order_and_memory_with_them(resample, jump, visited):
  # On this path the way back adds noise alone, of which there is none: x keeps what is in it.
  schedule, times, x = schedules.edm(), jnp.arange(5.0, 0.0, -1.0), jnp.zeros((1, 12))
  sampler = repaint(DIARY, jnp.zeros((1, 12)), jnp.zeros((1, 12), bool), resample, jump)
  state = without_noise(sampler, None, schedule, times, x)
  written = np.asarray(state.x)[0, ::-1]
  np.testing.assert_array_equal(written[written != 0], visited)
  assert len(visited) + 1 <= num_evaluations(sampler, 5)
  if 4 % jump == 0:
    assert len(visited) + 1 == num_evaluations(sampler, 5)


@pytest.mark.parametrize(
  ('make', 'updates', 'returns'),
  [
    (lambda: replacement(ancestral(), KNOWN, MASK), 1, 0),
    (lambda: repaint(ancestral(), KNOWN, MASK, 3, jump=1), 3, 2),
    (lambda: repaint(ancestral(), KNOWN, MASK, 3, jump=2), 5, 2),
  ],
  ids=['replacement', 'repaint', 'repaint by two'],
)
def test_no_draw_serves_twice(make, updates, returns):
  # Of an update's last step: the sampler's, the known part's, and those of the ways back.
  (schedule, times, denoiser), sampler, drawn = world(5), make(), []

  def noise(t, s, draw=0):
    drawn.append(int(draw))
    return jnp.zeros((1, 2))

  state = sampler.init(schedule, times, jnp.zeros((1, 2)))
  with jax.disable_jit():
    sampler.update(schedule, denoiser, state, Step(times[1], times[2], jnp.array(1)), noise)
  assert len(drawn) == len(set(drawn)) == 2 * updates + returns


def test_one_channel_of_a_mask_serves_all_and_one_picture_every_sample(make_keys):
  schedule, keys = schedules.flow(), make_keys(3)
  data = GaussianData(jnp.zeros((4, 4, 3)), jnp.ones(()))
  known = jax.random.normal(jax.random.key(7), (1, 4, 4, 3))
  mask = jnp.zeros((1, 4, 4, 1), bool).at[:, :2].set(True)
  times = time_grid('trailing', schedule, 4)
  xT = prior_sample(schedule, times[0], keys, (4, 4, 3))
  denoiser = keep_known(data.denoiser(schedule), known, mask)
  sampler = repaint(ancestral(), known, mask, 2)
  x = jax.jit(lambda keys: sample(sampler, denoiser, schedule, times, xT, keys))(keys)
  np.testing.assert_array_equal(x[:, :2], jnp.broadcast_to(known, x.shape)[:, :2])
  assert np.isfinite(x).all()
  assert not np.isclose(x[:, 2:], known[:, 2:]).any()


@pytest.mark.parametrize('make', [keep_known, replacement, repaint])
@pytest.mark.parametrize('shape', [(1, 4, 4), (1, 4, 2, 1), (2, 4, 4, 1)])
def test_a_mask_of_the_wrong_shape_is_refused(make, shape):
  of = ddim() if make is not keep_known else None
  with pytest.raises(InputError, match=r'^mask: shape \(.*\) does not fit that of known, \(1, 4'):
    make(of, jnp.zeros((1, 4, 4, 3)), jnp.ones(shape, bool))


def test_a_picture_of_the_wrong_shape_is_refused(make_keys):
  known, mask = jnp.zeros((1, 3)), jnp.ones((1, 3), bool)
  with pytest.raises(InputError, match=r'known: shape \(1, 3\) does not fit .* samples, \(2, 2\)'):
    sample(
      replacement(ddim(), known, mask), world()[2], *world()[:2], jnp.zeros((2, 2)), make_keys(2)
    )


@pytest.mark.parametrize('option', ['resample', 'jump'])
def test_less_than_once_is_refused(option):
  with pytest.raises(ValueError, match=rf'^{option}: 0 is below 1$'):
    repaint(ddim(), KNOWN, MASK, **{option: 0})
