"""Weights w(schedule, t) of the squared error of eps, functions of the log-SNR at t.

The loss carries them over to what the network predicts, so that with the L2 distance one weight is
one objective under every parameterization. A squared error of x0 is 1 / SNR times that of eps, one
of v 1 + 1 / SNR times: weight w of x0's is w / SNR of eps', and w of v's (1 + 1 / SNR) w.

They are of two kinds. Most weigh each level alone, and the schedule says how often it is met. Those
with the factor `density`, from `sigmoid` on, are integrals over log-SNR: under uniform times they
are one objective on every path.
"""

from __future__ import annotations

import math
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.schedules import Discrete, Schedule

# Below this log-SNR nothing changes but the numbers, which would leave float32. Zero SNR counts as
# this, here and where the weight is carried over to the output.
FLOOR = -30.0

Scale = Annotated[float, Interval(ge=1e-6, le=1e6)]
LogSNR = Annotated[float, Interval(ge=-40, le=40)]


def log_snr(schedule: Schedule, t: Array) -> Array:
  """The log-SNR, at least FLOOR."""
  return jnp.maximum(schedule.log_snr(t), FLOOR)


def density(schedule: Schedule, t: Array) -> Array:
  """-d log_snr / du, u = (t - t_min) / (t_max - t_min); of a chain, T times the gap around t.

  The mean over uniform t of density · f(log_snr) is ∫ f d log_snr. Zero where it is infinite, at
  zero SNR: all that is multiplied with it vanishes faster.
  """
  if not isinstance(schedule, Discrete):
    return (schedule.t_max - schedule.t_min) * fall(schedule, t)
  before, after = jnp.maximum(t - 1, 1), jnp.minimum(t + 1, schedule.num_steps)
  gap = log_snr(schedule, before) - log_snr(schedule, after)
  return schedule.num_steps * gap / jnp.maximum(after - before, 1)


def fall(schedule: Schedule, t: Array) -> Array:
  """-d log_snr / dt in continuous time; zero where it is infinite."""
  t = jnp.asarray(t)
  rate = -jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))[1]
  return jnp.where(jnp.isfinite(rate), rate, 0.0)


def simple(schedule: Schedule, t: Array) -> Array:
  """1: the simple loss; SNR of x0's squared error.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 14.
  """
  return jnp.ones_like(schedule.alpha(t))


def output(schedule: Schedule, t: Array) -> Array:
  """1 in the network's own output: the one weight that is not carried over."""
  return jnp.ones_like(schedule.alpha(t))


def variational(schedule: Schedule, t: Array) -> Array:
  """The bound's own: -½ d log_snr / dt, and for a chain's step to t - 1, ½ (SNR(t-1)/SNR(t) - 1).

  A chain's t = 1 has the weight of its decoder, a Gaussian density of the step (1, 2)'s small
  variance: 1 / (2 alpha_1² r). So the mean over t, times T or t_max - t_min, is the bound but for
  what doesn't depend on the network.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, equations 14 and 17.
  """
  if not isinstance(schedule, Discrete):
    return 0.5 * fall(schedule, t)
  step = jnp.maximum(t, 2)  # t - 1 = 0 has infinite SNR
  gap = log_snr(schedule, step - 1) - log_snr(schedule, step)
  decoder = 0.5 / jnp.square(schedule.alpha(1)) / -jnp.expm1(-gap)
  return jnp.where(t > 1, 0.5 * jnp.expm1(gap), decoder)


def truncated_snr(schedule: Schedule, t: Array) -> Array:
  """max(1, 1 / SNR): the larger of the errors of eps and x0.

  Reference: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, section 4: max(SNR, 1) of x0's.
  """
  return jnp.exp(jnp.maximum(-log_snr(schedule, t), 0.0))


def snr_plus_one(schedule: Schedule, t: Array) -> Array:
  """1 + 1 / SNR: the squared error of v.

  Reference: Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, section 4: SNR + 1 of x0's.
  """
  return 1 + jnp.exp(-log_snr(schedule, t))


def inverse_snr(schedule: Schedule, t: Array) -> Array:
  """1 / SNR: the squared error of x0.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, section 3.2, where it is tried.
  """
  return jnp.exp(-log_snr(schedule, t))


def min_snr(schedule: Schedule, t: Array, *, gamma: Scale = 5.0) -> Array:
  """min(gamma / SNR, 1).

  Reference: Hang et al. 2023, https://arxiv.org/abs/2303.09556: of the squared error of
  x0 min(SNR, gamma), of eps min(SNR, gamma) / SNR, of v min(SNR, gamma) / (SNR + 1).
  """
  return jnp.exp(jnp.minimum(jnp.log(gamma) - log_snr(schedule, t), 0.0))


def soft_min_snr(schedule: Schedule, t: Array, *, gamma: Scale = 4.0) -> Array:
  """gamma / (SNR + gamma): of x0's squared error 1 / (1 / SNR + 1 / gamma).

  Reference: Crowson et al. 2024, https://arxiv.org/abs/2401.11605.
  """
  return jax.nn.sigmoid(jnp.log(gamma) - log_snr(schedule, t))


def p2(
  schedule: Schedule,
  t: Array,
  *,
  k: Scale = 1.0,
  gamma: Annotated[float, Interval(ge=0, le=4)] = 1.0,
) -> Array:
  """1 / (k + SNR)^gamma. Choi et al. 2022, https://arxiv.org/abs/2204.00227."""
  return jnp.exp(-gamma * jnp.logaddexp(jnp.log(k), log_snr(schedule, t)))


def edm(schedule: Schedule, t: Array, *, sigma_data: Scale = 0.5) -> Array:
  """1 + 1 / (sigma_data² SNR): the squared error of what `parameterization.edm` predicts.

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1: of x0's
  (n² + sigma_data²) / (n sigma_data)², with n = sigma / alpha. It goes with the timestep
  distribution `log_normal`.
  """
  return 1 + jnp.exp(-log_snr(schedule, t)) / sigma_data**2


def flow(schedule: Schedule, t: Array) -> Array:
  """(1 + 1 / sqrt(SNR))²: the squared error of eps - x0.

  Reference: Liu et al. 2022, https://arxiv.org/abs/2209.03003, equation 1.
  """
  return jnp.square(1 + jnp.exp(-log_snr(schedule, t) / 2))


def sigmoid(schedule: Schedule, t: Array, *, bias: LogSNR = 2.0) -> Array:
  """-½ d log_snr / du · sigmoid(bias - log_snr): the bound's weight where noise is high.

  Reference: Kingma and Gao 2023, https://arxiv.org/abs/2303.00848; the larger the images,
  the lower the bias: Hoogeboom et al. 2024, https://arxiv.org/abs/2410.19324.
  """
  return 0.5 * density(schedule, t) * jax.nn.sigmoid(bias - log_snr(schedule, t))


def laplace(schedule: Schedule, t: Array, *, mean: LogSNR = 0.0, scale: Scale = 0.5) -> Array:
  """-d log_snr / du · exp(-|log_snr - mean| / scale) / (2 scale).

  The timestep distribution of the same name draws by this density; here it weighs.
  Reference: Hang et al. 2024, https://arxiv.org/abs/2407.03297.
  """
  far = jnp.abs(log_snr(schedule, t) - mean) / scale
  return density(schedule, t) * jnp.exp(-far) / (2 * scale)


def cosh(schedule: Schedule, t: Array, *, mean: LogSNR = 0.0) -> Array:
  """-d log_snr / du / (2π cosh((log_snr - mean) / 2)): the simple loss as on a cosine schedule.

  There log_snr = mean - 2 log tan(πt / 2) has this density, where t is uniform.
  Reference: Kingma and Gao 2023, https://arxiv.org/abs/2303.00848, table 1; Hang et al. 2024,
  https://arxiv.org/abs/2407.03297.
  """
  away = (log_snr(schedule, t) - mean) / 2
  return density(schedule, t) / (2 * math.pi * jnp.cosh(away))


def logit_normal(schedule: Schedule, t: Array, *, mean: LogSNR = 0.0, std: Scale = 1.0) -> Array:
  """`flow`, times the density of a distribution of log-SNR: logit(u) = -½ log_snr ~ N(mean, std²).

  With u = sigma / (alpha + sigma), the time on the path `flow`. Under uniform times it is the
  objective that the timestep distribution of the same name makes of the weight `flow`.
  Reference: Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 3.
  """
  logit = -log_snr(schedule, t) / 2
  log_normal = -0.5 * jnp.square((logit - mean) / std) - math.log(std * math.sqrt(2 * math.pi))
  return density(schedule, t) / 2 * jnp.exp(log_normal + 2 * jax.nn.softplus(logit))


WEIGHTS = {
  'simple': simple,
  'snr': simple,  # by what it is of x0's squared error
  'output': output,
  'variational': variational,
  'truncated_snr': truncated_snr,
  'snr_plus_one': snr_plus_one,
  'inverse_snr': inverse_snr,
  'min_snr': min_snr,
  'soft_min_snr': soft_min_snr,
  'p2': p2,
  'edm': edm,
  'flow': flow,
  'sigmoid': sigmoid,
  'laplace': laplace,
  'cosh': cosh,
  'logit_normal': logit_normal,
}
