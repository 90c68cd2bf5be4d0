"""Data distributions with everything in closed form, to hold the rest of the project against.

Each is closed under noising: q(xt) and q(x0 | xt) are again of its family. The exact bits per
dimension of an example are `bits_per_dim(-data.log_prob(x0), x0)`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from ddpm_jax.diffusion.gaussian import Gaussian
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time, check_range


class Moments(Protocol):
  """What is asked of a posterior."""

  @property
  def mean(self) -> Array:
    """Shaped like one example."""

  @property
  def variance(self) -> Array:
    """Of each component, shaped like the mean."""


class Density(Protocol):
  """What is asked of a marginal."""

  def log_prob(self, x: Array) -> Array:
    """In nats, for one example."""


class Oracle(Protocol):
  """What every data distribution here answers, for one example and a scalar time.

  Those below add `mean`, `variance` and, but for GaussianData, the full `covariance`.
  """

  def sample(self, key: Array) -> Array:
    """One example."""
    raise NotImplementedError

  def log_prob(self, x: Array) -> Array:
    """log q(x0) at x, in nats."""
    raise NotImplementedError

  def marginal(self, schedule: Schedule, t: Time) -> Density:
    """q(xt)."""
    raise NotImplementedError

  def posterior(self, schedule: Schedule, xt: Array, t: Time) -> Moments:
    """q(x0 | xt)."""
    raise NotImplementedError

  def log_marginal(self, schedule: Schedule, xt: Array, t: Time) -> Array:
    """log q(xt), in nats."""
    return self.marginal(schedule, t).log_prob(xt)

  def score(self, schedule: Schedule, xt: Array, t: Time) -> Array:
    """∇ log q(xt)."""
    return jax.grad(self.log_marginal, argnums=1)(schedule, xt, t)

  def denoiser(self, schedule: Schedule) -> Denoiser:
    """The exact denoiser, on batches: E[x0 | xt] and Var[x0 | xt]."""

    def moments(xt: Array, t: Time) -> Denoised:
      posterior = self.posterior(schedule, xt, t)
      return Denoised(posterior.mean, x0_variance=posterior.variance)

    def denoiser(xt: Array, t: Time) -> Denoised:
      check_range(schedule, t)
      return jax.vmap(moments)(xt, jnp.broadcast_to(t, xt.shape[:1]))

    return denoiser


@flax.struct.dataclass
class GaussianData(Oracle):
  """Data x0 ~ N(mean, variance) with independent components, of any shape.

  Attributes:
    mean: shaped like one example.
    variance: broadcasts against the mean.
  """

  mean: Array
  variance: Array

  def sample(self, key: Array) -> Array:
    """One example."""
    eps = jax.random.normal(key, jnp.shape(self.mean), jnp.result_type(self.mean))
    return Gaussian(self.mean, self.variance).sample(eps)

  def log_prob(self, x: Array) -> Array:
    """log N(x; mean, variance), in nats."""
    return Gaussian(self.mean, self.variance).log_prob(x)

  def entropy(self) -> Array:
    """½ Σ log 2πe variance, in nats."""
    return Gaussian(self.mean, self.variance).entropy()

  def marginal(self, schedule: Schedule, t: Time) -> Gaussian:
    """q(xt) = N(alpha mean, alpha² variance + sigma²)."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return Gaussian(alpha * self.mean, jnp.square(alpha) * self.variance + jnp.square(sigma))

  def posterior(self, schedule: Schedule, xt: Array, t: Time) -> Gaussian:
    """q(x0 | xt) = N(mean + gain (xt - alpha mean), variance (1 - alpha gain)).

    The gain is alpha variance / (alpha² variance + sigma²), and 1 - alpha gain is
    sigma² / (alpha² variance + sigma²).
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    marginal = self.marginal(schedule, t)
    gain = alpha * self.variance / marginal.variance
    mean = self.mean + gain * (xt - marginal.mean)
    variance = self.variance * jnp.square(sigma) / marginal.variance
    # Shaped like the mean, so that a denoiser's batch of them broadcasts as examples do.
    return Gaussian(mean, jnp.broadcast_to(variance, jnp.shape(mean)))


@flax.struct.dataclass
class CorrelatedGaussian(Oracle):
  """Data x0 ~ N(mean, covariance) in d dimensions, from `correlated(mean, covariance)`.

  It is kept in the axes of its covariance, where the components are independent and noise leaves
  them so: no time needs a factorization of its own.

  Attributes:
    rotated: the distribution of axesᵀ x0, mean and variance (d,).
    axes: (d, d), the covariance's eigenvectors as columns.
  """

  rotated: Gaussian
  axes: Array

  @property
  def mean(self) -> Array:
    """(d,)."""
    return self.axes @ self.rotated.mean

  @property
  def covariance(self) -> Array:
    """(d, d)."""
    return jnp.einsum('ij,j,kj->ik', self.axes, self.rotated.variance, self.axes)

  @property
  def variance(self) -> Array:
    """(d,), the covariance's diagonal."""
    return jnp.square(self.axes) @ self.rotated.variance

  def sample(self, key: Array) -> Array:
    """One example (d,)."""
    mean = self.rotated.mean
    return self.axes @ self.rotated.sample(jax.random.normal(key, mean.shape, mean.dtype))

  def log_prob(self, x: Array) -> Array:
    """log N(x; mean, covariance), in nats."""
    return self.rotated.log_prob(self.axes.T @ x)

  def entropy(self) -> Array:
    """½ log det(2πe covariance), in nats."""
    return self.rotated.entropy()

  def marginal(self, schedule: Schedule, t: Time) -> CorrelatedGaussian:
    """q(xt) = N(alpha mean, alpha² covariance + sigma² I)."""
    return CorrelatedGaussian(GaussianData(*self.rotated).marginal(schedule, t), self.axes)

  def posterior(self, schedule: Schedule, xt: Array, t: Time) -> CorrelatedGaussian:
    """q(x0 | xt) = N(mean + gain (xt - alpha mean), (I - alpha gain) covariance).

    The gain is the matrix alpha covariance (alpha² covariance + sigma² I)⁻¹.
    """
    data, xt = GaussianData(*self.rotated), self.axes.T @ xt
    return CorrelatedGaussian(data.posterior(schedule, xt, t), self.axes)


def correlated(mean: ArrayLike, covariance: ArrayLike) -> CorrelatedGaussian:
  """N(mean, covariance), for mean (…, d) and covariance (…, d, d), decomposed in float64.

  Leading axes make a stack of distributions, for jax.vmap.

  Raises:
    ValueError: where the covariance isn't symmetric and positive definite.
  """
  mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
  if covariance.shape != (*mean.shape, *mean.shape[-1:]):
    raise ValueError(f'a mean of shape {mean.shape} has no covariance of shape {covariance.shape}')
  variances, axes = np.linalg.eigh(covariance)
  if not np.allclose(covariance, np.swapaxes(covariance, -1, -2)) or not np.all(variances > 0):
    raise ValueError('a covariance is symmetric and positive definite')
  rotated = np.einsum('...ij,...i->...j', axes, mean)
  return CorrelatedGaussian(
    Gaussian(jnp.asarray(rotated), jnp.asarray(variances)), jnp.asarray(axes)
  )


@jax.tree_util.register_pytree_node_class
class GaussianMixture(Oracle):
  """Data x0 ~ Σ_k weights_k N(means_k, covariances_k), K components in d dimensions.

  Attributes:
    log_weights: (K,), of weights that sum to one.
    components: K stacked Gaussians.
  """

  def __init__(self, weights: ArrayLike, means: ArrayLike, covariances: ArrayLike):
    """The mixture of weights (K,), normalized here, means (K, d) and covariances (K, d, d).

    Raises:
      ValueError: where shapes disagree, a weight is negative or all are zero, or a covariance isn't
        positive.
    """
    weights, means = np.asarray(weights, np.float64), np.asarray(means, np.float64)
    if means.ndim != 2 or weights.shape != means.shape[:1]:
      raise ValueError(f'weights {weights.shape} and means {means.shape} must be (K,) and (K, d)')
    if not np.all(weights >= 0) or not weights.sum() > 0:
      raise ValueError(f'weights are not negative and not all zero, but here {weights}')
    with np.errstate(divide='ignore'):
      self.log_weights = jnp.asarray(np.log(weights / weights.sum()))
    self.components = correlated(means, covariances)

  @classmethod
  def of(cls, log_weights: Array, components: CorrelatedGaussian) -> GaussianMixture:
    """The mixture of K stacked Gaussians, as they are."""
    return cls.tree_unflatten(None, (log_weights, components))

  def tree_flatten(self) -> tuple[tuple[Any, Any], None]:
    """(log_weights, components), nothing static."""
    return (self.log_weights, self.components), None

  @classmethod
  def tree_unflatten(cls, _: None, leaves: tuple[Any, Any]) -> GaussianMixture:
    """The inverse of `tree_flatten`."""
    mixture = object.__new__(cls)
    mixture.log_weights, mixture.components = leaves
    return mixture

  @property
  def weights(self) -> Array:
    """(K,), summing to one."""
    return jnp.exp(self.log_weights)

  @property
  def means(self) -> Array:
    """(K, d), the components'."""
    return jax.vmap(lambda component: component.mean)(self.components)

  @property
  def covariances(self) -> Array:
    """(K, d, d), the components'."""
    return jax.vmap(lambda component: component.covariance)(self.components)

  @property
  def mean(self) -> Array:
    """(d,), Σ w_k mean_k."""
    return self.weights @ self.means

  @property
  def covariance(self) -> Array:
    """(d, d), Σ w_k (covariance_k + (mean_k - mean)(mean_k - mean)ᵀ)."""
    offsets = self.means - self.mean[None]
    between = jnp.einsum('k,ki,kj->ij', self.weights, offsets, offsets)
    return jnp.einsum('k,kij->ij', self.weights, self.covariances) + between

  @property
  def variance(self) -> Array:
    """(d,), the covariance's diagonal."""
    return jnp.diagonal(self.covariance)

  def sample(self, key: Array) -> Array:
    """One example (d,)."""
    of_component, of_noise = jax.random.split(key)
    k = jax.random.categorical(of_component, self.log_weights)
    return jax.tree.map(lambda leaf: leaf[k], self.components).sample(of_noise)

  def log_joint(self, x: Array) -> Array:
    """(K,), log w_k N(x; mean_k, covariance_k), in nats."""
    return self.log_weights + jax.vmap(CorrelatedGaussian.log_prob, (0, None))(self.components, x)

  def log_prob(self, x: Array) -> Array:
    """log Σ w_k N(x; mean_k, covariance_k), in nats."""
    return jax.nn.logsumexp(self.log_joint(x))

  def quadrature_entropy(self, num_points: int = 4001) -> Array:
    """-∫ q log q in nats, for d = 1: the trapezoid rule, to 12 deviations beyond every mean.

    Its error is negligible where the points are less than half the narrowest deviation apart.
    """
    if self.components.axes.shape[-1] != 1:
      raise ValueError('quadrature_entropy is for mixtures in one dimension; see entropy')
    means, reach = self.means[:, 0], 12 * jnp.sqrt(self.covariances[:, 0, 0])
    x = jnp.linspace(jnp.min(means - reach), jnp.max(means + reach), num_points)
    log_q = jax.vmap(self.log_prob)(x[:, None])
    return -jnp.trapezoid(jnp.exp(log_q) * log_q, x)

  def marginal(self, schedule: Schedule, t: Time) -> GaussianMixture:
    """q(xt) = Σ w_k N(alpha mean_k, alpha² covariance_k + sigma² I)."""
    noised = jax.vmap(CorrelatedGaussian.marginal, (0, None, None))(self.components, schedule, t)
    return self.of(self.log_weights, noised)

  def posterior(self, schedule: Schedule, xt: Array, t: Time) -> GaussianMixture:
    """q(x0 | xt) = Σ r_k q_k(x0 | xt), where r_k ∝ w_k q_k(xt) is component k's responsibility."""
    log_weights = jax.nn.log_softmax(self.marginal(schedule, t).log_joint(xt))
    posteriors = jax.vmap(CorrelatedGaussian.posterior, (0, None, None, None))
    return self.of(log_weights, posteriors(self.components, schedule, xt, t))


def fractal(depth: int = 6) -> GaussianMixture:
  """A tree in the plane for pictures: each branch a Gaussian, each but the last forking in two.

  It has 2^depth - 1 components; mean zero, and a mean variance of one over the two axes.
  """
  branches = list(grow(np.zeros(2), np.array([0.0, 1.0]), depth))
  starts, spans = (np.array(part) for part in zip(*branches, strict=True))
  lengths = np.linalg.norm(spans, axis=-1)
  # A uniform density along the branch has this variance; a tenth of its deviation across.
  along = spans[:, :, None] * spans[:, None, :] / 12
  covariances = along + 0.01 * np.square(lengths)[:, None, None] * np.eye(2) / 12
  weights, means = lengths / lengths.sum(), starts + spans / 2
  means = means - weights @ means
  spread = weights @ (np.sum(means**2, axis=-1) + np.trace(covariances, axis1=1, axis2=2)) / 2
  return GaussianMixture(weights, means / np.sqrt(spread), covariances / spread)


def grow(
  start: np.ndarray, span: np.ndarray, depth: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(start, span) of a branch and of all that grow from its end, turned and shortened."""
  yield start, span
  if depth > 1:
    for angle, shrinkage in ((0.62, 0.72), (-0.48, 0.78)):
      cos, sin = shrinkage * math.cos(angle), shrinkage * math.sin(angle)
      yield from grow(start + span, np.array([[cos, -sin], [sin, cos]]) @ span, depth - 1)
