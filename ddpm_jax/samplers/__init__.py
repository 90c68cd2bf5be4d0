"""Samplers: pairs of pure functions under one scan; time grids; guidance."""

from ddpm_jax.samplers.ancestral import ancestral
from ddpm_jax.samplers.ddim import ddim
from ddpm_jax.samplers.grids import TIME_GRIDS, time_grid
from ddpm_jax.samplers.guidance import classifier_free, clip_x0
from ddpm_jax.samplers.sampler import Sampler, State, Step, prior_sample, sample

SAMPLERS = {
  'ancestral': ancestral,
  'ddim': ddim,
}

__all__ = [
  'SAMPLERS',
  'TIME_GRIDS',
  'Sampler',
  'State',
  'Step',
  'ancestral',
  'classifier_free',
  'clip_x0',
  'ddim',
  'prior_sample',
  'sample',
  'time_grid',
]
