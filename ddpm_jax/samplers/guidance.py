"""Wrappers that take denoisers and return one."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Time

Cond = dict[str, Array]


def classifier_free(
  make: Callable[[Cond], Denoiser], cond: Cond, null: Cond, scale: float | Array
) -> Denoiser:
  """x0 = x0(null) + scale (x0(cond) - x0(null)), by one call on a batch of 2B.

  At one xt, x0 is affine in eps, v and the score, so the same formula holds for each of them.
  Scale 0 is unconditional, 1 conditional, more exaggerates. The variance is the conditional's.

  Reference: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598, equation 6, with w = scale - 1.

  Args:
    make: cond -> denoiser, such as `run.denoiser`.
    cond: what to condition on, arrays of length B.
    null: the model's null condition, of the same structure.
    scale: the guidance scale, a scalar.
  """
  both = make(jax.tree.map(lambda c, n: jnp.concatenate([c, n]), cond, null))

  def denoiser(xt: Array, t: Time) -> Denoised:
    twice = jnp.concatenate([xt, xt])
    times = t if jnp.ndim(t) == 0 else jnp.concatenate([t, t])
    denoised = both(twice, times)
    conditional, unconditional = jnp.split(denoised.x0, 2)
    guided = unconditional + scale * (conditional - unconditional)
    return jax.tree.map(lambda leaf: leaf[: xt.shape[0]], denoised)._replace(x0=guided)

  return denoiser


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
  """Clips the predicted x0 to the data's range; samplers then derive eps from what is left."""

  def clipped(xt: Array, t: Time) -> Denoised:
    denoised = denoiser(xt, t)
    return denoised._replace(x0=jnp.clip(denoised.x0, low, high))

  return clipped
