"""The mathematics of diffusion models, as pure functions of one example and a scalar time."""

from ddpm_jax.diffusion import (
  langevin,
  schedules,
  score,
  sde,
  vae,
)
from ddpm_jax.diffusion.bound import (
  Bound,
  bits_per_dim,
  categorical,
  density,
  discretized,
  stratified_bound,
  variational_bound,
)
from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.parameterization import (
  PARAMETERIZATIONS,
  Parameterization,
  convert,
  make_denoiser,
)
from ddpm_jax.diffusion.process import (
  VARIANCES,
  Denoised,
  prior,
  q_marginal,
  q_posterior,
  q_sample,
  q_transition,
  reverse,
)
from ddpm_jax.diffusion.schedules import SCHEDULES, Schedule

__all__ = [
  'PARAMETERIZATIONS',
  'SCHEDULES',
  'VARIANCES',
  'Bound',
  'Denoised',
  'Gaussian',
  'Parameterization',
  'Schedule',
  'bits_per_dim',
  'categorical',
  'convert',
  'density',
  'discretized',
  'langevin',
  'make_denoiser',
  'prior',
  'q_marginal',
  'q_posterior',
  'q_sample',
  'q_transition',
  'reverse',
  'schedules',
  'score',
  'sde',
  'stratified_bound',
  'vae',
  'variational_bound',
]
