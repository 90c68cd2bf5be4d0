"""What a noise schedule answers: how much of the data and of the noise there is in x_t.

Every Gaussian path is `xt = alpha(t) x0 + sigma(t) eps`. A schedule answers alpha, sigma and
log_snr = log(alpha² / sigma²), the full one, for one scalar time, and the inverse, `time(log_snr)`.
"""

from __future__ import annotations

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

Time = Array | int | float


class Schedule(Protocol):
  """What every schedule answers; `t` is a scalar, batches come from jax.vmap."""

  @property
  def t_min(self) -> Time:
    """The first time with sigma > 0."""

  @property
  def t_max(self) -> Time:
    """The last time."""

  def alpha(self, t: Time) -> Array:
    """The factor of the data."""

  def sigma(self, t: Time) -> Array:
    """The standard deviation of the noise."""

  def log_snr(self, t: Time) -> Array:
    """log(alpha² / sigma²)."""

  def time(self, log_snr: Array | float) -> Array:
    """The time of a log-SNR, the nearest in [t_min, t_max]: the inverse of `log_snr`."""

  def network_time(self, t: Time) -> Array:
    """The time that a network is told: the original chain's index (1000 t of a formula's)."""


def check_scalar(t: Time, name: str, vmap_axes: str) -> None:
  """Refuses a batch of times: mathematics is for one example, batches come from jax.vmap."""
  if jnp.ndim(t) != 0:
    raise ValueError(f't has shape {jnp.shape(t)}: use jax.vmap({name}, {vmap_axes})')


def check_range(schedule: Schedule, t: Time) -> None:
  """Refuses concrete times, one or a batch of them, that the schedule refuses one by one.

  For what broadcasts times to a batch and reads them under jax.vmap, where they are traced and
  would be clamped. Traced ones are let through, so that compiled programs do not change.
  """
  if isinstance(t, jax.core.Tracer) or not jnp.size(t):
    return
  times = np.asarray(t)
  for extreme in {times.min(), times.max()}:
    schedule.log_snr(extreme)
