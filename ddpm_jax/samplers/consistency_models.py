"""Multistep consistency sampling, for denoisers that are consistency functions."""

from __future__ import annotations

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start


def consistency() -> Sampler:
  """xs = alpha_s x0 + sigma_s noise: to data in one leap, then noised anew to the next time.

  A consistency function takes every point of a path of the probability flow to its end, the data;
  the denoiser has to be one. Then every x0 is a draw of the data, for whatever times, and a grid of
  one time is one-step generation: more times only mend what the network misses. With a denoiser
  that predicts the mean of the data instead no number of steps converges, whence the order 0.

  The paper's function ends at a sigma_min > 0, and its noise has the variance sigma_s² - sigma_min²
  from there; here the output is data, as it is for latent consistency models.

  Reference: Song et al. 2023, https://arxiv.org/abs/2303.01469, algorithm 1; Luo et al. 2023,
  https://arxiv.org/abs/2310.04378.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    x0 = denoiser(state.x, step.t).x0
    return State(q_sample(schedule, x0, step.s, noise(step.t, step.s)), x0)

  return Sampler(start, update, order=0, stochastic=True)
