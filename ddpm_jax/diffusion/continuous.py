"""Schedules in continuous time, by formula: t in [0, 1], for `edm` t = sigma in [0, sigma_max].

Times are floats; integers are refused, being a chain's. A time that is out of range raises
ValueError where it is concrete and is clamped where it is traced, with the one-sided derivative at
the ends themselves. `t_min` is the first time that samplers and losses use: sigma(0) may be zero.

Parameters are leaves, what bounds the time is static. Each log-SNR is formed directly, never as the
logarithm of a ratio that has lost its digits.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array
from jax.typing import ArrayLike

from ddpm_jax.diffusion.protocol import Time, check_scalar

# Bounds of what a config may say of a path.
Sigma = Annotated[float, Interval(ge=1e-6, le=1e6)]
Beta = Annotated[float, Interval(ge=0, le=100)]
LogSNR = Annotated[float, Interval(ge=-40, le=40)]
First = Annotated[float, Interval(gt=0, lt=1)]


class Continuous:
  """What continuous schedules share; a family gives log_ratio, inverse and, if not VP, path."""

  t_min: float
  t_max: float
  t_first = 0.0  # the first time in range

  def path(self, t: Array) -> tuple[Array, Array]:
    """(alpha, sigma) at a time in range, on a VP path: alpha² is sigmoid(log_snr)."""
    log_snr = self.log_ratio(t)
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))

  def log_ratio(self, t: Array) -> Array:
    """The log-SNR at a time in range."""
    raise NotImplementedError

  def inverse(self, log_snr: Array) -> Array:
    """The time of a log-SNR in range."""
    raise NotImplementedError

  def alpha(self, t: Time) -> Array:
    """The factor of the data."""
    return self.path(self._inside(t, 'schedule.alpha'))[0]

  def sigma(self, t: Time) -> Array:
    """The standard deviation of the noise."""
    return self.path(self._inside(t, 'schedule.sigma'))[1]

  def log_snr(self, t: Time) -> Array:
    """log(alpha² / sigma²)."""
    return self.log_ratio(self._inside(t, 'schedule.log_snr'))

  def time(self, log_snr: Array | float) -> Array:
    """The time of a log-SNR; t_min or t_max for what lies beyond theirs."""
    check_scalar(log_snr, 'schedule.time', '(0,)')
    first, last = (self.log_ratio(as_float(t)) for t in (self.t_min, self.t_max))
    t = self.inverse(limited(as_float(log_snr), last, first))
    # Rounding may have left the range; the derivative is still that of the inverse.
    return t + jax.lax.stop_gradient(limited(t, self.t_min, self.t_max) - t)

  def network_time(self, t: Time) -> Array:
    """1000 t."""
    return 1000 * self._inside(t, 'schedule.network_time')

  def _inside(self, t: Time, name: str) -> Array:
    check_scalar(t, name, '(0,)')
    if not jnp.issubdtype(jnp.result_type(t), jnp.floating):
      raise TypeError(f'{name}: a continuous schedule takes float times, not {jnp.result_type(t)}')
    return self._in_range(t, name)

  def _in_range(self, t: Time, name: str) -> Array:
    first, last = self.t_first, self.t_max
    slack = 1e-6 * last  # of a bound rounded to single precision
    if not isinstance(t, jax.core.Tracer) and not first - slack <= float(t) <= last + slack:
      raise ValueError(f'{name}: t = {float(t)} is outside [{first}, {last}]')
    return limited(as_float(t), first, last)


@flax.struct.dataclass
class VP(Continuous):
  """alpha² = exp(-B(t)), sigma² = 1 - alpha², B(t) = beta_min t + ½ (beta_max - beta_min) t²."""

  beta_min: Array | float
  beta_max: Array | float
  t_min: float = flax.struct.field(pytree_node=False)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def path(self, t: Array) -> tuple[Array, Array]:
    """(exp(-B/2), sqrt(1 - exp(-B)))."""
    total = total_beta(self, t)
    return jnp.exp(-total / 2), root(-jnp.expm1(-total))

  def log_ratio(self, t: Array) -> Array:
    """-log(exp(B) - 1)."""
    total = total_beta(self, t)
    return -total - jnp.log(-jnp.expm1(-total))

  def inverse(self, log_snr: Array) -> Array:
    """The time at which B = log(1 + 1/SNR)."""
    return time_of_total(self, jax.nn.softplus(-log_snr))


@flax.struct.dataclass
class SubVP(Continuous):
  """alpha² = exp(-B(t)), as VP's, and sigma = 1 - alpha²."""

  beta_min: Array | float
  beta_max: Array | float
  t_min: float = flax.struct.field(pytree_node=False)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def path(self, t: Array) -> tuple[Array, Array]:
    """(exp(-B/2), 1 - exp(-B))."""
    total = total_beta(self, t)
    return jnp.exp(-total / 2), -jnp.expm1(-total)

  def log_ratio(self, t: Array) -> Array:
    """-2 log(2 sinh(B/2))."""
    total = total_beta(self, t)
    return -total - 2 * jnp.log(-jnp.expm1(-total))

  def inverse(self, log_snr: Array) -> Array:
    """The time at which B = 2 arsinh(½ exp(-log_snr / 2))."""
    return time_of_total(self, 2 * jnp.arcsinh(jnp.exp(-log_snr / 2) / 2))


@flax.struct.dataclass
class VE(Continuous):
  """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t: even steps in log-SNR."""

  sigma_min: Array | float
  sigma_max: Array | float
  t_min: float = flax.struct.field(pytree_node=False, default=0.0)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def path(self, t: Array) -> tuple[Array, Array]:
    """(1, sigma_min (sigma_max / sigma_min)^t)."""
    return jnp.ones_like(t), jnp.exp(-self.log_ratio(t) / 2)

  def log_ratio(self, t: Array) -> Array:
    """-2 log sigma, linear in t."""
    return -2 * ((1 - t) * jnp.log(self.sigma_min) + t * jnp.log(self.sigma_max))

  def inverse(self, log_snr: Array) -> Array:
    """(-log_snr / 2 - log sigma_min) / log(sigma_max / sigma_min)."""
    first, last = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
    return (-log_snr / 2 - first) / (last - first)


@flax.struct.dataclass
class EDM(Continuous):
  """alpha = 1, sigma = t."""

  t_min: float = flax.struct.field(pytree_node=False)
  t_max: float = flax.struct.field(pytree_node=False)

  def path(self, t: Array) -> tuple[Array, Array]:
    """(1, t)."""
    return jnp.ones_like(t), t

  def log_ratio(self, t: Array) -> Array:
    """-2 log t."""
    return -2 * jnp.log(t)

  def inverse(self, log_snr: Array) -> Array:
    """exp(-log_snr / 2)."""
    return jnp.exp(-log_snr / 2)


@flax.struct.dataclass
class Flow(Continuous):
  """alpha = 1 - u, sigma = u at the shifted time u = s t / (1 + (s - 1) t)."""

  shift: Array | float
  t_min: float = flax.struct.field(pytree_node=False)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def path(self, t: Array) -> tuple[Array, Array]:
    """(1 - t, s t) / (1 + (s - 1) t)."""
    scale = 1 + (self.shift - 1) * t
    return (1 - t) / scale, self.shift * t / scale

  def log_ratio(self, t: Array) -> Array:
    """2 log((1 - t) / (s t)): -inf at t = 1."""
    return 2 * (jnp.log1p(-t) - jnp.log(t) - jnp.log(self.shift))

  def inverse(self, log_snr: Array) -> Array:
    """1 / (1 + s exp(log_snr / 2))."""
    return jax.nn.sigmoid(-log_snr / 2 - jnp.log(self.shift))


@flax.struct.dataclass
class CosineLogSNR(Continuous):
  """log_snr = shift - 2 log tan(angle), the angle affine in t between the two truncations."""

  log_snr_min: Array | float
  log_snr_max: Array | float
  shift: Array | float
  t_min: float = flax.struct.field(pytree_node=False, default=0.0)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def ends(self) -> tuple[Array, Array, Array]:
    """The angle at t = 0, what lacks to π/2 at t = 1, and the way between."""
    below, above = angle_of(self.log_snr_max), angle_of(-self.log_snr_min)
    return below, above, jnp.pi / 2 - below - above

  def log_ratio(self, t: Array) -> Array:
    """Shift - 2 log tan(angle), past π/4 by the complement, whose tangent keeps its digits."""
    below, above, way = self.ends()
    angle, complement = below + way * t, above + way * (1 - t)
    near = angle < complement
    log_tan = jnp.log(jnp.tan(jnp.where(near, angle, complement)))
    return self.shift - 2 * jnp.where(near, log_tan, -log_tan)

  def inverse(self, log_snr: Array) -> Array:
    """(arctan exp((shift - log_snr) / 2) - the angle at 0) / way."""
    below, _, way = self.ends()
    return (angle_of(log_snr - self.shift) - below) / way


def vp(
  beta_min: Annotated[float, Interval(ge=0, le=100)] = 0.1,
  beta_max: Annotated[float, Interval(gt=0, le=100)] = 20.0,
  t_min: First = 1e-5,
) -> VP:
  """alpha² = exp(-beta_min t - ½ (beta_max - beta_min) t²), sigma² = 1 - alpha².

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, equation 29.

  Raises:
    ValueError: unless 0 <= beta_min, 0 < beta_max and 0 < t_min < 1.
  """
  check_betas(beta_min, beta_max, t_min)
  return VP(beta_min, beta_max, t_min)


def sub_vp(
  beta_min: Annotated[float, Interval(ge=0, le=100)] = 0.1,
  beta_max: Annotated[float, Interval(gt=0, le=100)] = 20.0,
  t_min: First = 1e-3,
) -> SubVP:
  """alpha² = exp(-beta_min t - ½ (beta_max - beta_min) t²), sigma = 1 - alpha².

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, equation 29.

  Raises:
    ValueError: unless 0 <= beta_min, 0 < beta_max and 0 < t_min < 1.
  """
  check_betas(beta_min, beta_max, t_min)
  return SubVP(beta_min, beta_max, t_min)


def ve(sigma_min: Sigma = 0.01, sigma_max: Sigma = 50.0) -> VE:
  """alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, sigma_min at t = t_min = 0.

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix C.

  Raises:
    ValueError: unless 0 < sigma_min < sigma_max.
  """
  check_increasing('0 < sigma_min < sigma_max', 0, sigma_min, sigma_max)
  return VE(sigma_min, sigma_max)


def edm(sigma_min: Sigma = 0.002, sigma_max: Sigma = 80.0) -> EDM:
  """alpha = 1, sigma = t, for t in [0, sigma_max], used from t_min = sigma_min.

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1.

  Raises:
    ValueError: unless 0 < sigma_min < sigma_max.
  """
  check_increasing('0 < sigma_min < sigma_max', 0, sigma_min, sigma_max)
  return EDM(float(sigma_min), float(sigma_max))


def flow(shift: Annotated[float, Interval(gt=0, le=1000)] = 1.0, t_min: First = 1e-3) -> Flow:
  """alpha = 1 - u, sigma = u with u = shift t / (1 + (shift - 1) t): rectified flow, noise at 1.

  A shift above 1 spends more of the time at high noise, for large images. The SNR at t = 1 is zero.
  Reference: Liu et al. 2022, https://arxiv.org/abs/2209.03003; the shift is that of Esser et al.
  2024, https://arxiv.org/abs/2403.03206, equation 23.

  Raises:
    ValueError: unless shift > 0 and 0 < t_min < 1.
  """
  check_increasing('0 < shift', 0, shift)
  check_increasing('0 < t_min < 1', 0, t_min, 1)
  return Flow(shift, t_min)


def cosine_log_snr(
  log_snr_min: LogSNR = -15.0, log_snr_max: LogSNR = 15.0, shift: LogSNR = 0.0
) -> CosineLogSNR:
  """log_snr = shift - 2 log tan(π t / 2), VP, truncated to [log_snr_min, log_snr_max] + shift.

  For images of d by d pixels the shift is 2 log(64 / d).
  Reference: Hoogeboom et al. 2023, https://arxiv.org/abs/2301.11093, section 3.1.

  Raises:
    ValueError: unless log_snr_min < log_snr_max.
  """
  check_increasing('log_snr_min < log_snr_max', log_snr_min, log_snr_max)
  return CosineLogSNR(log_snr_min, log_snr_max, shift)


def total_beta(schedule: VP | SubVP, t: Array) -> Array:
  """B(t), the integral of beta from 0 to t."""
  return t * (schedule.beta_min + (schedule.beta_max - schedule.beta_min) * t / 2)


def time_of_total(schedule: VP | SubVP, total: Array) -> Array:
  """The time t at which B(t) = total: the quadratic's root in the form that does not cancel."""
  slope = schedule.beta_max - schedule.beta_min
  # The square of beta there, which is never below that of the lower end, however it is rounded.
  least = jnp.minimum(schedule.beta_min, schedule.beta_max) ** 2
  square = jnp.maximum(schedule.beta_min**2 + 2 * slope * total, least)
  return 2 * total / (schedule.beta_min + jnp.sqrt(square))


def angle_of(log_snr: Array | float) -> Array:
  """arctan(sigma / alpha)."""
  return jnp.arctan(jnp.exp(-as_float(log_snr) / 2))


def root(x: Array) -> Array:
  """sqrt(x) for x >= 0, with derivative zero instead of infinity at zero."""
  return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def limited(x: Array, low: Array | float, high: Array | float) -> Array:
  """x clamped to [low, high], with derivative one at both ends (jnp.clip's is a half)."""
  return jnp.where(x > high, high, jnp.where(x < low, low, x))


def as_float(x: ArrayLike) -> Array:
  """x in the default float type, whatever the network computes in."""
  return jnp.asarray(x, jnp.result_type(float))


def check_betas(beta_min: float, beta_max: float, t_min: float) -> None:
  """Refuses a beta(t) that is not positive on (0, 1], and a t_min outside."""
  check_increasing('0 < beta_max', 0, beta_max)
  check_increasing('0 < t_min < 1', 0, t_min, 1)
  if beta_min < 0:
    raise ValueError(f'beta_min: {beta_min} is negative')


def check_increasing(wanted: str, *values: float) -> None:
  """Refuses values that do not strictly increase, naming what is wanted of them, the last first."""
  if not all(low < high for low, high in itertools.pairwise(values)):
    name = re.findall(r'[a-z]\w*', wanted)[-1]
    raise ValueError(f'{name}: {wanted} is wanted, not {" < ".join(map(str, values))}')
