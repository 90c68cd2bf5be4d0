"""The product loss over a learned uncertainty of each noise level."""

from __future__ import annotations

import math
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.parameterization import split_variance
from ddpm_jax.keys import Keys
from ddpm_jax.losses.context import (
  Batch,
  LossContext,
  LossOutput,
  apply_network,
  distribution_start,
  starts_with,
)
from ddpm_jax.losses.products import add_noise, errors, remember
from ddpm_jax.losses.weights import log_snr

Width = Annotated[int, Interval(ge=1, le=65_536)]


def new_uncertainty(
  context: LossContext,
  params: dict,
  key: Array,
  *,
  width: Width = 128,
) -> tuple[dict, Any]:
  """u = 0: amplitudes of `width` waves over log-SNR, which train, and the waves, which do not."""
  del params
  frequency, phase = jax.random.split(key)
  waves = {'frequency': jax.random.normal(frequency, (width,))}
  waves['phase'] = jax.random.uniform(phase, (width,))
  return {'amplitude': jnp.zeros(width)}, {'waves': waves, 'law': distribution_start(context)}


@starts_with(new_uncertainty)
def uncertainty(
  context: LossContext,
  params: dict,
  state: Any,
  batch: Batch,
  keys: Keys,
  *,
  width: Width = 128,
) -> LossOutput:
  """product / e^u + u, u(log_snr) learned beside the network.

  It is least at e^u = E[product | log_snr]: then every noise level counts the same.

  Reference: Karras et al. 2024, https://arxiv.org/abs/2312.02696, section 2.1 (Config B) and
  appendix B.2.

  Args:
    width: the number of waves that u is made of.
  """
  del width
  noised = add_noise(context, state['law'], batch, keys)
  output = apply_network(context, params, noised.xt, noised.t, batch, keys)
  prediction, _ = split_variance(output, noised.xt)
  error = errors(context, prediction, noised.x0, noised.eps, noised.t)
  levels = jax.vmap(log_snr, (None, 0))(context.schedule, noised.t)
  u = jax.vmap(uncertainty_of, (None, None, 0))(params['loss'], state['waves'], levels)
  values = error * jnp.exp(-u) + u
  distribution = remember(context, state['law'], noised.t, values)
  parts = {'product': noised.correction * error, 'uncertainty': noised.correction * u}
  return LossOutput(noised.correction * values, parts, {**state, 'law': distribution})


def uncertainty_of(own: dict[str, Array], waves: dict[str, Array], log_snr: Array) -> Array:
  """u = Σ_k amplitude_k sqrt(2 / width) cos(2π (frequency_k log_snr / 8 + phase_k))."""
  angle = 2 * math.pi * (waves['frequency'] * log_snr / 8 + waves['phase'])
  scale = math.sqrt(2 / angle.size)
  return scale * jnp.sum(own['amplitude'] * jnp.cos(angle))
