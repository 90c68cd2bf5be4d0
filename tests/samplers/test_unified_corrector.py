import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers import ddim
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_3m
from ddpm_jax.samplers.unified_corrector import VARIANTS, unipc
from tests.samplers.bent import PATHS, bent, times_at, walk

pytestmark = pytest.mark.usefixtures('x64')

LOG_SNRS = [-5.0, -4.0, -1.7, 0.1, 1.0, 3.4, 4.0]
XT = ((0.3, -1.4),)


def run(sampler, path='vp', put_right=None):
  schedule = PATHS[path]()
  times = times_at(schedule, LOG_SNRS)
  states = walk(sampler, bent(schedule), schedule, times, jnp.array(XT), put_right)
  return np.stack([state.x for state in states])


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize(
  ('order', 'variant', 'other'),
  [(1, 'bh1', ddim()), (1, 'bh2', ddim()), (2, 'bh2', dpmpp_2m()), (3, 'bh2', dpmpp_3m())],
)
def test_without_its_corrector_it_is_a_method_of_another_name(order, variant, other, path):
  predictor = unipc(order, variant, corrector=False)
  np.testing.assert_allclose(run(predictor, path), run(other, path), rtol=1e-10)


# The paper's algorithms word by word: a linear system for each step's coefficients, and a corrected
# state from which the same step is taken again.

B = {'bh1': lambda h: h, 'bh2': lambda h: 1 - math.exp(-h)}


def coefficients(rs, h, variant):
  """B(h) a_m / r_m with Σ_m a_m B(h) r_m^(k-1) = h ∫ e^(-(1-u) h) u^k du, or a_1 = ½ alone."""
  if not rs:
    return []
  if len(rs) == 1:
    return [B[variant](h) / 2 / rs[0]]
  powers = range(1, len(rs) + 1)
  wanted = [h * quad(lambda u, k=k: math.exp((u - 1) * h) * u**k, 0, 1)[0] for k in powers]
  return np.linalg.solve([[r ** (k - 1) for r in rs] for k in powers], wanted) / rs


def algorithm(order, variant):
  schedule = schedules.vp()
  times, lams = times_at(schedule, LOG_SNRS), np.array(LOG_SNRS) / 2
  predict = bent(schedule)
  x = np.array(XT)
  predictions, path = [np.asarray(predict(x, times[0]).x0)], []
  for i in range(1, len(times)):
    h, used = lams[i] - lams[i - 1], min(order, i)
    x0, back = predictions[-1], range(2, used + 1)
    alpha, kept = schedule.alpha(times[i]), schedule.sigma(times[i]) / schedule.sigma(times[i - 1])
    base = kept * x + alpha * (1 - math.exp(-h)) * x0
    rs = [(lams[i - m] - lams[i - 1]) / h for m in back]
    differences = [predictions[-m] - x0 for m in back]
    predicted = zip(coefficients(rs, h, variant), differences, strict=True)
    path.append(base + alpha * sum(np.array(c * d) for c, d in predicted))
    x = path[-1]
    predictions.append(np.asarray(predict(x, times[i]).x0))
    rs, differences = [*rs, 1.0], [*differences, predictions[-1] - x0]
    corrected = zip(coefficients(rs, h, variant), differences, strict=True)
    x = base + alpha * sum(np.array(c * d) for c, d in corrected)
  return np.stack(path)


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('order', [1, 2, 3])
def test_it_is_the_papers_algorithm(order, variant):
  np.testing.assert_allclose(run(unipc(order, variant)), algorithm(order, variant), rtol=1e-10)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_the_corrector_changes_what_follows_the_first_step(order):
  corrected, predicted = (run(unipc(order, corrector=choice)) for choice in (True, False))
  np.testing.assert_array_equal(corrected[0], predicted[0])
  assert (np.abs(corrected[1:] - predicted[1:]).max(axis=(1, 2)) > 1e-4).all()


@pytest.mark.parametrize(
  ('order', 'log_snrs'),
  [
    (2, [-3.0, -2.5, -2.4998, -0.9, 1.0, 2.2, 2.2002]),
    (3, [-3.0, -2.5, -1, -0.9998, 0, 2, 2.0002]),
  ],
)
def test_the_corrector_is_exact_for_predictions_of_one_degree_more(order, log_snrs):
  # What leads to the first x of its own and the last, which is not corrected, are short steps,
  # where predictor and corrector agree.
  schedule = schedules.flow()
  times = times_at(schedule, log_snrs)

  def curve(lam):
    return (lam + 1.0) ** order

  def denoiser(xt, t):
    return Denoised(jnp.full_like(xt, curve(schedule.log_snr(t) / 2)))

  def exact(s):
    ends = [float(schedule.log_snr(time)) / 2 for time in (times[0], s)]
    travelled = quad(lambda lam: math.exp(lam) * curve(lam), *ends)[0]
    return schedule.sigma(s) * (jnp.array(XT) / schedule.sigma(times[0]) + travelled)

  def put_right(s, index, x):
    return exact(s) if index < order else x

  states = walk(unipc(order), denoiser, schedule, times, jnp.array(XT), put_right)
  long, short = (np.abs(states[i].x - exact(times[i])).max() for i in (-2, -1))
  assert long > 1e-2
  assert short < 1e-7


def test_the_variant_matters_to_lines_alone():
  # Order 3 has them at its start: with that put right, no difference is left.
  start = run(unipc(3))

  def put_right(s, index, x):
    return start[index] if index < 3 else x

  unlike, alike = (
    np.abs(run(unipc(3, 'bh1'), put_right=p) - run(unipc(3, 'bh2'), put_right=p)).max()
    for p in (None, put_right)
  )
  assert unlike > 1e-4
  assert alike < 1e-12
  for order in (1, 2):
    bh1, bh2 = (run(unipc(order, v), put_right=put_right) for v in ('bh1', 'bh2'))
    assert np.abs(bh1 - bh2).max() > 1e-4


@pytest.mark.parametrize('order', [0, 4])
def test_an_order_without_a_method_is_refused(order):
  with pytest.raises(ValueError, match=rf'^order: {order} is not one of 1, 2, 3$'):
    unipc(order)


def test_an_unknown_variant_is_refused_by_its_field():
  with pytest.raises(ValueError, match=r"^variant: 'bh3' is not one of bh1, bh2"):
    unipc(variant='bh3')
