"""Ancestral forms of deterministic methods: a step too far down, and noise back up.

With n = sigma / alpha, a step goes from n_t down to n_d < n_s by a method for the probability flow
and returns to n_s by the forward process, whose noise has the variance n_s² - n_d²:

  n_d² = n_s² (1 - eta² r),   xs = alpha_s (y_d + eta n_s sqrt(r) noise)

where r = 1 - n_s² / n_t² and y_d is what the method makes of y = xt / alpha_t at n_d. Every way of
doing so has the form

  xs = alpha_s x0 + sigma_s (sqrt(1 - eta² r) eps + eta sqrt(r) noise)
  xt = alpha_t x0 + sigma_t eps

and a method says what x0 is. Since only y and n enter, a run is the same on every path: x / alpha
for the same noise and the same values of n.

Noising is exact. So is the marginal, then, but for what the method misses on its way down: with a
method of order p the law of xs converges with order p. At eta = 1 log n_d lies as far below log n_s
as log n_t lies above, so that the middle of the way down is the time s itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.formulas import eps_of, kept, place, renewed
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start

# (schedule, denoiser, xt, x0 predicted at xt, step, eta) -> the method's x0
Method = Callable[[Schedule, Denoiser, Array, Array, Step, float], Array]

Share = Annotated[float, Interval(ge=0, le=1)]
NoiseScale = Annotated[float, Interval(gt=0, le=100)]


def euler_ancestral(eta: Share = 1.0, noise_scale: NoiseScale = 1.0) -> Sampler:
  """xs = alpha_s x0 + sigma_s (sqrt(1 - eta² r) eps + eta sqrt(r) noise): down by Euler's method.

  In n Euler's step to n_d leaves x0 and eps as predicted. Hence this is `ddim` with the same eta,
  and with eta = 1 `ancestral` with the small variance, on every path and for every denoiser.

  Reference: Crowson 2022, https://github.com/crowsonkb/k-diffusion; Song et al. 2021,
  https://arxiv.org/abs/2010.02502, equation 12.

  Args:
    eta: in [0, 1], from deterministic to ancestral.
    noise_scale: multiplies the noise; any but 1 changes the marginals.
  """
  return make_ancestral(at_start, eta, noise_scale)


def dpm2_ancestral(eta: Share = 1.0, noise_scale: NoiseScale = 1.0) -> Sampler:
  """alpha_t x0 = xt - sigma_t eps_m: down with the eps of the middle, by DPM-Solver-2.

  Here xm = alpha_m x0(xt) + sigma_m eps(xt) at the middle m in log-SNR between n_t and n_d, and
  eps_m = (xm - alpha_m x0(xm)) / sigma_m, so that y_d = y + (n_d - n_t) eps_m. Where alpha_t = 0
  nothing is known of x0 but what is predicted at xt, and the step is Euler's.

  Reference: Crowson 2022, https://github.com/crowsonkb/k-diffusion; Lu et al. 2022,
  https://arxiv.org/abs/2206.00927, algorithm 1.

  Args:
    eta: in [0, 1], from deterministic to ancestral; below 1 it asks for times off the grid.
    noise_scale: multiplies the noise; any but 1 changes the marginals.
  """
  return make_ancestral(by_middle_eps, eta, noise_scale, evaluations=2)


def dpmpp_2s_ancestral(eta: Share = 1.0, noise_scale: NoiseScale = 1.0) -> Sampler:
  """x0 = x0(xm): down with the x0 of the middle, by DPM-Solver++ (2S) with r = 1/2.

  Here xm = alpha_m x0(xt) + sigma_m eps(xt) at the middle m in log-SNR between n_t and n_d.

  Reference: Crowson 2022, https://github.com/crowsonkb/k-diffusion; Lu et al. 2022,
  https://arxiv.org/abs/2211.01095, algorithm 1.

  Args:
    eta: in [0, 1], from deterministic to ancestral; below 1 it asks for times off the grid.
    noise_scale: multiplies the noise; any but 1 changes the marginals.
  """
  return make_ancestral(by_middle_x0, eta, noise_scale, evaluations=2)


@bounded
def make_ancestral(
  method: Method, eta: Share, noise_scale: NoiseScale, evaluations: int = 1
) -> Sampler:
  """The sampler of the module's formula with a method's x0.

  Raises:
    ValueError: where eta or noise_scale is out of bounds.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    t, s = step.t, step.s
    predicted = denoiser(state.x, t).x0
    x0 = method(schedule, denoiser, state.x, predicted, step, eta)
    eps = eps_of(schedule, state.x, x0, t)
    if eta:
      eps = renewed(schedule, eps, noise_scale * noise(t, s), s, t, eta)
    return State(place(schedule, x0, eps, s), predicted)

  return Sampler(
    start,
    update,
    order=evaluations,
    evaluations=evaluations,
    stochastic=eta > 0,
    between=evaluations > 1 and eta < 1,
  )


def at_start(
  schedule: Schedule, denoiser: Denoiser, xt: Array, x0: Array, step: Step, eta: float
) -> Array:
  """What is predicted at xt."""
  del schedule, denoiser, xt, step, eta
  return x0


def by_middle_x0(
  schedule: Schedule, denoiser: Denoiser, xt: Array, x0: Array, step: Step, eta: float
) -> Array:
  """What is predicted at xm."""
  m = middle(schedule, step.s, step.t, eta)
  return denoiser(place(schedule, x0, eps_of(schedule, xt, x0, step.t), m), m).x0


def by_middle_eps(
  schedule: Schedule, denoiser: Denoiser, xt: Array, x0: Array, step: Step, eta: float
) -> Array:
  """What the eps predicted at xm makes of xt; x0 where alpha_t = 0."""
  m = middle(schedule, step.s, step.t, eta)
  xm = place(schedule, x0, eps_of(schedule, xt, x0, step.t), m)
  eps = eps_of(schedule, xm, denoiser(xm, m).x0, m)
  alpha = schedule.alpha(step.t)
  read = (xt - schedule.sigma(step.t) * eps) / jnp.where(alpha > 0, alpha, 1.0)
  return jnp.where(alpha > 0, read, x0)


def middle(schedule: Schedule, s: Time, t: Time, eta: float) -> Time:
  """The time m half way in log-SNR from n_t to n_d: log n_m² = ½ (log n_t² + log n_d²).

  For eta = 1, n_d² = n_s⁴ / n_t², so that m is s itself.
  """
  if eta == 1:
    return s
  log_snr_d = schedule.log_snr(s) - jnp.log(kept(schedule, s, t, eta))
  return schedule.time((schedule.log_snr(t) + log_snr_d) / 2)
