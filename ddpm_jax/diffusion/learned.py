"""The learned schedule: a monotone network between two learned ends of the log-SNR.

Its leaves train. `parameters(schedule)` are what a training state keeps as params['schedule']; the
train step gives each loss the schedule with these for its leaves (`bind`), so that grad reaches
them, and what samples or evaluates binds the same branch of the checkpoint.

The ends train on the bound. What lies between them leaves the bound in continuous time as it is,
and trains on the variance of its estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.continuous import Continuous, LogSNR, as_float, check_increasing

AnySchedule = TypeVar('AnySchedule')

INSIDE = ('heights', 'slopes', 'offsets')
ENDS = ('log_snr_max', 'log_snr_min')

Width = Annotated[int, Interval(ge=1, le=65_536)]


@flax.struct.dataclass
class Learned(Continuous):
  """log_snr = (1 - h(t)) log_snr_max + h(t) log_snr_min, on a VP path.

  With g(t) = t + Σ_k exp(heights_k) sigmoid(exp(slopes_k) t + offsets_k), which increases whatever
  the leaves are, h(t) = (g(t) - g(0)) / (g(1) - g(0)) runs from exactly 0 to exactly 1.

  Attributes:
    log_snr_max: at t = 0.
    log_snr_min: at t = 1; should training carry one past the other, they change places.
    heights: (width,).
    slopes: (width,).
    offsets: (width,).
  """

  log_snr_max: Array
  log_snr_min: Array
  heights: Array
  slopes: Array
  offsets: Array
  t_min: float = flax.struct.field(pytree_node=False, default=0.0)
  t_max: float = flax.struct.field(pytree_node=False, default=1.0)

  def climb(self, s: Array | float, t: Array | float) -> Array:
    """g(t) - g(s), for sigmoid(b) - sigmoid(a) = (1 - exp(a - b)) sigmoid(b) sigmoid(-a)."""
    slopes = jnp.exp(self.slopes)
    before, after = (slopes * u + self.offsets for u in (s, t))
    steps = -jnp.expm1(-slopes * (t - s)) * jax.nn.sigmoid(after) * jax.nn.sigmoid(-before)
    return t - s + jnp.sum(jnp.exp(self.heights) * steps)

  def log_ratio(self, t: Array) -> Array:
    """(1 - h) log_snr_max + h log_snr_min."""
    past, to_come = self.climb(0.0, t), self.climb(t, 1.0)
    share = past / (past + to_come)
    first = jnp.maximum(self.log_snr_max, self.log_snr_min)
    last = jnp.minimum(self.log_snr_max, self.log_snr_min)
    return (1 - share) * first + share * last

  def log_density(self, log_snr: Array) -> Array:
    """-log |d log_snr / dt| at the time of a log-SNR: its log-density where t is uniform.

    With f = ½ |dSNR / dt| |x0 - x0_hat|² the bound's integrand, E f² over t is ∫ φ² / p d log_snr,
    p the density and φ = p f a function of the noise level alone. Its gradient in what makes p is
    -E f² ∇ log p, at fixed log_snr: the network's own derivatives are not asked.
    """
    t = self.time(log_snr)
    return -jnp.log(-jax.jvp(self.log_snr, (t,), (jnp.ones_like(t),))[1])

  def fixed(self, names: tuple[str, ...]) -> Learned:
    """The same, without derivatives in the leaves of those names: INSIDE or ENDS."""
    return self.replace(  # pyrefly: ignore
      **{name: jax.lax.stop_gradient(getattr(self, name)) for name in names}
    )

  def inverse(self, log_snr: Array) -> Array:
    """Bisection, then one step of Newton's method, through which the derivatives are exact."""
    target, schedule = jax.lax.stop_gradient((log_snr, self))

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
      low, high = bounds
      middle = (low + high) / 2
      above = schedule.log_ratio(middle) > target
      return jnp.where(above, middle, low), jnp.where(above, high, middle)

    bits = jnp.finfo(log_snr.dtype).nmant
    ends = jnp.zeros_like(target), jnp.ones_like(target)
    low, high = jax.lax.fori_loop(0, bits, halve, ends)
    t = (low + high) / 2
    slope = jax.jvp(schedule.log_ratio, (t,), (jnp.ones_like(t),))[1]
    return t - (self.log_ratio(t) - log_snr) / slope


def learned(
  log_snr_min: LogSNR = -5.0,
  log_snr_max: LogSNR = 13.3,
  width: Width = 32,
) -> Learned:
  """A monotone network gamma(t) = -log_snr(t) with learned ends; VP, nearly linear before training.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, appendix H; here the ends are
  exact, and its first layer's scale, which cancels, is left out.

  Raises:
    ValueError: unless log_snr_min < log_snr_max and width >= 1.
  """
  check_increasing('log_snr_min < log_snr_max', log_snr_min, log_snr_max)
  check_increasing('0 < width', 0, width)
  slopes = np.full(width, np.log(width + 3.0))
  return Learned(
    log_snr_max=as_float(log_snr_max),
    log_snr_min=as_float(log_snr_min),
    heights=as_float(np.full(width, -np.log(width))),
    slopes=as_float(slopes),
    offsets=as_float(-np.exp(slopes) * (np.arange(width) + 0.5) / width),
  )


def parameters(schedule: Any) -> dict[str, Array]:
  """What of a schedule trains, by name: all leaves of a learned one, else none."""
  if not isinstance(schedule, Learned):
    return {}
  return {name: getattr(schedule, name) for name in ENDS + INSIDE}


def bind(schedule: AnySchedule, params: Mapping[str, Array]) -> AnySchedule:
  """The schedule with params, from `parameters`, for its leaves; without any, as it is."""
  return schedule.replace(**params) if params else schedule  # pyrefly: ignore
