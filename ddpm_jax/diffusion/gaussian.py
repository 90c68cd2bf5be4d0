"""The Gaussian with independent components: the one distribution that the chain is made of."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from ddpm_jax.diffusion.continuous import root

LOG_2PI = math.log(2 * math.pi)


class Gaussian(NamedTuple):
  """N(mean, variance), for one example of any shape.

  `variance` broadcasts against `mean`; what reduces over the example (densities, entropies,
  divergences, in nats) runs over mean's shape.
  """

  mean: Array
  variance: Array

  def sample(self, eps: Array) -> Array:
    """mean + sqrt(variance) eps, for standard normal eps shaped like the mean.

    A variance that rounding has taken below zero counts as zero; the derivative is finite there.
    """
    return self.mean + root(self.variance) * eps

  def log_prob(self, x: Array) -> Array:
    """log N(x; mean, variance) = -½ Σ ((x - mean)² / variance + log 2π variance), in nats."""
    squares = jnp.square(x - self.mean) / self.variance
    return -0.5 * jnp.sum(squares + jnp.log(self.variance) + LOG_2PI)

  def entropy(self) -> Array:
    """½ Σ log 2πe variance, in nats."""
    variance = jnp.broadcast_to(self.variance, jnp.shape(self.mean))
    return 0.5 * jnp.sum(jnp.log(variance) + LOG_2PI + 1)

  def kl(self, other: Gaussian) -> Array:
    """KL(self ‖ other) = ½ Σ (v/w - 1 - log v/w + (mean - other.mean)² / w), in nats.

    Here v is this variance and w the other's. Since v/w - 1 is formed as (v - w)/w, the error is
    the rounding of v/w - 1 and not that of 1. It rounds to -1 where v is far below w, and log v/w
    is formed by itself.
    """
    excess = (self.variance - other.variance) / other.variance
    squares = jnp.square(self.mean - other.mean) / other.variance
    near = excess > -0.5
    log_ratio = jnp.where(
      near,
      jnp.log1p(jnp.where(near, excess, 0.0)),
      jnp.log(self.variance) - jnp.log(other.variance),
    )
    return 0.5 * jnp.sum(excess - log_ratio + squares)

  def discretized_log_prob(self, x: Array, levels: int) -> Array:
    """The log-probability of grid values, each the Gaussian's mass of its bin, in nats.

    The grid has `levels` values evenly spaced over [-1, 1], so that bins are 2 / (levels - 1) wide;
    the two outer bins take the tails, hence the masses sum to one.

    Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, equation 13.
    """
    half = 1 / (levels - 1)
    scale = jnp.sqrt(self.variance)
    upper = jnp.where(x > 1 - half, jnp.inf, (x + half - self.mean) / scale)
    lower = jnp.where(x < -1 + half, -jnp.inf, (x - half - self.mean) / scale)
    return jnp.sum(log_mass(lower, upper))


def log_mass(lower: Array, upper: Array) -> Array:
  """log(Φ(upper) - Φ(lower)), elementwise, exact in both tails; lower < upper, either may be ±inf.

  An interval above zero is mirrored to the other side, where log Φ keeps its digits; then
  log(Φ(b) - Φ(a)) = log Φ(b) + log(1 - exp(log Φ(a) - log Φ(b))).
  """
  above = lower > 0
  a = jnp.where(above, -upper, lower)
  b = jnp.where(above, -lower, upper)
  unbounded = jnp.isneginf(a)
  log_b = log_ndtr(jnp.where(jnp.isposinf(b), 40.0, b))
  log_a = log_ndtr(jnp.where(unbounded, -1.0, a))
  # The gap too is replaced: where b is large it would be zero, its logarithm's gradient NaN.
  gap = jnp.where(unbounded, 1.0, log_b - log_a)
  return log_b + jnp.where(unbounded, 0.0, log1mexp(gap))


def log1mexp(x: Array) -> Array:
  """log(1 - exp(-x)) for x > 0, without loss of digits at either end."""
  small = x < math.log(2)
  near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
  far = jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x)))
  return jnp.where(small, near, far)
