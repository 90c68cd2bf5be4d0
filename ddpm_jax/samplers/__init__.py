"""Samplers: pairs of pure functions under one scan; time grids; guidance; inverse problems.

SAMPLERS maps names to factories, whose keyword arguments are their options; what each is comes with
the pair: its order, its cost, whether it draws noise. SOLVERS choose their own steps.
"""

from collections.abc import Callable

from ddpm_jax.samplers.consistency_models import consistency
from ddpm_jax.samplers.corrected import annealed_langevin, predictor_corrector, reverse_diffusion
from ddpm_jax.samplers.ddpm import ancestral
from ddpm_jax.samplers.dpm import dpm_solver
from ddpm_jax.samplers.dpmpp import dpmpp_2m, dpmpp_2s, dpmpp_3m
from ddpm_jax.samplers.dpmpp_stochastic import dpmpp_2m_sde, dpmpp_3m_sde, dpmpp_sde
from ddpm_jax.samplers.edm_stochastic import edm
from ddpm_jax.samplers.grids import (
  OF_LOG_SNR,
  TIME_GRIDS,
  bound_costs,
  cheapest_path,
  time_grid,
)
from ddpm_jax.samplers.guidance import (
  autoguidance,
  classifier_free,
  classifier_guidance,
  log_snr_interval,
)
from ddpm_jax.samplers.image_to_image import last_part, start_from
from ddpm_jax.samplers.implicit import ddim
from ddpm_jax.samplers.inpainting import keep_known, repaint, replacement
from ddpm_jax.samplers.inverse import dps, pigdm
from ddpm_jax.samplers.multistep import deis, ipndm, lms, plms, pndm
from ddpm_jax.samplers.noise import NOISES, Noise, Step
from ddpm_jax.samplers.runge_kutta import dpm2, euler, heun, rk4
from ddpm_jax.samplers.sampler import Sampler, State, num_evaluations, prior_sample, sample
from ddpm_jax.samplers.solvers import SOLVERS, Solver, solve
from ddpm_jax.samplers.starting import midway
from ddpm_jax.samplers.stochastic import dpm2_ancestral, dpmpp_2s_ancestral, euler_ancestral
from ddpm_jax.samplers.thresholding import THRESHOLDS, clip_x0, dynamic_threshold
from ddpm_jax.samplers.unified_corrector import unipc

SAMPLERS: dict[str, Callable[..., Sampler]] = {
  'ancestral': ancestral,
  'ddim': ddim,
  'euler': euler,
  'heun': heun,
  'edm': edm,
  'dpm2': dpm2,
  'rk4': rk4,
  'lms': lms,
  'deis': deis,
  'ipndm': ipndm,
  'plms': plms,
  'pndm': pndm,
  'dpm_solver': dpm_solver,
  'dpmpp_2s': dpmpp_2s,
  'dpmpp_2m': dpmpp_2m,
  'dpmpp_3m': dpmpp_3m,
  'unipc': unipc,
  'euler_ancestral': euler_ancestral,
  'dpm2_ancestral': dpm2_ancestral,
  'dpmpp_2s_ancestral': dpmpp_2s_ancestral,
  'dpmpp_sde': dpmpp_sde,
  'dpmpp_2m_sde': dpmpp_2m_sde,
  'dpmpp_3m_sde': dpmpp_3m_sde,
  'reverse_diffusion': reverse_diffusion,
  'predictor_corrector': predictor_corrector,
  'annealed_langevin': annealed_langevin,
  'consistency': consistency,
}

__all__ = [
  'NOISES',
  'OF_LOG_SNR',
  'SAMPLERS',
  'SOLVERS',
  'THRESHOLDS',
  'TIME_GRIDS',
  'Noise',
  'Sampler',
  'Solver',
  'State',
  'Step',
  'ancestral',
  'annealed_langevin',
  'autoguidance',
  'bound_costs',
  'cheapest_path',
  'classifier_free',
  'classifier_guidance',
  'clip_x0',
  'consistency',
  'ddim',
  'deis',
  'dpm2',
  'dpm2_ancestral',
  'dpm_solver',
  'dpmpp_2m',
  'dpmpp_2m_sde',
  'dpmpp_2s',
  'dpmpp_2s_ancestral',
  'dpmpp_3m',
  'dpmpp_3m_sde',
  'dpmpp_sde',
  'dps',
  'dynamic_threshold',
  'edm',
  'euler',
  'euler_ancestral',
  'heun',
  'ipndm',
  'keep_known',
  'last_part',
  'lms',
  'log_snr_interval',
  'midway',
  'num_evaluations',
  'pigdm',
  'plms',
  'pndm',
  'predictor_corrector',
  'prior_sample',
  'repaint',
  'replacement',
  'reverse_diffusion',
  'rk4',
  'sample',
  'solve',
  'start_from',
  'time_grid',
  'unipc',
]
