"""The evidence lower bound: latent variables, a q that approximates their posterior, and a chain.

A latent z explains x by p(x, z) = p(z) p(x | z). Whatever q(z | x), Jensen's inequality bounds the
evidence,

  log p(x) = log E_q[p(x, z) / q(z | x)] >= E_q[log p(x, z) - log q(z | x)]
                                          = E_q log p(x | z) - KL(q(z | x) ‖ p(z)),

and what is lost is KL(q(z | x) ‖ p(z | x)). A variational autoencoder amortizes q: q_theta(z | x)
is a network of x, trained with the decoder p(x | z). A diffusion model holds q fixed: z is the
chain x_1 … x_T, and q(z | x0) the forward process. Both are bounded by the same `log_ratio`.

All is for one example, in nats. A bound given draws eps is an estimate: its mean is the bound.

Reference: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114, section 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from ddpm_jax.diffusion.bound import RECONSTRUCTION_VARIANCES, Decoder, evidence
from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.gaussian import LOG_2PI, Gaussian
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, prior, q_marginal, q_transition, reverse
from ddpm_jax.diffusion.schedules import Schedule, Time

LogProb = Callable[[Array], Array]


class Posterior(Protocol):
  """q(z | x) of one x: a Gaussian, or anything that is sampled from noise and has a density."""

  def sample(self, eps: Array) -> Array:
    """z, differentiably, of standard normal eps."""
    ...

  def log_prob(self, z: Array) -> Array:
    """log q(z | x)."""
    ...


def elbo(q: Gaussian, p: Gaussian, log_likelihood: LogProb, eps: Array) -> Array:
  """log p(x | z) - KL(q(z | x) ‖ p(z)) at z = q.sample(eps), the KL in closed form.

  Args:
    q: q(z | x).
    p: p(z).
    log_likelihood: z -> log p(x | z).
    eps: standard normal, like z.

  Reference: Kingma and Welling 2014, https://arxiv.org/abs/1312.6114, equation 7.
  """
  return log_likelihood(q.sample(eps)) - q.kl(p)


def log_ratio(q: Posterior, log_joint: LogProb, eps: Array) -> Array:
  """log p(x, z) - log q(z | x) at z = q.sample(eps): the bound where no KL is known.

  Its variance over eps is zero where q is p(z | x), for it is then log p(x) at every z.

  Args:
    q: q(z | x).
    log_joint: z -> log p(x, z).
    eps: standard normal, as q takes it.
  """
  z = q.sample(eps)
  return log_joint(z) - q.log_prob(z)


def importance_bound(q: Posterior, log_joint: LogProb, eps: Array) -> Array:
  """log 1/K Σ_k p(x, z_k) / q(z_k | x), z_k = q.sample(eps[k]): the importance-weighted bound.

  Its mean is the evidence lower bound at K = 1, never falls with K, and tends to log p(x).

  Args:
    q: q(z | x).
    log_joint: z -> log p(x, z).
    eps: (K, …), standard normal.

  Reference: Burda et al. 2016, https://arxiv.org/abs/1509.00519, equation 8 and theorem 1.
  """
  ratios = jax.vmap(log_ratio, (None, None, 0))(q, log_joint, eps)
  return jax.nn.logsumexp(ratios) - jnp.log(eps.shape[0])


class Correlated(NamedTuple):
  """N(mean, factor factorᵀ) over vectors (k,), the factor lower triangular (k, k)."""

  mean: Array
  factor: Array

  def sample(self, eps: Array) -> Array:
    """mean + factor eps."""
    return self.mean + self.factor @ eps

  def log_prob(self, z: Array) -> Array:
    """log N(z; mean, factor factorᵀ), in nats."""
    white = solve_triangular(self.factor, z - self.mean, lower=True)
    log_det = jnp.sum(jnp.log(jnp.diagonal(self.factor)))
    return -0.5 * jnp.sum(jnp.square(white) + LOG_2PI) - log_det


@flax.struct.dataclass
class LinearGaussian:
  """p(z) = N(0, I), p(x | z) = N(W z + mean, variance I): probabilistic PCA, all in closed form.

  Attributes:
    weight: W (d, k).
    mean: (d,).
    variance: the noise's, a scalar.

  Reference: Tipping and Bishop 1999, "Probabilistic principal component analysis".
  """

  weight: Array
  mean: Array
  variance: Array

  def prior(self) -> Gaussian:
    """p(z) = N(0, I)."""
    zeros = jnp.zeros_like(self.weight[0])
    return Gaussian(zeros, jnp.ones_like(zeros))

  def likelihood(self, z: Array) -> Gaussian:
    """p(x | z) = N(W z + mean, variance I)."""
    return Gaussian(self.weight @ z + self.mean, self.variance)

  def log_joint(self, x: Array, z: Array) -> Array:
    """log p(x, z) = log p(z) + log p(x | z)."""
    return self.prior().log_prob(z) + self.likelihood(z).log_prob(x)

  def evidence(self) -> Correlated:
    """p(x) = N(mean, W Wᵀ + variance I)."""
    identity = jnp.eye(self.weight.shape[0], dtype=self.weight.dtype)
    covariance = self.weight @ self.weight.T + self.variance * identity
    return Correlated(self.mean, jnp.linalg.cholesky(covariance))

  def posterior(self, x: Array) -> Correlated:
    """p(z | x) = N(M⁻¹ Wᵀ (x - mean), variance M⁻¹), with M = Wᵀ W + variance I.

    Its components are independent where the columns of W are orthogonal, as at the optimum of
    `principal_components`: there a q of independent components loses nothing.
    """
    identity = jnp.eye(self.weight.shape[1], dtype=self.weight.dtype)
    inverse = jnp.linalg.inv(self.weight.T @ self.weight + self.variance * identity)
    mean = inverse @ self.weight.T @ (x - self.mean)
    return Correlated(mean, jnp.linalg.cholesky(self.variance * inverse))

  def elbo(self, x: Array, q: Gaussian) -> Array:
    """E_q log p(x | z) - KL(q ‖ p(z)), exact: log p(x | E z) - ½ Σ_j |W_j|² q_j / variance - KL.

    Here W_j is column j of W, and q_j the variance of z_j under q.
    """
    spread = jnp.sum(jnp.square(self.weight), axis=0) @ q.variance / self.variance
    return self.likelihood(q.mean).log_prob(x) - 0.5 * spread - q.kl(self.prior())


def principal_components(x: Array, latents: int) -> LinearGaussian:
  """The maximum-likelihood model: W = U (Λ - variance I)^½, variance the other eigenvalues' mean.

  U and Λ are the `latents` leading eigenvectors and eigenvalues of x's covariance (divided by N).

  Args:
    x: the data (N, d).
    latents: k < d.

  Reference: Tipping and Bishop 1999, equations 7 and 8 of the journal, with R = I.
  """
  if not 0 < latents < x.shape[1]:
    raise ValueError(f'latents = {latents} is not between 1 and {x.shape[1] - 1}, one below d')
  mean = jnp.mean(x, axis=0)
  values, vectors = jnp.linalg.eigh(jnp.cov(x, rowvar=False, bias=True))
  variance = jnp.mean(values[:-latents])
  weight = vectors[:, -latents:] @ jnp.diag(root(values[-latents:] - variance))
  return LinearGaussian(weight, mean, variance)


class Chain(NamedTuple):
  """q(x_{t_1} … x_{t_N} | x0), the forward process as a posterior of the latents z = (N, …).

  Attributes:
    schedule: the path.
    x0: the example.
    times: (N,), decreasing, every sigma positive; z[i] is x at times[i].
  """

  schedule: Schedule
  x0: Array
  times: Array

  def sample(self, eps: Array) -> Array:
    """A path: x_{t_1} from q(x_{t_1} | x0), then each x_t from q(xt | xs); eps (N, …)."""
    first = q_marginal(self.schedule, self.x0, self.times[-1]).sample(eps[-1])

    def step(xs: Array, given: tuple[Array, Array, Array]) -> tuple[Array, Array]:
      s, t, eps = given
      xt = q_transition(self.schedule, xs, s, t).sample(eps)
      return xt, xt

    given = (self.times[1:], self.times[:-1], eps[:-1])
    _, later = jax.lax.scan(step, first, given, reverse=True)
    return jnp.concatenate([later, first[None]])

  def log_prob(self, z: Array) -> Array:
    """log q(x_{t_1} | x0) + Σ_i log q(x_{t_i} | x_{t_{i-1}})."""

    def step(xs: Array, xt: Array, s: Time, t: Time) -> Array:
      return q_transition(self.schedule, xs, s, t).log_prob(xt)

    steps = jax.vmap(step)(z[1:], z[:-1], self.times[1:], self.times[:-1])
    return jnp.sum(steps) + q_marginal(self.schedule, self.x0, self.times[-1]).log_prob(z[-1])


def chain_log_joint(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  z: Array,
  *,
  times: Array,
  variance: str,
  decoder: Decoder,
) -> Array:
  """log p(x0, z) = log p(x_{t_N}) + Σ_i log p(x_{t_{i-1}} | x_{t_i}) + log p(x0 | x_{t_1}).

  The N times are the denoiser's batch. Arguments are those of `bound.variational_bound`, but for
  one example x0 and its path z (N, …), z[i] at times[i].
  """
  if times.shape[0] < 2:
    raise ValueError(f'times has shape {times.shape}: the chain needs two times or more')
  denoised = denoiser(z, times)

  def step(denoised: Denoised, xs: Array, xt: Array, s: Time, t: Time) -> Array:
    return reverse(schedule, denoised, xt, s, t, variance).log_prob(xs)

  earlier = jax.tree.map(lambda leaf: leaf[:-1], denoised)
  steps = jax.vmap(step)(earlier, z[1:], z[:-1], times[1:], times[:-1])
  last = jax.tree.map(lambda leaf: leaf[-1], denoised)
  spread = RECONSTRUCTION_VARIANCES[variance](schedule, last, times[-1], times[-2])
  of_x1 = evidence(schedule, z[-1], times[-1])
  reconstruction = decoder(x0, Gaussian(last.x0, spread), of_x1)
  return prior(schedule, x0, times[0]).log_prob(z[0]) + jnp.sum(steps) + reconstruction


def chain_elbo(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  eps: Array,
  *,
  times: Array,
  variance: str,
  decoder: Decoder,
) -> Array:
  """log p(x0, z) - log q(z | x0) for the path z = x_{t_1} … x_{t_N} that eps (N, …) makes.

  It's `log_ratio` with the encoder fixed. Its mean is minus the total of `bound.variational_bound`:
  by Bayes' rule q(xt | xs) = q(xs | xt, x0) q(xt | x0) / q(xs | x0), the marginals telescope, and
  the mean of what is left of each step is a KL.

  Reference: Sohl-Dickstein et al. 2015, https://arxiv.org/abs/1503.03585, appendix B.
  """

  def log_joint(z: Array) -> Array:
    return chain_log_joint(
      schedule, denoiser, x0, z, times=times, variance=variance, decoder=decoder
    )

  return log_ratio(Chain(schedule, x0, times), log_joint, eps)
