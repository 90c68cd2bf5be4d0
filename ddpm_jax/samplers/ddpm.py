"""Ancestral sampling: draw from the reverse chain, one p(xs | xt) after another."""

from __future__ import annotations

from typing import Annotated

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import VARIANCES, reverse
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start


@bounded
def ancestral(variance: Annotated[str, OneOf(VARIANCES)] = 'small') -> Sampler:
  """xs = E p(xs | xt) + sqrt(Var p(xs | xt)) noise.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, algorithm 2.

  Args:
    variance: a key of VARIANCES.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    denoised = denoiser(state.x, step.t)
    xs = reverse(schedule, denoised, state.x, step.s, step.t, variance)
    return State(xs.sample(noise(step.t, step.s)), denoised.x0)

  return Sampler(start, update, stochastic=True)
