"""Prediction and correction: a step along the reverse SDE, then Langevin steps where it arrives.

A corrector leaves q(xs) as it is but for the bias of its step, and mends what a predictor missed.
Its step does not shrink with the number of times: as that grows, a run with one converges not to
the data but to the corrector's own limit, whence the order 0. On a Gaussian of variance V that
limit has the variance V / (1 - h / (2V)), for Langevin steps of length h (diffusion/langevin.py).
"""

from __future__ import annotations

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.langevin import LENGTHS, corrector, langevin_step
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import fresh_noise
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.diffusion.score import score_from_x0
from ddpm_jax.samplers.ddpm import ancestral
from ddpm_jax.samplers.implicit import ddim
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start

Repeats = Annotated[int, Interval(ge=1, le=1000)]


def reverse_diffusion() -> Sampler:
  """xs = (2 - A) xt + B² score(xt) + B noise, for the forward step q(xt | xs) = N(A xs, B²).

  The forward step xt = xs + (A - 1) xs + B noise is that of some SDE; its reverse is taken with the
  same drift and diffusion. With A = alpha_t / alpha_s and B² = sigma_t² r, B² score is
  r (alpha_t x0 - xt). Unlike its neighbors it treats x, not x / alpha: paths differ.

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix E.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    t, s, xt = step.t, step.s, state.x
    x0 = denoiser(xt, t).x0
    r = fresh_noise(schedule, s, t)
    mean = (2 - schedule.alpha(t) / schedule.alpha(s)) * xt + r * (schedule.alpha(t) * x0 - xt)
    return State(mean + schedule.sigma(t) * root(r) * noise(t, s), x0)

  return Sampler(start, update, stochastic=True)


# What draws no noise but draw 0.
PREDICTORS = {
  'reverse_diffusion': reverse_diffusion,
  'ancestral': ancestral,
  'ddim': ddim,
}


@bounded
def predictor_corrector(
  predictor: Annotated[str, OneOf(PREDICTORS)] = 'reverse_diffusion',
  corrector_steps: Repeats = 1,
  snr: Annotated[float, Interval(gt=0, le=100)] = 0.16,
  length: Annotated[str, OneOf(LENGTHS)] = 'noise',
) -> Sampler:
  """The predictor's xs, then xs ← xs + h score(xs) + √(2h) noise, corrector_steps times.

  The paper's code corrects before it predicts, and the two orders differ in a single correction at
  either end; this is the paper's text.

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 2 and 3.

  Args:
    predictor: a key of PREDICTORS.
    corrector_steps: evaluations of the denoiser beyond the predictor's, in each update.
    snr: above 0: how long the corrector's drift is beside its noise, which sets h; with the length
      'noise' the most that it is (diffusion.langevin.corrector).
    length: a key of diffusion.langevin.LENGTHS: how h follows from snr.

  Raises:
    ValueError: where one of them is not in its table or out of range.
  """
  predict = PREDICTORS[predictor]()

  def update(schedule: Schedule, denoiser: Denoiser, state: Any, step: Step, noise: Noise) -> Any:
    def correct(x: Array, number: Array) -> tuple[Array, None]:
      eps = noise(step.t, step.s, number)
      return corrector(schedule, denoiser, x, step.s, eps, snr=snr, length=length), None

    state = predict.update(schedule, denoiser, state, step, noise)
    x, _ = jax.lax.scan(correct, state.x, 1 + jnp.arange(corrector_steps))
    return state._replace(x=x)

  return predict._replace(
    update=update, order=0, evaluations=predict.evaluations + corrector_steps, stochastic=True
  )


@bounded
def annealed_langevin(
  step: Annotated[float, Interval(gt=0, lt=2)] = 0.1, langevin_steps: Repeats = 5
) -> Sampler:
  """x ← x + h score(x) + √(2h) noise, langevin_steps times at each time s, h = step sigma_s².

  From t to s x is scaled by alpha_s / alpha_t: correction without prediction. Where alpha_t = 0 x
  knows no data and stays as it is. At times[0] it takes x as it comes; the same chain in
  diffusion/langevin.py, for use by itself, also moves there.

  Reference: Song and Ermon 2019, https://arxiv.org/abs/1907.05600, algorithm 1, whose epsilon is
  2 step sigma² at the last time; Song and Ermon 2020, https://arxiv.org/abs/2006.09011.

  Args:
    step: in (0, 2), where the chain is stable.
    langevin_steps: at each time, each one evaluation of the denoiser.

  Raises:
    ValueError: where one of them is out of range.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, way: Step, noise: Noise
  ) -> State:
    def move(state: State, number: Array) -> tuple[State, None]:
      x0 = denoiser(state.x, way.s).x0
      score = score_from_x0(schedule, x0, state.x, way.s)
      h = step * jnp.square(schedule.sigma(way.s))
      return State(langevin_step(state.x, score, h, noise(way.t, way.s, number)), x0), None

    rescaled = State(rescale(schedule, state.x, way.s, way.t), state.x0)
    return jax.lax.scan(move, rescaled, jnp.arange(langevin_steps))[0]

  return Sampler(start, update, order=0, evaluations=langevin_steps, stochastic=True)


def rescale(schedule: Schedule, xt: Array, s: Time, t: Time) -> Array:
  """alpha_s / alpha_t xt: the same x / alpha at another time; xt itself where alpha_t = 0."""
  alpha = schedule.alpha(t)
  known = alpha > 0
  return jnp.where(known, schedule.alpha(s) / jnp.where(known, alpha, 1.0), 1.0) * xt
