"""The score ∇ log q(xt): a denoiser's knowledge in another form, by Tweedie's formula; its fits.

From ∇ log q(xt | x0) = (alpha x0 - xt) / sigma², averaged over q(x0 | xt),

  ∇ log q(xt) = (alpha E[x0 | xt] - xt) / sigma².

The misfit ½ |score - ∇ log q|² asks for the unknown ∇ log q. Three objectives have its expectation
but for a constant, hence its minimum, and do without. Each is for one example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, q_sample
from ddpm_jax.diffusion.schedules import Schedule, Time, check_range, check_scalar

Score = Callable[[Array], Array]


def score_from_x0(schedule: Schedule, x0: Array, xt: Array, t: Time) -> Array:
  """∇ log q(xt) = (alpha x0 - xt) / sigma², for x0 = E[x0 | xt]; needs sigma > 0.

  For a given example x0 the same formula is ∇ log q(xt | x0).

  Reference: Efron 2011, https://doi.org/10.1198/jasa.2011.tm11181, section 1.
  """
  check_scalar(t, 'score_from_x0', '(None, 0, 0, 0)')
  sigma = positive(schedule.sigma(t), f'sigma at t = {t}')
  return (schedule.alpha(t) * x0 - xt) / jnp.square(sigma)


def x0_from_score(schedule: Schedule, score: Array, xt: Array, t: Time) -> Array:
  """E[x0 | xt] = (xt + sigma² ∇ log q(xt)) / alpha: Tweedie's formula; needs alpha > 0.

  Reference: Efron 2011, https://doi.org/10.1198/jasa.2011.tm11181, section 1.
  """
  check_scalar(t, 'x0_from_score', '(None, 0, 0, 0)')
  alpha = positive(schedule.alpha(t), f'alpha at t = {t}')
  return (xt + jnp.square(schedule.sigma(t)) * score) / alpha


def make_score(schedule: Schedule, denoiser: Denoiser, t: Time) -> Score:
  """The score of q(xt) at one time, for one example, from a denoiser."""
  check_scalar(t, 'make_score', '(None, None, 0)')
  return lambda xt: score_from_x0(schedule, denoiser(xt[None], t).x0[0], xt, t)


def denoiser_from_score(schedule: Schedule, score: Callable[[Array, Time], Array]) -> Denoiser:
  """The denoiser, on batches, that knows what score(xt, t) does, a function of one example."""

  def denoiser(xt: Array, t: Time) -> Denoised:
    def read(xt: Array, t: Time) -> Array:
      return x0_from_score(schedule, score(xt, t), xt, t)

    check_range(schedule, t)
    axis = 0 if jnp.ndim(t) else None
    return Denoised(jax.vmap(read, (0, axis))(xt, t))

  return denoiser


def denoising_score_matching(
  score: Score, schedule: Schedule, x0: Array, t: Time, eps: Array
) -> Array:
  """½ |score(xt) + eps / sigma|² at xt = alpha x0 + sigma eps; needs sigma > 0.

  Its expectation over x0 and eps is `implicit_score_matching`'s over xt plus dim / (2 sigma²).

  Reference: Vincent 2011, https://doi.org/10.1162/NECO_a_00142, section 4.
  """
  check_scalar(t, 'denoising_score_matching', '(None, None, 0, 0, 0)')
  sigma = positive(schedule.sigma(t), f'sigma at t = {t}')
  return half_square(score(q_sample(schedule, x0, t, eps)) + eps / sigma)


def implicit_score_matching(score: Score, x: Array) -> Array:
  """½ |score(x)|² + div score(x), the divergence exact: as many products as x has dimensions.

  Its expectation over p is that of ½ |score - ∇ log p|² less ½ E |∇ log p|².

  Reference: Hyvärinen 2005, https://jmlr.org/papers/v6/hyvarinen05a.html, theorem 1.
  """
  jacobian = jax.jacfwd(score)(x).reshape(jnp.size(x), jnp.size(x))
  return half_square(score(x)) + jnp.trace(jacobian)


def sliced_score_matching(score: Score, x: Array, v: Array) -> Array:
  """½ |score(x)|² + vᵀ ∇score(x) v: `implicit_score_matching` by one product, unbiased.

  The direction v, like x, has E v vᵀ = 1: Rademacher or standard normal draws.

  Reference: Song et al. 2019, https://arxiv.org/abs/1905.07088: the variance-reduced SSM-VR.
  """
  value, slope = jax.jvp(score, (x,), (v,))
  return half_square(value) + jnp.sum(v * slope)


def half_square(x: Array) -> Array:
  """½ |x|², over all of one example."""
  return jnp.sum(jnp.square(x)) / 2


def positive(value: Any, name: str) -> Any:
  """The value itself; ValueError where it is concrete and not positive."""
  if not isinstance(value, jax.core.Tracer) and not np.all(np.asarray(value) > 0):
    raise ValueError(f'{name} is {value}: it has to be positive')
  return value
