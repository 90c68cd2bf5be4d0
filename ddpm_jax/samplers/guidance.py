"""Guidance: wrappers that take denoisers and return one, which knows or wants more.

At one xt, x0 is affine in eps, v and the score, so that what is mixed here as x0 is mixed in each.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.condition import Cond
from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time

Interval = Callable[[Time], Array]
LogProb = Callable[[Array, Time], Array]


def classifier_free(
  make: Callable[[Cond], Denoiser],
  cond: Cond,
  null: Cond | tuple[Cond, ...],
  scale: float | Array | tuple[float | Array, ...],
  rescale: float = 0.0,
  interval: Interval | None = None,
) -> Denoiser:
  """x0 = x0(null) + scale (x0(cond) - x0(null)), by one call on a batch of 2B.

  With several scales s_1 … s_K and nulls n_1 … n_K, each of which says less than the one before it,

    x0 = x0(n_K) + Σ_k s_k (x0(n_{k-1}) - x0(n_k)), n_0 = cond,

  by one call on (K + 1) B: scales of their own for a text (n_1 lacks it) and for a picture (n_2
  lacks both).

  Scale 0 is unconditional, 1 conditional, more exaggerates; at a concrete 1, a concrete 0 and
  outside the interval only one of the two is evaluated, on B. The variance is the conditional's.

  Exaggeration also raises contrast. With `rescale` φ the result is multiplied, example by example,
  by 1 - φ + φ std(x0(cond)) / std(x0).

  Reference: Ho and Salimans 2022, https://arxiv.org/abs/2207.12598, equation 6, with w = scale - 1;
  the rescaling is that of Lin et al. 2023, https://arxiv.org/abs/2305.08891, section 3.4, here of
  x0, whatever the network predicts; the interval Kynkäänniemi et al. 2024,
  https://arxiv.org/abs/2404.07724; several scales Brooks et al. 2023,
  https://arxiv.org/abs/2211.09800, equation 3.

  Args:
    make: cond -> denoiser, such as `run.denoiser`.
    cond: what to condition on, arrays of length B.
    null: a condition of the same structure to guide away from: the model's own that says nothing,
      or any other, such as an encoded negative prompt; a tuple of them where `scale` is a tuple.
    scale: the guidance scale, a scalar, or a tuple with one for each null.
    rescale: φ in [0, 1].
    interval: where to guide, by `log_snr_interval`; outside, the conditional alone.

  Raises:
    ValueError: where rescale is outside [0, 1], there are not as many nulls as scales, or one is of
      another structure than cond.
  """
  if not 0 <= rescale <= 1:
    raise ValueError(f'rescale: {rescale} is outside [0, 1]')
  nulls, scales = (null, scale) if isinstance(scale, tuple) else ((null,), (scale,))
  if not isinstance(nulls, tuple) or len(nulls) != len(scales):
    raise ValueError(f'null: a tuple of {len(scales)} conditions is wanted, one for each scale')
  if all(equals(each, 1) for each in scales):
    return make(cond)
  if all(equals(each, 0) for each in scales) and not rescale and interval is None:
    return make(nulls[-1])
  for each in nulls:
    if jax.tree.structure(each) != jax.tree.structure(cond):
      raise ValueError('null: it must be of the same structure as cond, or a tuple for many scales')
  count = 1 + len(nulls)
  every = make(jax.tree.map(lambda *parts: jnp.concatenate(parts), cond, *nulls))

  def guided(xt: Array, t: Time) -> Denoised:
    times = t if jnp.ndim(t) == 0 else jnp.concatenate([t] * count)
    denoised = every(jnp.concatenate([xt] * count), times)
    conditional, *rest = jnp.split(denoised.x0, count)
    x0 = rest[-1]
    for said, less, each in zip([conditional, *rest[:-1]], rest, scales, strict=True):
      x0 = x0 + each * (said - less)
    x0 = rescaled(x0, conditional, rescale) if rescale else x0
    return jax.tree.map(lambda leaf: leaf[: xt.shape[0]], denoised)._replace(x0=x0)

  return guided if interval is None else limited_to(interval, guided, make(cond))


def autoguidance(strong: Denoiser, weak: Denoiser, scale: float | Array) -> Denoiser:
  """x0 = weak x0 + scale (strong x0 - weak x0): away from a worse version of the same model.

  The weak one is smaller or less trained, under the same condition. At a concrete scale 1 it is
  not evaluated. The variance is the strong one's.

  Reference: Karras et al. 2024, https://arxiv.org/abs/2406.02507.
  """
  if equals(scale, 1):
    return strong

  def guided(xt: Array, t: Time) -> Denoised:
    denoised, other = strong(xt, t), weak(xt, t).x0
    return denoised._replace(x0=other + scale * (denoised.x0 - other))

  return guided


def classifier_guidance(
  denoiser: Denoiser, log_prob: LogProb, schedule: Schedule, scale: float | Array = 1.0
) -> Denoiser:
  """x0 + scale (sigma² / alpha) ∇ log p(y | xt).

  By Bayes' rule the score of q(xt | y) is that of q(xt) plus this gradient, hence scale 1 with the
  true p(y | xt) is the conditional denoiser. Where alpha is zero xt knows nothing of y, and x0 is
  left as it is. The variance stays the denoiser's, which does not know y.

  Reference: Dhariwal and Nichol 2021, https://arxiv.org/abs/2105.05233, section 4.

  Args:
    denoiser: of q(x0 | xt), or a conditional one.
    log_prob: (xt (B, …), t scalar or (B,)) -> (B,), log p(y_i | xt_i), a classifier's that was
      trained on noisy xt; it sees the sampler's t (`schedule.network_time` has the original's).
    schedule: the path.
    scale: exaggerates.
  """

  def guided(xt: Array, t: Time) -> Denoised:
    denoised = denoiser(xt, t)
    gradient = jax.grad(lambda x: jnp.sum(log_prob(x, t)))(xt)
    return denoised._replace(x0=denoised.x0 + scale * gain(schedule, xt, t) * gradient)

  return guided


def log_snr_interval(schedule: Schedule, low: float, high: float) -> Interval:
  """t -> whether low <= log_snr(t) <= high.

  For the paper's sigma of EDM's path, log_snr = -2 log sigma.

  Raises:
    ValueError: unless low < high.
  """
  if not low < high:
    raise ValueError(f'interval: low < high is wanted, not {low} and {high}')

  def inside(t: Time) -> Array:
    log_snr = schedule.log_snr(t)
    return (low <= log_snr) & (log_snr <= high)

  return inside


def limited_to(interval: Interval, inside: Denoiser, outside: Denoiser) -> Denoiser:
  """One denoiser in the interval, another elsewhere; at one shared time only one is evaluated."""

  def denoiser(xt: Array, t: Time) -> Denoised:
    if jnp.ndim(t) == 0:
      return jax.lax.cond(interval(t), inside, outside, xt, t)
    chosen = per_example(jax.vmap(interval)(t), xt)
    both = inside(xt, t), outside(xt, t)
    return jax.tree.map(lambda one, other: jnp.where(chosen, one, other), *both)

  return denoiser


def rescaled(x0: Array, like: Array, rescale: float) -> Array:
  """x0 times 1 - φ + φ std(like) / std(x0), each example's own; a constant one stays as it is."""
  axes = tuple(range(1, x0.ndim))
  variance = jnp.var(x0, axes, keepdims=True)
  wanted = jnp.where(variance > 0, jnp.var(like, axes, keepdims=True), 1.0)
  ratio = root(wanted / jnp.where(variance > 0, variance, 1.0))
  return (1 - rescale + rescale * ratio) * x0


def gain(schedule: Schedule, xt: Array, t: Time) -> Array:
  """sigma² / alpha of each example, from a score's change to that of x0; zero where alpha is."""

  def example(t: Time) -> Array:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jnp.where(alpha > 0, jnp.square(sigma) / jnp.where(alpha > 0, alpha, 1.0), 0.0)

  return per_example(jax.vmap(example)(jnp.broadcast_to(t, xt.shape[:1])), xt)


def per_example(values: Array, like: Array) -> Array:
  """(B,) as (B, 1, …), to meet a batch."""
  return jnp.expand_dims(values, tuple(range(1, like.ndim)))


def equals(scale: float | Array, value: float) -> bool:
  """Whether the scale is known to be that value before anything runs."""
  return not isinstance(scale, jax.core.Tracer) and bool(scale == value)
