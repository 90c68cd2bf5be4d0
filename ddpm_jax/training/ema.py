"""Exponential moving averages of the parameters.

ema <- d ema + (1 - d) params, where d = min(decay, (1 + n) / (10 + n)) after n updates, so that an
average is never ruled by where training began.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from ddpm_jax.config.settings import Config


def decays(config: Config) -> dict[str, float]:
  """The averages of the parameters: name -> decay. The first is what is sampled from."""
  return {str(config.ema.decay): config.ema.decay}


def rate(decay: float, step: Array, warmup: bool = True) -> Array:
  """1 - d: the share that the newest parameters get.

  1 - (1 + n) / (10 + n) = 9 / (10 + n), written so that no digit cancels.
  """
  final = jnp.float32(1 - decay)
  return jnp.maximum(final, 9 / (10 + step.astype(jnp.float32))) if warmup else final


def update(ema: Any, params: Any, rate: Array) -> Any:
  """One step of the average; `ema` keeps its own dtypes."""
  return optax.incremental_update(params, ema, rate)
