"""DPM-Solver: exponential integrators of the predicted noise."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Interval

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers import exponential
from ddpm_jax.samplers.exponential import NOISE, advance, evaluate, exact, on_the_way
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start


@bounded
def dpm_solver(
  order: Literal[1, 2, 3] = 2,
  multistep: bool = False,
  r1: Annotated[float, Interval(gt=0, lt=1)] | None = None,
) -> Sampler:
  """xs = alpha_s/alpha_t xt - sigma_s (e^h - 1) eps - sigma_s ∫ e^(h-τ) (eps(τ) - eps) dτ.

  In the integral eps(τ) is a polynomial: through noise predicted on the way (single-step, `order`
  evaluations each step) or in the steps before (multistep, one each). Order 1 is DDIM. A step from
  zero SNR is of first order.

  Reference: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithms 1 and 2. Multistep is
  `dpmpp_2m` and `dpmpp_3m` for the other prediction, as in https://arxiv.org/abs/2211.01095.

  Args:
    order: 1, 2 or 3.
    multistep: whether the polynomial goes through earlier steps' predictions.
    r1: in (0, 1), where on the way a single-step method predicts first; 1/2 by default for order 2,
      1/3 for order 3, which predicts again at 2/3.

  Raises:
    ValueError: for another order, an r1 that is outside, or one that nothing uses.
  """
  if order > 1 and not multistep:
    method, usual = SINGLE_STEP[order]
    return method(NOISE, usual if r1 is None else r1)
  if r1 is not None:
    raise ValueError('r1: only a single-step method of order 2 or 3 has one')
  return exponential.multistep(NOISE, order)


def third(form: exponential.Form, r1: float) -> Sampler:
  """A line through the readings here and at r1 leads to 2/3 of the way; one through that, to s.

  No other share than 2/3 is of third order: through it the line's integral is the parabola's, up to
  O(h⁴).
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    del noise
    here = evaluate(schedule, denoiser, state.x, step.t)
    s1, s2 = (on_the_way(schedule, here, step.s, share) for share in (r1, 2 / 3))
    first = evaluate(schedule, denoiser, advance(form, schedule, here, s1), s1)
    x2 = advance(form, schedule, here, s2, (form.node(first),), exact)
    second = evaluate(schedule, denoiser, x2, s2)
    return State(advance(form, schedule, here, step.s, (form.node(second),), exact), here.x0)

  return Sampler(start, update, order=3, evaluations=3, between=True)


# The method of each order, and where on the way it predicts first.
SINGLE_STEP = {
  2: (exponential.midpoint, 1 / 2),
  3: (third, 1 / 3),
}
