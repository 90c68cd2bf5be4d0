"""The forward process, its posterior, and the reverse step that imitates the posterior.

Mathematics for one example of any shape and scalar times s < t. With
q = alpha_t sigma_s / (alpha_s sigma_t), so that q² = SNR(t) / SNR(s), and r = 1 - q²,

  q(xt | x0)     = N(alpha_t x0, sigma_t²)
  q(xt | xs)     = N(alpha_t / alpha_s xs, sigma_t² r)
  q(xs | xt, x0) = N(alpha_s r x0 + alpha_t sigma_s² / (alpha_s sigma_t²) xt, sigma_s² r)

which are finite, with finite gradients, at s = 0 and at zero terminal SNR. Where all is elementwise
a whole batch at one shared time may be passed as it stands.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.schedules import Discrete, Schedule, Time, check_scalar


class Denoised(NamedTuple):
  """What a denoiser knows of x0 after seeing xt.

  Attributes:
    x0: its estimate of E[x0 | xt].
    x0_variance: Var[x0 | xt], where it is known (an oracle, an analytic estimate).
    fraction: in [0, 1], a learned variance's place between the logs of `small` and `large`.
  """

  x0: Array
  x0_variance: Array | None = None
  fraction: Array | None = None


def q_sample(schedule: Schedule, x0: Array, t: Time, eps: Array) -> Array:
  """xt = alpha_t x0 + sigma_t eps: a draw from q(xt | x0), for standard normal eps like x0."""
  check_scalar(t, 'q_sample', '(None, 0, 0, 0)')
  return schedule.alpha(t) * x0 + schedule.sigma(t) * eps


def q_marginal(schedule: Schedule, x0: Array, t: Time) -> Gaussian:
  """q(xt | x0) = N(alpha_t x0, sigma_t²)."""
  check_scalar(t, 'q_marginal', '(None, 0, 0)')
  return Gaussian(schedule.alpha(t) * x0, jnp.square(schedule.sigma(t)))


def prior(schedule: Schedule, x: Array, t: Time) -> Gaussian:
  """N(0, alpha_t² + sigma_t²) like x: where the chain ends, standard normal on every VP path.

  It is the marginal at t of data with mean zero and variance one.
  """
  check_scalar(t, 'prior', '(None, 0, 0)')
  variance = jnp.square(schedule.alpha(t)) + jnp.square(schedule.sigma(t))
  return Gaussian(jnp.zeros_like(x), variance)


def q_transition(schedule: Schedule, xs: Array, s: Time, t: Time) -> Gaussian:
  """q(xt | xs) = N(alpha_t / alpha_s xs, sigma_t² r), for s < t; needs alpha_s > 0."""
  check_order(s, t, 'q_transition', '(None, 0, 0, 0)')
  mean = schedule.alpha(t) / schedule.alpha(s) * xs
  return Gaussian(mean, jnp.square(schedule.sigma(t)) * fresh_noise(schedule, s, t))


def q_posterior(schedule: Schedule, x0: Array, xt: Array, s: Time, t: Time) -> Gaussian:
  """q(xs | xt, x0) = N(alpha_s r x0 + alpha_t sigma_s² / (alpha_s sigma_t²) xt, sigma_s² r).

  The forward process is a Markov chain, so Bayes' rule multiplies q(xt | xs) and q(xs | x0);
  completing the square in xs gives this. At s = 0 it is the point x0.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equations 6 and 7.
  """
  check_order(s, t, 'q_posterior', '(None, 0, 0, 0, 0)')
  alpha_s, sigma_s = schedule.alpha(s), schedule.sigma(s)
  r = fresh_noise(schedule, s, t)
  of_xt = noise_ratio(schedule, s, t) * sigma_s / schedule.sigma(t)
  return Gaussian(alpha_s * r * x0 + of_xt * xt, jnp.square(sigma_s) * r)


def reverse(
  schedule: Schedule, denoised: Denoised, xt: Array, s: Time, t: Time, variance: str = 'small'
) -> Gaussian:
  """p(xs | xt): the posterior with the denoiser's x0 in the place of x0, and a chosen variance.

  Args:
    schedule: the path.
    denoised: what the denoiser makes of xt.
    xt: the noisy example.
    s: the time to go to.
    t: the time of xt, above s.
    variance: a key of VARIANCES.
  """
  check_order(s, t, 'reverse', '(None, 0, 0, 0, 0)')
  mean = q_posterior(schedule, denoised.x0, xt, s, t).mean
  return Gaussian(mean, VARIANCES[variance](schedule, denoised, s, t))


def small(schedule: Schedule, denoised: Denoised, s: Time, t: Time) -> Array:
  """sigma_s² r: the posterior's own; right where the data is a single point."""
  del denoised
  return jnp.square(schedule.sigma(s)) * fresh_noise(schedule, s, t)


def large(schedule: Schedule, denoised: Denoised, s: Time, t: Time) -> Array:
  """sigma_t² r, the forward step's (beta_t for a single step); right for standard normal data."""
  del denoised
  return jnp.square(schedule.sigma(t)) * fresh_noise(schedule, s, t)


def fraction(schedule: Schedule, denoised: Denoised, s: Time, t: Time) -> Array:
  """exp(f log large + (1 - f) log small), f = denoised.fraction learned by the network.

  Since small = (sigma_s / sigma_t)² large, this is large (sigma_s / sigma_t)^(2 (1 - f)); at s = 0
  it is zero, as `small` is.
  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15.
  """
  f = known_fraction(denoised)
  shrinkage = schedule.sigma(s) / schedule.sigma(t)
  power = jnp.where(shrinkage > 0, shrinkage, 1.0) ** (2 * (1 - f))
  return large(schedule, denoised, s, t) * jnp.where(shrinkage > 0, power, 0.0)


def optimal(schedule: Schedule, denoised: Denoised, s: Time, t: Time) -> Array:
  """sigma_s² r + (alpha_s r)² Var[x0 | xt]: by the law of total variance, that of q(xs | xt).

  Reference: Bao et al. 2022, https://arxiv.org/abs/2206.07309, of one xt; averaged over xt and over
  dimensions it is theorem 1 of https://arxiv.org/abs/2201.06503.
  """
  of_x0 = schedule.alpha(s) * fresh_noise(schedule, s, t)
  return small(schedule, denoised, s, t) + jnp.square(of_x0) * known_variance(denoised)


def known_fraction(denoised: Denoised) -> Array:
  """The learned variance's fraction; ValueError where the network has learned none."""
  if denoised.fraction is None:
    raise ValueError("variance 'fraction' needs a denoiser with a learned variance")
  return denoised.fraction


def known_variance(denoised: Denoised) -> Array:
  """Var[x0 | xt]; ValueError where the denoiser does not know it."""
  if denoised.x0_variance is None:
    raise ValueError("variance 'optimal' needs a denoiser that knows Var[x0 | xt]")
  return denoised.x0_variance


VARIANCES = {
  'small': small,
  'large': large,
  'fraction': fraction,
  'optimal': optimal,
}


def noise_ratio(schedule: Schedule, s: Time, t: Time) -> Array:
  """q = alpha_t sigma_s / (alpha_s sigma_t): the square root of SNR(t) / SNR(s)."""
  return schedule.alpha(t) * schedule.sigma(s) / (schedule.alpha(s) * schedule.sigma(t))


def fresh_noise(schedule: Schedule, s: Time, t: Time) -> Array:
  """r = 1 - SNR(t) / SNR(s): the share of xt's noise that came after time s.

  On a chain r = -expm1(log_snr_t - log_snr_s). The difference comes from tables that were built in
  double precision, so that the relative error of r in single precision is at most 2⁻²¹ for any two
  times. In continuous time r = (1 - q)(1 + q), and its relative error is at most
  2⁻¹⁸ / |log_snr_t - log_snr_s|: the rounding of q itself, which counts the more the closer the
  times are.
  """
  if isinstance(schedule, Discrete):
    return -jnp.expm1(schedule.log_snr_change(s, t))
  q = noise_ratio(schedule, s, t)
  return (1 - q) * (1 + q)


def check_order(s: Time, t: Time, name: str, vmap_axes: str) -> None:
  """Refuses batches of times and, where both are concrete, s >= t."""
  check_scalar(s, name, vmap_axes)
  check_scalar(t, name, vmap_axes)
  if isinstance(s, jax.core.Tracer) or isinstance(t, jax.core.Tracer):
    return
  if s >= t:
    raise ValueError(f'{name} goes between times s < t, but s = {s} and t = {t}')
