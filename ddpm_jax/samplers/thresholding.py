"""Thresholding: wrappers that keep the predicted x0 in the data's range.

Samplers derive eps from what is left. A latent's range has no ends, and nothing to keep it in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Time

Bounds = tuple[float, float] | None


def clip_x0(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
  """Clips x0 to the data's range: static thresholding."""

  def clipped(xt: Array, t: Time) -> Denoised:
    denoised = denoiser(xt, t)
    return denoised._replace(x0=jnp.clip(denoised.x0, low, high))

  return clipped


@bounded
def dynamic_threshold(
  denoiser: Denoiser, percentile: Annotated[float, Interval(gt=0, le=1)] = 0.995
) -> Denoiser:
  """clip(x0, -m, m) / m, where m is 1 or, if larger, that quantile of the example's |x0|.

  Under strong guidance clipping alone saturates; this takes the whole example back.

  Reference: Saharia et al. 2022, https://arxiv.org/abs/2205.11487, section 2.3.

  Args:
    denoiser: of pixels in [-1, 1].
    percentile: the quantile, in (0, 1].

  Raises:
    ValueError: where percentile is outside (0, 1].
  """

  def example(x0: Array) -> Array:
    most = jnp.maximum(jnp.quantile(jnp.abs(x0), percentile), 1.0)
    return jnp.clip(x0, -most, most) / most

  def thresholded(xt: Array, t: Time) -> Denoised:
    denoised = denoiser(xt, t)
    return denoised._replace(x0=jax.vmap(example)(denoised.x0))

  return thresholded


def in_bounds(denoiser: Denoiser, bounds: Bounds) -> Denoiser:
  """`clip_x0` to the bounds; as it is where there are none."""
  return denoiser if bounds is None else clip_x0(denoiser, *bounds)


def dynamic(denoiser: Denoiser, bounds: Bounds) -> Denoiser:
  """`dynamic_threshold`, for data in [-1, 1].

  Raises:
    ValueError: the data has other bounds or none.
  """
  check_threshold('dynamic', bounds)
  return dynamic_threshold(denoiser)


def check_threshold(name: str, bounds: Bounds) -> None:
  """Raises ValueError where the threshold of that name is not for data of these bounds."""
  if name == 'dynamic' and bounds != (-1, 1):
    raise ValueError("threshold: 'dynamic' is for data in [-1, 1], and this is not; choose 'none'")


def unlimited(denoiser: Denoiser, bounds: Bounds) -> Denoiser:
  """x0 as it is."""
  del bounds
  return denoiser


# name -> (denoiser, the data's bounds, None for none) -> denoiser
THRESHOLDS: dict[str, Callable[[Denoiser, Bounds], Denoiser]] = {
  'clip': in_bounds,
  'dynamic': dynamic,
  'none': unlimited,
}
