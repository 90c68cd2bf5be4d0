"""The path as a stochastic differential equation, its reversal, and the ODE with its marginals.

Every path xt = alpha(t) x0 + sigma(t) eps has the marginals of the linear equation

  dx = f(t) x dt + g(t) dw,  f = alpha' / alpha,  g² = 2 sigma sigma' - 2 f sigma²

so that alpha and sigma are all that is asked of a schedule; derivatives in t come from jax.jvp. A
discrete chain has none: `schedules.interpolate` reads it in continuous time.

Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456; Karras et al. 2022,
https://arxiv.org/abs/2206.00364, appendix B.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Discrete, Schedule, Time, check_scalar

Field = Callable[[Array, Time], Array]


def path_rates(schedule: Schedule, t: Time) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
  """(alpha, sigma) and their derivatives (alpha', sigma') in t.

  Raises:
    TypeError: for a discrete chain or an integer t.
  """
  if isinstance(schedule, Discrete):
    raise TypeError('a discrete chain has no derivative in time: use schedules.interpolate')
  if not jnp.issubdtype(jnp.result_type(t), jnp.floating):
    raise TypeError(f'derivatives in time are for float times, not {jnp.result_type(t)}')
  schedule.alpha(t)  # refuses a time out of range, which in jvp is traced and would be clamped
  t = jnp.asarray(t, jnp.result_type(float))
  return jax.jvp(lambda t: (schedule.alpha(t), schedule.sigma(t)), (t,), (jnp.ones_like(t),))


def drift(schedule: Schedule, t: Time) -> Array:
  """f(t) = alpha' / alpha, the forward drift being f x; infinite where alpha = 0."""
  check_scalar(t, 'drift', '(None, 0)')
  (alpha, _), (alpha_rate, _) = path_rates(schedule, t)
  return alpha_rate / alpha


def squared_diffusion(schedule: Schedule, t: Time) -> Array:
  """g²(t) = 2 sigma (sigma' - f sigma): the variance that noise adds in a unit of time."""
  check_scalar(t, 'squared_diffusion', '(None, 0)')
  (alpha, sigma), (alpha_rate, sigma_rate) = path_rates(schedule, t)
  return 2 * sigma * (sigma_rate - alpha_rate / alpha * sigma)


def probability_flow(schedule: Schedule, denoiser: Denoiser) -> Field:
  """dx/dt = alpha' x0_hat + sigma' eps_hat: the ODE that has the marginals of the equation.

  With the exact denoiser it is f x - ½ g² ∇ log q(xt). This form stays finite where alpha or sigma
  goes to zero, though f, g and the score do not.

  Returns:
    (xt (B, …), t scalar) -> dx/dt (B, …).
  """

  def field(xt: Array, t: Time) -> Array:
    check_scalar(t, 'field', '(0, 0)')
    (alpha, sigma), (alpha_rate, sigma_rate) = path_rates(schedule, t)
    x0 = denoiser(xt, t).x0
    return alpha_rate * x0 + sigma_rate * ((xt - alpha * x0) / sigma)

  return field


def reverse_drift(schedule: Schedule, denoiser: Denoiser, level: float = 1.0) -> Field:
  """The drift of dx = [f x - ½ (1 + level) g² score] dt + sqrt(level) g dw̄, run from t_max down.

  Whatever the level >= 0, the marginals are the forward equation's: 1 is its reversal in time, 0
  the probability-flow ODE, to which the level adds -½ level g² score, that is
  level (sigma' - f sigma) eps.

  Reference: Anderson 1982, https://doi.org/10.1016/0304-4149(82)90051-5; Huang et al. 2021,
  https://arxiv.org/abs/2106.02808.

  Returns:
    (xt (B, …), t scalar) -> drift (B, …), of forward time as t is: a step from t to s < t adds
    (s - t) drift and noise of variance (t - s) level g².

  Raises:
    ValueError: where the level is negative.
  """
  if level < 0:
    raise ValueError(f'level = {level}: a variance is never negative')

  def field(xt: Array, t: Time) -> Array:
    check_scalar(t, 'field', '(0, 0)')
    (alpha, sigma), (alpha_rate, sigma_rate) = path_rates(schedule, t)
    x0 = denoiser(xt, t).x0
    excess = level * (sigma_rate - alpha_rate / alpha * sigma)
    return alpha_rate * x0 + (sigma_rate + excess) * ((xt - alpha * x0) / sigma)

  return field


def fokker_planck_residual(
  schedule: Schedule, log_density: Callable[[Array, Time], Array], x: Array, t: Time
) -> Array:
  """∂_t log p + f (d + x·∇log p) - ½ g² (Δ log p + |∇log p|²): zero for the path's own marginals.

  It is the Fokker-Planck equation ∂_t p = -∇·(f x p) + ½ g² Δp divided by p.

  Args:
    schedule: the path.
    log_density: (x, t) -> log p in nats, for one example.
    x: one example.
    t: a scalar time.
  """
  check_scalar(t, 'fokker_planck_residual', '(None, None, 0, 0)')
  log_density_rate = jax.grad(log_density, argnums=1)(x, t)
  flat = jnp.ravel(x)
  score = jax.grad(lambda flat: log_density(flat.reshape(jnp.shape(x)), t))
  gradient, hessian = score(flat), jax.jacfwd(score)(flat)
  advection = drift(schedule, t) * (flat.size + jnp.dot(flat, gradient))
  diffusion = jnp.trace(hessian) + jnp.dot(gradient, gradient)
  return log_density_rate + advection - squared_diffusion(schedule, t) / 2 * diffusion
