"""UniPC: an exponential integrator of the predicted data, and its corrector at no further cost."""

from __future__ import annotations

from typing import Annotated, Literal

from jax import Array

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.exponential import (
  DATA,
  Multistep,
  Node,
  Rule,
  advance,
  finite,
  half_log_snr,
  halved,
  integral,
  read,
  starter,
)
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler


def bh1(h: Array, of: tuple[Array, ...]) -> tuple[Array, ...]:
  """A line weighs ½ h B(h) with B(h) = h."""
  return h**2 / 2, *of[1:]


# With B(h) = 1 - e^-h the weight of a line is `halved`: the predictor of order 2 is `dpmpp_2m`.
VARIANTS = {
  'bh1': bh1,
  'bh2': halved,
}


@bounded
def unipc(
  order: Literal[1, 2, 3] = 2,
  variant: Annotated[str, OneOf(VARIANTS)] = 'bh2',
  corrector: bool = True,
) -> Sampler:
  """Predictor: xs = place(x0, eps, s) + alpha_s ∫ e^(τ-h) (P(τ) - x0) dτ.

  P goes through the last `order` predictions. The corrector goes over the same step again when the
  denoiser has seen where it led, P going through that prediction too, which the next step needs
  anyway: one evaluation a step. So it raises the order of convergence to order + 1. The state has
  x as it was predicted: the last, which is not evaluated there, is not corrected either.

  A line's integral is taken as ½ h B(h) times its slope, and there alone the variant matters: for a
  polynomial of higher degree, the paper's linear system has one solution for every B.

  Reference: Zhao et al. 2023, https://arxiv.org/abs/2302.04867, UniP and UniC for data prediction.

  Args:
    order: 1, 2 or 3, the predictor's. Without its corrector, order 1 is DDIM.
    variant: 'bh1' for B(h) = h, 'bh2' for B(h) = 1 - e^-h.
    corrector: whether to correct.

  Raises:
    ValueError: for another order or variant.
  """
  rule = VARIANTS[variant]

  def update(
    schedule: Schedule, denoiser: Denoiser, state: Multistep, step: Step, noise: Noise
  ) -> Multistep:
    del noise
    t, s = step.t, step.s
    x0 = denoiser(state.x, t).x0
    now = Node(x0, half_log_snr(schedule, t))
    xt = state.x
    if corrector:
      xt = xt + schedule.alpha(t) * correction(now, state.past, rule)
    xs = advance(DATA, schedule, read(schedule, xt, x0, t), s, state.past[: order - 1], rule)
    return Multistep(xs, x0, (now, *state.past)[: order - 1 + corrector])

  return Sampler(starter(order - 1 + corrector), update, order=order + corrector)


def correction(now: Node, past: tuple[Node, ...], rule: Rule) -> Array:
  """What the last step's integral gains by going through the prediction where it led, too."""
  before, *earlier = past
  h = finite(now.lam - before.lam)
  corrected = integral(DATA, (before, now, *earlier), h, rule)
  return corrected - integral(DATA, (before, *earlier), h, rule) if earlier else corrected
