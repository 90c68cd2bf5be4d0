"""Entropy, divergence, mutual information and minimum mean square error, all in nats.

Of four kinds of law, one section each:

  tables    arrays of masses, for discrete laws: entropy(p), kl(p, q), mutual_information(joint) …
  Normal    Gaussians of any covariance, in closed form
  Line      densities on the real line, by quadrature
  sampled_  any law that can be sampled and evaluated, by Monte Carlo with its standard error

The channel xt = alpha x0 + sigma eps of the diffusion has I(x0; xt) and E‖x0 - E[x0 | xt]‖² that
depend on snr = alpha² / sigma² alone; `information(snr)` and `mmse(snr)` are those.

Reference: Cover and Thomas, Elements of Information Theory, 2nd edition, chapters 2 and 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr, logsumexp, rel_entr, xlogy

from ddpm_jax.diffusion.gaussian import LOG_2PI
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import q_marginal, q_sample, q_transition
from ddpm_jax.diffusion.schedules import Schedule, Time, check_scalar


def entropy(p: Array) -> Array:
  """H = -Σ p log p of a table of masses of any shape, 0 log 0 being 0."""
  return jnp.sum(entr(p))


def cross_entropy(p: Array, q: Array) -> Array:
  """-Σ p log q of two tables of one shape; inf where q misses mass of p."""
  return -jnp.sum(xlogy(p, q))


def kl(p: Array, q: Array) -> Array:
  """KL(p ‖ q) = Σ p log p / q of two tables of one shape; inf where q misses mass of p."""
  return jnp.sum(rel_entr(p, q))


def conditional_entropy(joint: Array) -> Array:
  """H(Y | X) = -Σ p(x, y) log p(y | x) of a joint table (…, y), x being all the other axes."""
  return -kl(joint, jnp.broadcast_to(joint.sum(-1, keepdims=True), joint.shape))


def mutual_information(joint: Array) -> Array:
  """I(X; Y) = KL(p(x, y) ‖ p(x) p(y)) of a joint table (x, y)."""
  return kl(joint, jnp.outer(joint.sum(1), joint.sum(0)))


def conditional_information(joint: Array) -> Array:
  """I(X; Y | Z) = Σ_z p(z) I(X; Y | Z = z) of a joint table (x, y, z)."""
  of_z = joint.sum((0, 1), keepdims=True)
  product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
  return kl(joint, product / jnp.where(of_z > 0, of_z, 1.0))


class Normal(NamedTuple):
  """N(mean, covariance): mean (d,), covariance (d, d). `Gaussian` is its diagonal sibling."""

  mean: Array
  covariance: Array

  def diffused(self, alpha: Array | float, sigma: Array | float) -> Normal:
    """The law of alpha x + sigma eps: N(alpha mean, alpha² covariance + sigma² I)."""
    noise = jnp.square(sigma) * jnp.eye(jnp.size(self.mean))
    return Normal(alpha * self.mean, jnp.square(alpha) * self.covariance + noise)

  def marginal(self, schedule: Schedule, t: Time) -> Normal:
    """q(xt), where this is the law of x0."""
    return self.diffused(schedule.alpha(t), schedule.sigma(t))

  def plus(self, other: Normal) -> Normal:
    """The law of x + y, the other's y being independent of x."""
    return Normal(self.mean + other.mean, self.covariance + other.covariance)

  def entropy(self) -> Array:
    """½ log det(2πe covariance)."""
    log_det = jnp.linalg.slogdet(self.covariance)[1]
    return 0.5 * (log_det + jnp.size(self.mean) * (LOG_2PI + 1))

  def cross_entropy(self, other: Normal) -> Array:
    """-E log other(x) = entropy + KL."""
    return self.entropy() + self.kl(other)

  def kl(self, other: Normal) -> Array:
    """½ (tr W⁻¹V - d - log det W⁻¹V + Δᵀ W⁻¹ Δ), for covariances V and W and means Δ apart."""
    gap = self.mean - other.mean
    ratio = jnp.linalg.solve(other.covariance, self.covariance)
    squares = gap @ jnp.linalg.solve(other.covariance, gap)
    return 0.5 * (jnp.trace(ratio) - gap.size - jnp.linalg.slogdet(ratio)[1] + squares)

  def fisher(self, alpha: Array | float = 1.0, sigma: Array | float = 0.0) -> Array:
    """J = E‖∇ log p‖² of alpha x + sigma eps: the trace of its covariance's inverse."""
    return jnp.trace(jnp.linalg.inv(self.diffused(alpha, sigma).covariance))

  def information(self, snr: Array | float) -> Array:
    """I(x; alpha x + sigma eps) = ½ log det(I + snr covariance)."""
    return 0.5 * jnp.sum(jnp.log1p(snr * self._variances()))

  def mmse(self, snr: Array | float) -> Array:
    """E‖x - E[x | alpha x + sigma eps]‖² = tr covariance (I + snr covariance)⁻¹."""
    variances = self._variances()
    return jnp.sum(variances / (1 + snr * variances))

  def _variances(self) -> Array:
    """The covariance's eigenvalues, without what rounding takes below zero."""
    return jnp.maximum(jnp.linalg.eigvalsh(self.covariance), 0.0)


class Line(NamedTuple):
  """A law on the real line, by the log-masses of the cells of an even grid: both (n,).

  Sums over cells are the trapezoidal rule, whose error falls exponentially with the grid's spacing
  for densities that are smooth and have vanished at both ends; halve it to see. Where a grid is too
  narrow for the law, or too coarse for the noise, ValueError is raised outside of jit; inside, the
  masses then do not sum to one.
  """

  x: Array
  log_p: Array

  @property
  def width(self) -> Array:
    """The grid's spacing."""
    return self.x[1] - self.x[0]

  @property
  def mean(self) -> Array:
    """E x, a scalar."""
    return jnp.exp(self.log_p) @ self.x

  @property
  def covariance(self) -> Array:
    """Var x, (1, 1)."""
    return (jnp.exp(self.log_p) @ jnp.square(self.x - self.mean)).reshape(1, 1)

  def diffused(self, alpha: Array | float, sigma: Array | float) -> Line:
    """The law of alpha x + sigma eps on the same grid; sigma at least the spacing.

    Point masses, log_p = -inf but at some cells, are as good as densities here.
    """
    coarse = sigma < self.width
    if not isinstance(coarse, jax.core.Tracer) and coarse:
      raise ValueError(f'sigma = {sigma} is below the spacing {self.width} of the grid')
    log_mass = jax.vmap(lambda y: logsumexp(self._log_joint(y, alpha, sigma)))
    return checked(Line(self.x, log_mass(self.x)))

  def marginal(self, schedule: Schedule, t: Time) -> Line:
    """q(xt), where this is the law of x0."""
    return self.diffused(schedule.alpha(t), schedule.sigma(t))

  def plus(self, other: Line) -> Line:
    """The law of x + y on the longer grid that it needs, the other's y being independent of x."""
    start, size = self.x[0] + other.x[0], self.x.size + other.x.size - 1
    p = jnp.convolve(jnp.exp(self.log_p), jnp.exp(other.log_p), precision='highest')
    return Line(start + self.width * jnp.arange(size), jnp.log(p))

  def entropy(self) -> Array:
    """The differential entropy -∫ p log p, which is that of the masses plus log width."""
    return self.cross_entropy(self)

  def cross_entropy(self, other: Line) -> Array:
    """-∫ p log q, on one grid."""
    return jnp.log(self.width) - self._expectation(other.log_p)

  def kl(self, other: Line) -> Array:
    """∫ p log p / q, on one grid; from logarithms, so that tails do not underflow to inf."""
    return self._expectation(self.log_p - other.log_p)

  def fisher(self, alpha: Array | float, sigma: Array | float) -> Array:
    """J = E[(d log p / dy)²] of y = alpha x + sigma eps."""
    score = jax.vmap(jax.grad(lambda y: logsumexp(self._log_joint(y, alpha, sigma))))
    return jnp.exp(self.diffused(alpha, sigma).log_p) @ jnp.square(score(self.x))

  def information(self, snr: Array | float) -> Array:
    """I(x; y) = H(y) - H(y | x) for y = alpha x + sigma eps."""
    alpha, sigma = on_circle(snr)
    return self.diffused(alpha, sigma).entropy() - 0.5 * (LOG_2PI + 1) - jnp.log(sigma)

  def mmse(self, snr: Array | float) -> Array:
    """E[Var[x | y]] for y = alpha x + sigma eps."""
    alpha, sigma = on_circle(snr)

    def posterior_variance(y: Array) -> Array:
      p = jax.nn.softmax(self._log_joint(y, alpha, sigma))
      return p @ jnp.square(self.x - p @ self.x)

    return jnp.exp(self.diffused(alpha, sigma).log_p) @ jax.vmap(posterior_variance)(self.x)

  def _expectation(self, values: Array) -> Array:
    """Σ p values, over the cells that hold mass."""
    p = jnp.exp(self.log_p)
    return p @ jnp.where(p > 0, values, 0.0)

  def _log_joint(self, y: Array, alpha: Array | float, sigma: Array | float) -> Array:
    """The log-masses of (x, y), over x, for one y = alpha x + sigma eps."""
    log_cell = jnp.log(self.width / sigma) - 0.5 * LOG_2PI
    return self.log_p + log_cell - 0.5 * jnp.square((y - alpha * self.x) / sigma)


def on_grid(log_prob: Callable[[Array], Array], x: Array) -> Line:
  """The Line of a log-density of one dimension on an even grid x (n,): it is given (1,) vectors.

  That serves laws of scalars too, whose formulas broadcast; the answer may be a scalar or (1,).
  """
  log_p = jax.vmap(lambda point: jnp.reshape(log_prob(point), ()))
  return checked(Line(x, log_p(x[:, None]) + jnp.log(x[1] - x[0])))


def checked(line: Line) -> Line:
  """The line itself; ValueError where its masses are known and do not sum to one."""
  total = jnp.sum(jnp.exp(line.log_p))
  if not isinstance(total, jax.core.Tracer) and not abs(total - 1) < 1e-4:
    raise ValueError(
      f'the grid of {line.x.size} points from {line.x[0]} to {line.x[-1]} holds a mass of {total}'
    )
  return line


def on_circle(snr: Array | float) -> tuple[Array, Array]:
  """The alpha and sigma of a signal-to-noise ratio with alpha² + sigma² = 1."""
  return jnp.sqrt(snr / (1 + snr)), jax.lax.rsqrt(1.0 + snr)


class Marginal(Protocol):
  """The law of one xt, as `Normal`, `Line` and `Gaussian` are."""

  def entropy(self) -> Array:
    """H(xt)."""

  def kl(self, other: Marginal) -> Array:
    """The divergence from another."""


class Data(Protocol):
  """The law of x0 with its marginals along the chain: Normal, Line, oracle.GaussianData."""

  @property
  def mean(self) -> Array:
    """E x0, shaped like one example."""

  def marginal(self, schedule: Schedule, t: Time) -> Marginal:
    """The law of xt."""


def chain_information(schedule: Schedule, data: Data, t: Time) -> Array:
  """I(x0; xt) = H(xt) - H(xt | x0)."""
  noise = q_marginal(schedule, data.mean, t)
  return data.marginal(schedule, t).entropy() - noise.entropy()


def posterior_entropy(schedule: Schedule, data: Data, s: Time, t: Time) -> Array:
  """H(xs | xt) = H(xt | xs) + H(xs) - H(xt), for sigma_s > 0: by Bayes' rule, averaged."""
  forward = q_transition(schedule, data.mean, s, t).entropy()
  return forward + data.marginal(schedule, s).entropy() - data.marginal(schedule, t).entropy()


class Estimate(NamedTuple):
  """A Monte-Carlo mean and its standard error."""

  mean: Array
  error: Array


class Sampled(Protocol):
  """A law of one example that can be sampled and evaluated."""

  def sample(self, key: Array) -> Array:
    """One example."""

  def log_prob(self, x: Array) -> Array:
    """Its log-density."""


class SampledData(Protocol):
  """A law of x0 that can be sampled, and its marginals evaluated."""

  def sample(self, key: Array) -> Array:
    """One example."""

  def log_marginal(self, schedule: Schedule, xt: Array, t: Time) -> Array:
    """log q(xt)."""


def estimate(values: Array) -> Estimate:
  """The mean of independent values (n,), n >= 2, with its standard error, std / √n."""
  return Estimate(jnp.mean(values), jnp.std(values, ddof=1) / math.sqrt(values.size))


def sampled_entropy(p: Sampled, keys: Array) -> Estimate:
  """E[-log p(x)], one draw x ~ p for each of the keys (n,)."""
  return sampled_cross_entropy(p, p, keys)


def sampled_cross_entropy(p: Sampled, q: Sampled, keys: Array) -> Estimate:
  """E[-log q(x)], one draw x ~ p for each of the keys (n,)."""
  return estimate(jax.vmap(lambda key: -q.log_prob(p.sample(key)))(keys))


def sampled_kl(p: Sampled, q: Sampled, keys: Array) -> Estimate:
  """E[log p(x) - log q(x)], one draw x ~ p for each of the keys (n,)."""

  def value(key: Array) -> Array:
    x = p.sample(key)
    return p.log_prob(x) - q.log_prob(x)

  return estimate(jax.vmap(value)(keys))


def sampled_information(schedule: Schedule, data: SampledData, t: Time, keys: Array) -> Estimate:
  """I(x0; xt) = E[log q(xt | x0) - log q(xt)], one pair for each of the keys (n,)."""
  check_scalar(t, 'sampled_information', '(None, None, 0, None)')

  def value(key: Array) -> Array:
    x0, xt = sample_pair(schedule, data, t, key)
    return q_marginal(schedule, x0, t).log_prob(xt) - data.log_marginal(schedule, xt, t)

  return estimate(jax.vmap(value)(keys))


def sampled_mmse(
  schedule: Schedule, data: SampledData, denoiser: Denoiser, t: Time, keys: Array
) -> Estimate:
  """E‖x0 - denoiser(xt)‖², one pair for each of the keys (n,); any denoiser's is above the mmse."""
  check_scalar(t, 'sampled_mmse', '(None, None, None, 0, None)')
  x0, xt = jax.vmap(lambda key: sample_pair(schedule, data, t, key))(keys)
  squares = jnp.square(x0 - denoiser(xt, t).x0)
  return estimate(squares.reshape(keys.size, -1).sum(-1))


def sample_pair(schedule: Schedule, data: SampledData, t: Time, key: Array) -> tuple[Array, Array]:
  """One draw of (x0, xt)."""
  of_data, of_noise = jax.random.split(key)
  x0 = data.sample(of_data)
  return x0, q_sample(schedule, x0, t, jax.random.normal(of_noise, x0.shape, x0.dtype))
