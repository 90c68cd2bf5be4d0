"""Guidance between Gaussian classes, whose scores are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import Denoised, schedules
from ddpm_jax.samplers import classifier_free, ddim, sample, time_grid
from ddpm_jax.samplers.guidance import autoguidance, classifier_guidance, log_snr_interval
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture

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


def guided(scale, calls=None, **options):
  return classifier_free(lambda cond: make(cond, calls), *conds(), scale, **options)


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


@pytest.mark.parametrize(('scale', 'calls'), [(0.0, 1), (1, 1), (1.0, 1), (2.0, 2)])
def test_only_what_counts_is_evaluated(scale, calls):
  seen = []
  guided(scale, seen)(noisy(), 20)
  assert seen == [(4 * calls, 3)]


def test_a_traced_scale_needs_both_and_means_the_same():
  seen = []
  x0 = jax.jit(lambda scale: guided(scale, seen)(noisy(), 20).x0)
  for scale in (0.0, 1.0, 2.5):
    np.testing.assert_allclose(x0(scale), guided(scale)(noisy(), 20).x0, rtol=1e-12, atol=1e-15)
  assert seen[:1] == [(8, 3)]


def spread(x0):
  return np.std(x0, axis=1)


@pytest.mark.parametrize('t', [20, TIMES], ids=['one time', 'a time each'])
@pytest.mark.parametrize('scale', [0.0, 3.0])
def test_rescaling_restores_the_conditionals_contrast_in_each_example(t, scale):
  xt, t = noisy(), jnp.array(t)
  conditional, plain = make(conds()[0])(xt, t).x0, guided(scale)(xt, t).x0
  assert (np.abs(np.log(spread(plain) / spread(conditional))) > 0.1).any()
  whole = guided(scale, rescale=1.0)(xt, t).x0
  np.testing.assert_allclose(spread(whole), spread(conditional), rtol=1e-12)
  # A factor for each example, hence colors' proportions stay; and linear in φ.
  ratio = whole / plain
  np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-10)
  part = guided(scale, rescale=0.3)(xt, t).x0
  np.testing.assert_allclose(part, 0.7 * plain + 0.3 * whole, rtol=1e-10)


def test_rescaling_leaves_a_constant_prediction_and_its_gradient_finite():
  def flat(cond):
    return lambda xt, t: make(cond)(0 * xt, t)._replace(x0=0 * xt + 0.5)

  def total(xt):
    return jnp.sum(classifier_free(flat, *conds(), 2.0, rescale=0.7)(xt, 20).x0)

  value, gradient = jax.value_and_grad(total)(noisy())
  np.testing.assert_allclose(value, 6.0)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-12)


def levels():
  return np.asarray(chain().log_snrs)


@pytest.mark.parametrize(('rescale', 'scale'), [(0.0, 3.0), (0.5, 3.0), (0.0, 0.0)])
def test_outside_the_interval_the_conditional_stands_alone(rescale, scale):
  low, high = levels()[31], levels()[7]
  interval = log_snr_interval(chain(), float(low), float(high))
  limited = guided(scale, rescale=rescale, interval=interval)
  everywhere, conditional = guided(scale, rescale=rescale), make(conds()[0])
  for t in range(1, 51):
    expected = (everywhere if 7 <= t <= 31 else conditional)(noisy(), t)
    np.testing.assert_allclose(limited(noisy(), t).x0, expected.x0, rtol=1e-12)
  together, times = limited(noisy(), jnp.array(TIMES)), jnp.array(TIMES)
  inside = np.array([False, True, True, False])[:, None]
  both = everywhere(noisy(), times).x0, conditional(noisy(), times).x0
  np.testing.assert_allclose(together.x0, np.where(inside, *both), rtol=1e-12)
  np.testing.assert_allclose(
    together.x0_variance, conditional(noisy(), times).x0_variance, rtol=1e-12
  )


def test_outside_the_interval_the_null_condition_costs_nothing():
  rows = []

  def counted(cond):
    exact = make(cond)

    def denoiser(xt, t):
      jax.debug.callback(lambda x: rows.append(len(x)), xt)
      return exact(xt, t)

    return denoiser

  interval = log_snr_interval(chain(), float(levels()[31]), float(levels()[7]))
  denoiser = classifier_free(counted, *conds(), 3.0, interval=interval)
  times = jnp.array([50, 40, 31, 20, 7, 6, 1])
  keys = jax.random.split(jax.random.key(0), 4)
  sample(ddim(), denoiser, chain(), times, noisy(), keys)
  jax.effects_barrier()
  assert sorted(rows) == [4, 4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize('rescale', [-0.1, 1.5, float('nan')])
def test_rescaling_by_more_than_all_is_refused(rescale):
  with pytest.raises(ValueError, match=rf'^rescale: {rescale} is outside'):
    guided(2.0, rescale=rescale)


def test_an_interval_without_inside_is_refused():
  with pytest.raises(ValueError, match=r'^interval: low < high .* 2.0 and 1.0'):
    log_snr_interval(chain(), 2.0, 1.0)


@pytest.mark.parametrize('t', [20, TIMES], ids=['one time', 'a time each'])
def test_autoguidance_is_classifier_free_guidance_with_two_networks(t):
  t = jnp.array(t)
  strong, weak = (make(cond) for cond in conds())
  for scale in (0.0, 0.5, 1.0, 3.0):
    both = autoguidance(strong, weak, scale)(noisy(), t)
    np.testing.assert_allclose(both.x0, guided(scale)(noisy(), t).x0, rtol=1e-12)
    np.testing.assert_array_equal(both.x0_variance, strong(noisy(), t).x0_variance)
  assert autoguidance(strong, weak, 1.0) is strong


# Several scales: the first null lacks a text, the second a picture too.


def affine(cond, calls=None):
  """cond -> x0 affine in xt, its slope and its offset told by both entries, and by the time."""

  def denoiser(xt, t):
    if calls is not None:
      calls.append(xt.shape)
    text, picture = cond['text']['words'].sum(-1, keepdims=True), cond['picture']
    time = jnp.broadcast_to(t, xt.shape[:1])[:, None] / 50
    x0 = (jnp.cos(text) + 0.3 * picture) * xt + time * jnp.sin(text + picture)
    return Denoised(x0, jnp.exp(x0), 0.1 * x0)

  return denoiser


def told():
  """The condition, one without its text and one without its picture either."""
  key = jax.random.key(4)
  words, picture = jax.random.normal(key, (4, 5)), 1 + jax.random.normal(key, (4, 3))
  full = {'text': {'words': words}, 'picture': picture}
  textless = full | {'text': {'words': jnp.zeros((4, 5))}}
  return full, textless, textless | {'picture': jnp.zeros((4, 3))}


SCALES = [(7.5, 1.5), (2.0, 0.0), (0.0, 3.0), (1.0, 2.0), (2.0, 1.0), (0.0, 0.0), (-1.0, 0.5)]


@pytest.mark.parametrize('t', [20, TIMES], ids=['one time', 'a time each'])
@pytest.mark.parametrize('scales', SCALES)
def test_two_scales_are_the_sum_over_conditions_each_evaluated_alone(t, scales):
  (full, textless, bare), xt, t = told(), noisy(), jnp.array(t)
  of_text, of_picture = scales
  found = classifier_free(affine, full, (textless, bare), scales)(xt, t).x0
  x0 = [np.asarray(affine(cond)(xt, t).x0) for cond in (full, textless, bare)]
  # Brooks et al. 2023, equation 3, whose first scale is the picture's.
  expected = x0[2] + of_picture * (x0[1] - x0[2]) + of_text * (x0[0] - x0[1])
  np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_of_any_number_of_scales_each_counts_its_own_difference():
  # x0 is linear in the scales, and its slope in each is what the null of that scale lacks.
  xt, conds = noisy(), [jax.tree.map(lambda leaf, k=k: leaf / 2**k, told()[0]) for k in range(4)]
  x0 = [affine(cond)(xt, 20).x0 for cond in conds]

  def run(scales):
    return classifier_free(affine, conds[0], tuple(conds[1:]), tuple(scales))(xt, 20).x0

  slopes = jax.jacfwd(run)(jnp.array([3.0, 0.5, 2.0]))
  for k in range(3):
    np.testing.assert_allclose(slopes[..., k], x0[k] - x0[k + 1], rtol=1e-10, atol=1e-12)
  np.testing.assert_allclose(run((0.0, 0.0, 0.0)), x0[3], rtol=1e-12)


@pytest.mark.parametrize('scale', [0.0, 1.0, 0.5, 3.0])
@pytest.mark.parametrize('rescale', [0.0, 0.7])
def test_one_scale_in_a_tuple_is_that_scale_bit_for_bit(scale, rescale):
  (full, _, bare), interval = told(), log_snr_interval(chain(), -2.0, 2.0)
  for options in ({'rescale': rescale}, {'rescale': rescale, 'interval': interval}):
    for t in (20, jnp.array(TIMES)):
      plain = classifier_free(affine, full, bare, scale, **options)(noisy(), t)
      tuples = classifier_free(affine, full, (bare,), (scale,), **options)(noisy(), t)
      jax.tree.map(np.testing.assert_array_equal, tuples, plain)


@pytest.mark.parametrize('rescale', [0.0, 0.7])
def test_all_scales_one_are_the_conditional_alone(rescale):
  calls, (full, *nulls) = [], told()
  make = functools.partial(affine, calls=calls)
  found = classifier_free(make, full, tuple(nulls), (1, 1.0), rescale=rescale)(noisy(), 20)
  assert calls == [(4, 3)]
  jax.tree.map(np.testing.assert_array_equal, found, affine(full)(noisy(), 20))
  # Traced, it is the same by three evaluations, whose differences cancel.
  traced = jax.jit(
    lambda scale: classifier_free(make, full, tuple(nulls), (scale, scale))(noisy(), 20)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), traced(1.0), found)
  assert calls[1:] == [(12, 3)]


def test_all_scales_zero_are_the_last_null_alone():
  calls, (full, *nulls) = [], told()
  make = functools.partial(affine, calls=calls)
  found = classifier_free(make, full, tuple(nulls), (0, 0.0))(noisy(), 20)
  assert calls == [(4, 3)]
  np.testing.assert_array_equal(found.x0, affine(nulls[1])(noisy(), 20).x0)


def test_the_variance_is_the_conditionals_under_several_scales_too():
  full, *nulls = told()
  found = classifier_free(affine, full, tuple(nulls), (3.0, 2.0))(noisy(), 20)
  conditional = affine(full)(noisy(), 20)
  np.testing.assert_allclose(found.x0_variance, conditional.x0_variance, rtol=1e-12)
  np.testing.assert_allclose(found.fraction, conditional.fraction, rtol=1e-12)


def test_several_scales_are_rescaled_and_limited_as_one_is():
  full, *nulls = told()
  conditional, plain = affine(full), classifier_free(affine, full, tuple(nulls), (4.0, 2.0))
  whole = classifier_free(affine, full, tuple(nulls), (4.0, 2.0), rescale=1.0)(noisy(), 20).x0
  np.testing.assert_allclose(spread(whole), spread(conditional(noisy(), 20).x0), rtol=1e-12)
  interval = log_snr_interval(chain(), float(levels()[31]), float(levels()[7]))
  limited = classifier_free(affine, full, tuple(nulls), (4.0, 2.0), interval=interval)
  for t in (50, 20, 1):
    expected = (plain if t == 20 else conditional)(noisy(), t).x0
    np.testing.assert_allclose(limited(noisy(), t).x0, expected, rtol=1e-12)


def test_a_null_may_be_another_condition():
  # Guided away from a negative prompt by scale 2: as far beyond the condition as that is before it.
  full, *_ = told()
  negative = full | {'text': {'words': -full['text']['words']}}
  found, at, away = (
    denoiser(noisy(), 20).x0
    for denoiser in (classifier_free(affine, full, negative, 2.0), affine(full), affine(negative))
  )
  np.testing.assert_allclose(found - at, at - away, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(('count', 'scales'), [(1, (2.0, 3.0)), (2, (2.0,)), (0, (1.0,)), (2, ())])
def test_as_many_nulls_as_scales_are_wanted(count, scales):
  full, *nulls = told()
  with pytest.raises(ValueError, match=rf'^null: a tuple of {len(scales)} conditions is wanted'):
    classifier_free(affine, full, tuple(nulls[:count]), scales)


def test_one_null_is_no_tuple_of_them():
  full, _, bare = told()
  with pytest.raises(ValueError, match=r'^null: a tuple of 2 conditions is wanted'):
    classifier_free(affine, full, bare, (2.0, 3.0))
  with pytest.raises(ValueError, match=r'^rescale: 2.0 is outside'):
    classifier_free(affine, full, (bare,), (2.0,), rescale=2.0)


def test_a_null_of_another_structure_is_refused():
  full, textless, bare = told()
  for null, scale in (
    ((textless, bare), 2.0),  # two nulls, and one scale
    ({'picture': bare['picture']}, 2.0),
    ((textless, {'picture': bare['picture']}), (2.0, 3.0)),
  ):
    with pytest.raises(ValueError, match='^null: it must be of the same structure as cond'):
      classifier_free(affine, full, null, scale)


COMPONENTS = jnp.array([0, 1, 2, 1])
SCHEDULES = {
  'chain': (chain, (1, 20, 50)),
  'vp': (schedules.vp, (0.01, 0.4, 1.0)),
  've': (schedules.ve, (0.0, 0.5, 1.0)),
  'edm': (schedules.edm, (0.1, 1.0, 40.0)),
  'flow': (schedules.flow, (0.01, 0.4, 0.99)),
}


def plane():
  """Three classes of the plane, which overlap."""
  return GaussianMixture(
    [0.5, 0.2, 0.3],
    [[1.0, 0.0], [-0.5, 0.8], [0.0, -1.0]],
    [[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.3], [-0.3, 0.4]], [[0.2, 0.0], [0.0, 1.5]]],
  )


def class_log_prob(schedule):
  """log p(y | xt) of the mixture's components: by Bayes' rule, responsibilities."""

  def example(k, x, t):
    return jax.nn.log_softmax(plane().marginal(schedule, t).log_joint(x))[k]

  return lambda xt, t: jax.vmap(example)(COMPONENTS, xt, jnp.broadcast_to(t, xt.shape[:1]))


def of_class(k, schedule, x, t):
  """E[x0 | xt, y = k], by the class alone: conditioning the joint Gaussian of x0 and xt."""
  mean, covariance = plane().means[k], plane().covariances[k]
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  of_xt = alpha**2 * covariance + sigma**2 * jnp.eye(2)
  return mean + alpha * covariance @ jnp.linalg.solve(of_xt, x - alpha * mean)


@pytest.mark.parametrize('path', SCHEDULES)
def test_the_true_classifier_makes_the_conditional_denoiser(path):
  schedule, times = SCHEDULES[path][0](), SCHEDULES[path][1]
  denoiser = classifier_guidance(plane().denoiser(schedule), class_log_prob(schedule), schedule)

  @jax.jit
  def both(xt, t):
    expected = jax.vmap(of_class, (0, None, 0, None))(COMPONENTS, schedule, xt, t)
    return denoiser(xt, t).x0, denoiser(xt, jnp.full(4, t)).x0, expected

  for t in times:
    spread = schedule.alpha(t) + schedule.sigma(t)
    *guided, expected = both(spread * jax.random.normal(jax.random.key(1), (4, 2)), t)
    for x0 in guided:
      np.testing.assert_allclose(x0, expected, rtol=1e-7, atol=1e-9)


def test_the_classifiers_scale_is_that_of_classifier_free_guidance():
  # x0(y) - x0 is the gradient's part: exaggerated, both are x0 + scale (x0(y) - x0).
  schedule, xt = chain(), jax.random.normal(jax.random.key(1), (4, 2))
  plain = plane().denoiser(schedule)
  denoisers = (
    classifier_guidance(plain, class_log_prob(schedule), schedule, scale) for scale in (1.0, 2.5)
  )
  conditional, more = (denoiser(xt, 20).x0 for denoiser in denoisers)
  expected = autoguidance(lambda x, t: plain(x, t)._replace(x0=conditional), plain, 2.5)(xt, 20).x0
  np.testing.assert_allclose(more, expected, rtol=1e-10)


def test_without_signal_a_classifier_changes_nothing():
  schedule, xt = schedules.flow(), jax.random.normal(jax.random.key(1), (4, 2))
  plain = plane().denoiser(schedule)
  denoiser = classifier_guidance(plain, class_log_prob(schedule), schedule, 3.0)
  np.testing.assert_array_equal(denoiser(xt, 1.0).x0, plain(xt, 1.0).x0)
  total = jax.grad(lambda x: jnp.sum(denoiser(x, 1.0).x0))(xt)
  assert np.isfinite(total).all()
