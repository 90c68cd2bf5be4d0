"""Inverse problems: wrappers that make a denoiser of q(x0 | xt) one of q(x0 | xt, y).

Given is y = A x0 + noise. As for a classifier's, x0 moves by (sigma² / alpha) ∇ log p(y | xt), for
which each method has its approximation; any sampler takes the result. Operators A are functions of
one example. With J the Jacobian of x0_hat in xt, Tweedie's formula of the second order is

  Cov[x0 | xt] = (sigma² / alpha) J,

so that the gradient of anything in x0_hat moves x0 by a covariance times it. The variances that
denoisers carry stay those without y.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, known_variance
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.errors import InputError
from ddpm_jax.samplers.guidance import gain, per_example

Operator = Callable[[Array], Array]
# (schedule, t, denoised, tweedie) -> a batch's v -> Cov[x0 | xt] v; `tweedie` is such a map itself.
Covariance = Callable[[Schedule, Time, Denoised, Operator], Operator]
# (M, b) -> the solution w of M w = b, each example its own; M is symmetric and not negative.
Solve = Callable[[Operator, Array], Array]


def dps(
  denoiser: Denoiser, schedule: Schedule, operator: Operator, y: Array, scale: float | Array = 1.0
) -> Denoiser:
  """x0 - scale (sigma² / alpha) ∇ |y - A x0_hat(xt)|: diffusion posterior sampling.

  The method takes p(y | x0 = x0_hat) for p(y | xt), and in place of 1 / noise² a step in inverse
  proportion to the distance, which makes of the square's gradient that of the distance itself. As
  published each step, of any length, subtracts the same from xs. Here it is a part of x0, whose
  share in a step is the step's: its sum has a limit on finer grids, and scales are not the paper's.
  At alpha = 0 nothing moves.

  Reference: Chung et al. 2023, https://arxiv.org/abs/2209.14687, algorithm 1.

  Args:
    denoiser: of q(x0 | xt), differentiable.
    schedule: the path.
    operator: A, any differentiable function of one example.
    y: (B, …), what was measured.
    scale: above zero, of the unit y / x0².

  Raises:
    InputError: where scale is not above zero or y is not shaped as A makes it.
  """
  forward = jax.vmap(operator)
  if not isinstance(scale, jax.core.Tracer) and not scale > 0:
    raise InputError(f'scale: {scale} is not above zero')

  def guided(xt: Array, t: Time) -> Denoised:
    def distance(x: Array) -> tuple[Array, Denoised]:
      denoised = denoiser(x, t)
      residual = residual_of(y, forward(denoised.x0))
      return jnp.sum(root(dot(residual, residual))), denoised

    gradient, denoised = jax.grad(distance, has_aux=True)(xt)
    return denoised._replace(x0=denoised.x0 - scale * gain(schedule, xt, t) * gradient)

  return guided


def isotropic(schedule: Schedule, t: Time, denoised: Denoised, tweedie: Operator) -> Operator:
  """r² I, r² = sigma² / (alpha² + sigma²): exact for standard normal data."""
  del tweedie

  def example(t: Time) -> Array:
    noise = jnp.square(schedule.sigma(t))
    return noise / (jnp.square(schedule.alpha(t)) + noise)

  variance = jax.vmap(example)(jnp.broadcast_to(t, denoised.x0.shape[:1]))
  return lambda v: per_example(variance, v) * v


def diagonal(schedule: Schedule, t: Time, denoised: Denoised, tweedie: Operator) -> Operator:
  """diag Var[x0 | xt], from a denoiser that knows it."""
  del schedule, t, tweedie
  return lambda v: known_variance(denoised) * v


def from_jacobian(schedule: Schedule, t: Time, denoised: Denoised, tweedie: Operator) -> Operator:
  """(sigma² / alpha) Jᵀ: exact for an exact denoiser, for one more gradient in each iteration.

  Reference: Rozet et al. 2024, https://arxiv.org/abs/2405.13712.
  """
  del schedule, t, denoised
  return tweedie


COVARIANCES: dict[str, Covariance] = {
  'isotropic': isotropic,
  'diagonal': diagonal,
  'jacobian': from_jacobian,
}


def conjugate_gradients(matrix: Operator, b: Array, max_iterations: int = 100) -> Array:
  """w with M w = b to |M w - b| <= ε^(3/4) |b|, ε the type's, each example for itself.

  One that has arrived waits for the others unchanged, so that none depends on its batch; hence not
  jax.scipy's, which would solve the batch as one system.

  Reference: Hestenes and Stiefel 1952, https://doi.org/10.6028/jres.049.044.

  Args:
    matrix: w (B, …) -> M w, symmetric and not negative for each example.
    b: (B, …), in M's range.
    max_iterations: where to stop at the latest.
  """
  enough = jnp.finfo(b.dtype).eps ** 1.5 * dot(b, b)

  def unfinished(carry: tuple[Array, ...]) -> Array:
    *_, square, number = carry
    return jnp.any(square > enough) & (number < max_iterations)

  def iterate(carry: tuple[Array, ...]) -> tuple[Array, ...]:
    w, residual, direction, square, number = carry
    image = matrix(direction)
    curvature = dot(direction, image)
    active = (square > enough) & (curvature > 0)
    length = jnp.where(active, square / jnp.where(active, curvature, 1.0), 0.0)
    w, residual = w + length * direction, residual - length * image
    # Without curvature there is nowhere left to go: such an example is done too.
    new = jnp.where(active, dot(residual, residual), 0.0)
    direction = residual + new / jnp.where(active, square, 1.0) * direction
    return w, residual, direction, new, number + 1

  first = (jnp.zeros_like(b), b, b, dot(b, b), jnp.array(0))
  return jax.lax.while_loop(unfinished, iterate, first)[0]


def pigdm(
  denoiser: Denoiser,
  schedule: Schedule,
  operator: Operator,
  y: Array,
  noise: float | Array,
  covariance: Covariance = isotropic,
  solve: Solve = conjugate_gradients,
) -> Denoiser:
  """x0 + C Aᵀ (A Ĉ Aᵀ + noise² I)⁻¹ (y - A x0), C = (sigma² / alpha) Jᵀ: pseudoinverse guidance.

  This is the gradient under p(x0 | xt) = N(x0_hat, Ĉ), of which the paper takes Ĉ = r² I. With
  Ĉ = Cov[x0 | xt] it is exact on Gaussian data. At alpha = 0, where J says nothing, C is Ĉ.

  Reference: Song et al. 2023, https://openreview.net/forum?id=9_gsMA8MRKQ.

  Args:
    denoiser: of q(x0 | xt), differentiable.
    schedule: the path.
    operator: A, a linear function of one example.
    y: (B, …), what was measured.
    noise: the standard deviation of its noise, not negative.
    covariance: Ĉ, a value of COVARIANCES or one's own.
    solve: of the linear system in y's space.

  Raises:
    InputError: where noise is negative or y is not shaped as A makes it.
  """
  if not isinstance(noise, jax.core.Tracer) and not noise >= 0:
    raise InputError(f'noise: {noise} is negative')
  forward = jax.vmap(operator)

  def guided(xt: Array, t: Time) -> Denoised:
    def predict(x: Array) -> tuple[Array, Denoised]:
      denoised = denoiser(x, t)
      return denoised.x0, denoised

    x0, pull, denoised = jax.vjp(predict, xt, has_aux=True)
    backward = jax.linear_transpose(forward, x0)
    to_x0 = gain(schedule, xt, t)

    def tweedie(v: Array) -> Array:
      return to_x0 * pull(v)[0]

    spread = covariance(schedule, t, denoised, tweedie)

    def matrix(w: Array) -> Array:
      return forward(spread(*backward(w))) + jnp.square(noise) * w

    (push,) = backward(solve(matrix, residual_of(y, forward(x0))))
    return denoised._replace(x0=x0 + jnp.where(to_x0 > 0, tweedie(push), spread(push)))

  return guided


def residual_of(y: Array, predicted: Array) -> Array:
  """y - A x0; InputError where their shapes differ."""
  if y.shape != predicted.shape:
    raise InputError(f'y: has shape {y.shape}, but the operator makes {predicted.shape}')
  return y - predicted


def dot(u: Array, v: Array) -> Array:
  """Each example's Σ u v, (B, 1, …)."""
  return jnp.sum(u * v, axis=tuple(range(1, u.ndim)), keepdims=True)
