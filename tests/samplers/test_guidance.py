"""Guidance between Gaussian classes, whose scores are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.oracle import GaussianData
from ddpm_jax.samplers import classifier_free, clip_x0, ddim, sample, time_grid

pytestmark = pytest.mark.usefixtures('x64')

# Two classes, then the null condition: means and variances of three dimensions.
MEANS = [[0.5, -1.0, 0.0], [-0.5, 1.0, 2.0], [0.0, 0.1, 1.0]]
VARIANCES = [[0.3, 0.3, 0.3], [1.0, 0.2, 0.5], [1.2, 2.0, 3.0]]
LABELS = [0, 1, 1, 0]
TIMES = [50, 31, 7, 1]


def chain():
  return schedules.linear(50, 0.002, 0.2)


def data(label):
  return GaussianData(jnp.array(MEANS)[label], jnp.array(VARIANCES)[label])


def make(cond, calls=None):
  """cond -> the denoiser of those classes; notes down the batches that it sees."""

  def denoiser(xt, t):
    if calls is not None:
      calls.append(xt.shape)
    times = jnp.broadcast_to(t, xt.shape[:1])

    def example(label, x, time):
      denoised = data(label).denoiser(chain())(x[None], time)
      return jax.tree.map(lambda leaf: leaf[0], denoised)

    return jax.vmap(example)(cond['label'], xt, times)

  return denoiser


def conds():
  return {'label': jnp.array(LABELS)}, {'label': jnp.full(4, 2)}


def guided(scale, calls=None):
  return classifier_free(lambda cond: make(cond, calls), *conds(), scale)


def noisy():
  return jax.random.normal(jax.random.key(0), (4, 3))


@pytest.mark.parametrize('t', [20, TIMES], ids=['one time', 'a time each'])
@pytest.mark.parametrize(('scale', 'which'), [(1.0, 0), (0.0, 1)])
def test_scale_one_is_conditional_and_zero_unconditional(t, scale, which):
  xt, t = noisy(), jnp.array(t)
  expected = make(conds()[which])(xt, t).x0
  np.testing.assert_allclose(guided(scale)(xt, t).x0, expected, rtol=1e-12)


@pytest.mark.parametrize('t', [20, TIMES], ids=['one time', 'a time each'])
@pytest.mark.parametrize('scale', [0.5, 1.0, 3.0])
def test_the_guided_score_is_that_mix_of_the_two_scores(t, scale):
  xt, times = noisy(), jnp.broadcast_to(jnp.array(t), 4)
  x0 = guided(scale)(xt, jnp.array(t)).x0
  alpha, sigma = (jax.vmap(level)(times)[:, None] for level in (chain().alpha, chain().sigma))
  score = jax.vmap(lambda label, x, time: data(label).score(chain(), x, time))
  conditional, unconditional = (score(cond['label'], xt, times) for cond in conds())
  # Tweedie's formula reads a score from x0.
  np.testing.assert_allclose(
    (alpha * x0 - xt) / sigma**2,
    (1 - scale) * unconditional + scale * conditional,
    rtol=1e-9,
    atol=1e-12,
  )


def test_both_are_had_by_one_call_on_twice_the_batch():
  calls = []
  guided(2.0, calls)(noisy(), 20)
  assert calls == [(8, 3)]


def test_the_variance_is_the_conditionals():
  expected = make(conds()[0])(noisy(), 20).x0_variance
  np.testing.assert_allclose(guided(3.0)(noisy(), 20).x0_variance, expected, rtol=1e-12)


def test_a_guided_sample_goes_beyond_its_class():
  # From the null mean towards the class's, and past it as the scale grows.
  keys, xT = jax.random.split(jax.random.key(0), 4), noisy()
  times = time_grid('trailing', chain(), 10)
  x = [sample(ddim(), guided(scale), chain(), times, xT, keys) for scale in (0.0, 1.0, 2.0)]
  towards = jnp.sign(jnp.array(MEANS)[jnp.array(LABELS)] - jnp.array(MEANS)[2:])[:, 0]
  assert (towards * (x[1] - x[0])[:, 0] > 0).all()
  assert (towards * (x[2] - x[1])[:, 0] > 0).all()


def test_clipping_leaves_what_is_inside_and_stops_the_rest_at_the_ends():
  inside = make({'label': jnp.array(LABELS)})
  xt = 3 * noisy()
  plain, clipped = inside(xt, 20), clip_x0(inside)(xt, 20)
  beyond = jnp.abs(plain.x0) > 1
  assert beyond.any()
  assert not beyond.all()
  np.testing.assert_array_equal(np.asarray(clipped.x0)[~beyond], np.asarray(plain.x0)[~beyond])
  np.testing.assert_array_equal(
    np.asarray(clipped.x0)[beyond], np.sign(np.asarray(plain.x0)[beyond])
  )
  np.testing.assert_array_equal(clipped.x0_variance, plain.x0_variance)


def test_clipping_takes_other_ranges():
  x0 = clip_x0(make(conds()[0]), 0.0, 0.5)(3 * noisy(), 20).x0
  assert x0.min() == 0.0
  assert x0.max() == 0.5
