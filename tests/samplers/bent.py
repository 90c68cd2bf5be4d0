"""A denoiser that is no Gaussian's, the same on every path, and runs without a compiled scan."""

import itertools

import jax
import jax.numpy as jnp

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers import Step

# With log-SNRs from -6 to 6 on each.
PATHS = {
  'vp': schedules.vp,
  'sub_vp': schedules.sub_vp,
  've': schedules.ve,
  'edm': schedules.edm,
  'flow': schedules.flow,
}


def bent(schedule):
  """x0 = tanh(3 y / (1 + e^-λ)), of y = xt / alpha and λ = ½ log_snr alone."""

  def denoiser(xt, t):
    fading = jax.nn.sigmoid(schedule.log_snr(t) / 2)
    return Denoised(jnp.tanh(3 * fading * xt / schedule.alpha(t)))

  return denoiser


def walk(sampler, denoiser, schedule, times, xT, put_right=None):
  """The states after each update; put_right(s, index, x) replaces x where a test knows better."""
  state, states = sampler.init(schedule, times, xT), []
  for index, (t, s) in enumerate(itertools.pairwise(times)):
    state = sampler.update(schedule, denoiser, state, Step(t, s, jnp.array(index)), None)
    if put_right is not None:
      state = state._replace(x=put_right(s, index, state.x))
    states.append(state)
  return states


def times_at(schedule, log_snrs):
  """The times of these log-SNRs."""
  return jnp.stack([schedule.time(log_snr) for log_snr in log_snrs])
