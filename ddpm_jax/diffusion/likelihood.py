"""The likelihood of an example by the probability-flow ODE, as of a normalizing flow.

Along dx/dt = v(x, t) the density changes by d log p / dt = -∇·v, hence

  log p(x at t_min) = log p(x at t_max) + ∫ ∇·v dt   from t_min to t_max.

It is integrated over the angle of angle.py, where the equation is smooth on every path: in t a
chain's continuous reading has a kink at each of its times. Of x = length z in D dimensions the
integral is that of z and D log(length at t_max / length at t_min).

Reference: Chen et al. 2018, https://arxiv.org/abs/1806.07366; Song et al. 2021,
https://arxiv.org/abs/2011.13456, section 4.3 and appendix D.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.angle import angle_at, angular_flow, length
from ddpm_jax.diffusion.bound import Decoder, example_keys, normals
from ddpm_jax.diffusion.continuous_bound import continuous_reconstruction
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import q_marginal, q_sample
from ddpm_jax.diffusion.schedules import Discrete, Schedule


def basis(key: None, x: Array) -> Array:
  """(D, …), the unit vectors: Σ eᵀ J e is the trace, for D products with the Jacobian."""
  del key
  return jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape)


def rademacher(key: Array, x: Array) -> Array:
  """(1, …), ±1 with even odds; the estimate's variance comes from off the diagonal alone."""
  return jax.random.rademacher(key, (1, *x.shape), x.dtype)


def gaussian(key: Array, x: Array) -> Array:
  """(1, …), standard normal."""
  return jax.random.normal(key, (1, *x.shape), x.dtype)


# The vectors e of ∇·v = Σ eᵀ J e, or of an unbiased estimate of it: E e eᵀ = I (Hutchinson).
DIVERGENCES: dict[str, Callable[..., Array]] = {
  'exact': basis,
  'rademacher': rademacher,
  'gaussian': gaussian,
}


def jacobian_trace(push: Callable[[Array], Array], probes: Array) -> Array:
  """Σ eᵀ J e over the probes e (K, …), for push(e) = J e: the trace of J, or an estimate of it.

  E eᵀ J e = tr J E e eᵀ, which is tr J where E e eᵀ = 1.

  Reference: Hutchinson 1990, https://doi.org/10.1080/03610919008812866.
  """
  return jnp.sum(probes * jax.vmap(push)(probes))


class Latent(NamedTuple):
  """Where the flow takes an example.

  Attributes:
    x: (B, …), at t_max.
    log_det: (B,), ∫ ∇·v dt in nats: the log-determinant of the map's Jacobian.
  """

  x: Array
  log_det: Array


def log_likelihood(
  schedule: Schedule,
  denoiser: Denoiser,
  x: Array,
  *,
  prior: Callable[[Array], Array],
  divergence: str,
  key: Array | None = None,
  index: Array | None = None,
  **solver_settings,
) -> Array:
  """log p(x) = log prior(x at t_max) + ∫ ∇·v dt, in nats for each example (B,).

  It is the density at t_min, of data with noise sigma(t_min) in it.

  Args:
    schedule: a continuous path.
    denoiser: a network's or an oracle's.
    x: the examples (B, …), as of t_min.
    prior: one example at t_max -> its log-density in nats. The customary one is
      `lambda x: process.prior(schedule, x, schedule.t_max).log_prob(x)`; what it costs against
      another is the difference of the two at `encode`'s x, for one solve.
    divergence: as all that follows, an argument of `encode`.
    key: of the probes.
    index: (B,), each example's number.
    **solver_settings: solver, rtol, atol, max_steps.
  """
  latent = encode(
    schedule, denoiser, x, divergence=divergence, key=key, index=index, **solver_settings
  )
  return jax.vmap(prior)(latent.x) + latent.log_det


def encode(
  schedule: Schedule,
  denoiser: Denoiser,
  x: Array,
  *,
  divergence: str,
  key: Array | None = None,
  index: Array | None = None,
  solver: diffrax.AbstractAdaptiveSolver | None = None,
  rtol: float = 3e-7,
  atol: float = 3e-7,
  max_steps: int = 4096,
) -> Latent:
  """Takes examples at t_min along the flow to t_max, with the log-determinant of the map.

  Each example has steps and probes of its own, so that a result doesn't depend on its batch. The
  example in units of sqrt(alpha² + sigma²) and its nats per dimension are each kept within
  atol + rtol |value| a step. As they stand, the tolerances leave errors below 1e-4 bits per
  dimension in double precision. Examples far from all data err by more, up to 5e-6 of their
  log-density where that is some hundred nats a dimension below the usual.

  Single precision adds the rounding of the example, 2⁻²⁴ of it at the start and in each step. That
  changes the log-density by its gradient times so much, and a density with noise of deviation σ in
  it has a gradient of root mean square 1/σ at most (per dimension). For up to 64 steps this is

    2⁻¹⁸ rms(x) / sigma(t_min)   nats per dimension at most,

  3e-4 for the linear chain and data of size one, and in general far less: most roundings are
  smaller, and data whose density is smooth at the scale of sigma(t_min) has a smaller gradient.

  Args:
    schedule: a continuous path.
    denoiser: a network's or an oracle's.
    x: the examples (B, …), as of t_min.
    divergence: a key of DIVERGENCES. `exact` costs as many Jacobian products as an example has
      dimensions; the others one, and are unbiased up to the solver's error.
    key: of the probes; not for `exact`.
    index: (B,), each example's number, which decides its probe; 0 … B - 1 if not given.
    solver: diffrax.Tsit5() if not given; Dopri8 for tight tolerances.
    rtol: relative tolerance.
    atol: absolute tolerance.
    max_steps: of an example, before an error.

  Raises:
    TypeError: for a discrete chain.
    ValueError: for a divergence that has no such name or lacks its key.
    RuntimeError: where max_steps do not reach t_max, also under jit.
  """
  check_divergence(divergence, key)
  if isinstance(schedule, Discrete):
    raise TypeError('a chain has no times between: use schedules.interpolate')
  field = angular_flow(schedule, denoiser)
  begin, end = (angle_at(schedule, t) for t in (schedule.t_min, schedule.t_max))
  first, last = (length(schedule, t) for t in (schedule.t_min, schedule.t_max))

  def rates(angle: Array, state: tuple[Array, Array], probes: Array) -> tuple[Array, Array]:
    velocity, push = jax.linearize(lambda z: field(z[None], angle)[0], state[0])
    return velocity, jacobian_trace(push, probes) / velocity.size

  def solve(x: Array, key: Array | None) -> Latent:
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(rates),
      solver or diffrax.Tsit5(),
      t0=begin,
      t1=end,
      dt0=(end - begin) / 100,
      y0=(x / first, jnp.zeros((), x.dtype)),
      args=DIVERGENCES[divergence](key, x),
      stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol, norm=largest_rms),
      max_steps=max_steps,
    )
    z, nats = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    return Latent(last * z, (nats + jnp.log(last / first)) * x.size)

  keys = None if key is None else example_keys(key, x, index)
  return jax.vmap(solve)(x, keys)


def check_divergence(divergence: str, key: Array | None) -> None:
  """Refuses a divergence that has no such name or lacks its key."""
  if divergence not in DIVERGENCES:
    raise ValueError(f"divergence '{divergence}' is not one of {', '.join(DIVERGENCES)}")
  if divergence != 'exact' and key is None:
    raise ValueError(f"divergence '{divergence}' draws probes: it needs a key")


def largest_rms(state: tuple[Array, Array]) -> Array:
  """The larger root mean square of the two: nats count as much as all of the example together."""
  squares = [jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(state)]
  return jnp.sqrt(jnp.maximum(*squares))


def noised_log_prob(
  schedule: Schedule,
  denoiser: Denoiser,
  x0: Array,
  key: Array,
  *,
  prior: Callable[[Array], Array],
  decoder: Decoder,
  divergence: str,
  index: Array | None = None,
  **solver_settings,
) -> Array:
  """log p(x1) + log p(x0 | x1) - log q(x1 | x0) at one draw of x1 ~ q(x1 | x0), x1 at t_min.

  The path itself dequantizes: p(x0) = ∫ p(x1) p(x0 | x1) dx1, with the ODE's density at t_min, of
  pixels too where the decoder is one of pixels. So the average over draws is at most log p(x0)
  (Jensen), and every draw is log p(x0) where p(x0 | x1) is the posterior. In nats, (B,).

  Args:
    schedule: a continuous path.
    denoiser: a network's or an oracle's.
    x0: the data (B, …).
    key: of the draws and probes.
    prior: one example at t_max -> its log-density in nats.
    decoder: p(x0 | x1), as for `continuous_bound`.
    divergence: an argument of `encode`.
    index: (B,), each example's number.
    **solver_settings: solver, rtol, atol, max_steps.
  """
  of_noise, of_probes = jax.random.split(key)
  eps = normals(example_keys(of_noise, x0, index), 0, x0)
  x1 = q_sample(schedule, x0, schedule.t_min, eps)
  density = log_likelihood(
    schedule,
    denoiser,
    x1,
    prior=prior,
    divergence=divergence,
    key=of_probes,
    index=index,
    **solver_settings,
  )
  noise = jax.vmap(lambda x0, x1: q_marginal(schedule, x0, schedule.t_min).log_prob(x1))(x0, x1)
  return density - continuous_reconstruction(schedule, denoiser, x0, eps, decoder) - noise


def dequantize(image: Array, levels: int, key: Array) -> Array:
  """2 (k + u - ½) / (levels - 1) - 1 with u uniform over [0, 1), for pixels k in 0 … levels - 1.

  The value 2k / (levels - 1) - 1 that stands for k elsewhere is the center of a bin of width
  2 / (levels - 1); the draw is uniform over the bin. Bins tile [-1, 1] and half a bin beyond it.
  """
  u = jax.random.uniform(key, jnp.shape(image))
  return 2 * (image + u - 0.5) / (levels - 1) - 1


def quantized_log_prob(log_prob: Array, x: Array, levels: int) -> Array:
  """log p(x) + D log w, w = 2 / (levels - 1): at most log P(k) on average over the draw, in nats.

  The model's probability of pixels k is its mass P(k) = ∫ p(x) dx over their bin, of volume w^D.
  As x is uniform there P(k) = w^D E p(x), hence log P(k) >= E log p(x) + D log w (Jensen).
  So a density's bits per dimension are below those of the pixels by log2((levels - 1) / 2): for 256
  levels log2(127.5) = 6.994, where scaling by 128 would have had 7.

  Args:
    log_prob: the density's, at x = dequantize(k, levels, key).
    x: one example, of D dimensions.
    levels: of the pixels.

  Reference: Theis et al. 2016, https://arxiv.org/abs/1511.01844, section 3.1.
  """
  return log_prob + jnp.size(x) * math.log(2 / (levels - 1))
