"""Samplers: pairs of pure functions under one scan; time grids; guidance."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.grids import TIME_GRIDS, time_grid
from ddpm_jax.samplers.guidance import classifier_free, clip_x0
from ddpm_jax.samplers.noise import NOISES, Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, num_evaluations, prior_sample, sample

SAMPLERS = {
  'ancestral': ancestral,
  'ddim': ddim,
}

__all__ = [
  'NOISES',
  'SAMPLERS',
  'TIME_GRIDS',
  'Noise',
  'Sampler',
  'State',
  'Step',
  'ancestral',
  'classifier_free',
  'clip_x0',
  'ddim',
  'num_evaluations',
  'prior_sample',
  'sample',
  'time_grid',
]
