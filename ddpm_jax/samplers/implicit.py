"""DDIM: a family of processes with the same marginals, from deterministic to ancestral."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.formulas import eps_of, place, renewed
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start


@bounded
def ddim(eta: Annotated[float, Interval(ge=0, le=1)] = 0.0) -> Sampler:
  """xs = alpha_s x0 + sigma_s sqrt(1 - eta² r) eps + eta sigma_s sqrt(r) noise.

  Here eps = (xt - alpha_t x0) / sigma_t is always derived from the denoiser's x0, clipped or not.
  eta = 0 is deterministic and also runs backwards (s > t), which inverts it; eta = 1 is ancestral
  sampling with the small variance.

  Reference: Song et al. 2021, https://arxiv.org/abs/2010.02502, equations 12 and 16.

  Raises:
    ValueError: where eta is outside [0, 1].
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    t, s = step.t, step.s
    denoised = denoiser(state.x, t)
    eps = eps_of(schedule, state.x, denoised.x0, t)
    if eta:
      eps = renewed(schedule, eps, noise(t, s), s, t, eta)
    return State(place(schedule, denoised.x0, eps, s), denoised.x0)

  return Sampler(start, update, stochastic=eta > 0)
