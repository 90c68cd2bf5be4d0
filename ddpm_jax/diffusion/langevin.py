"""Langevin dynamics: Markov chains whose limit has a given score, ∇ log p.

The diffusion dx = ∇ log p(x) dτ + √2 dW leaves p as it is. A step of length h along it is

  x ← x + h score(x) + √(2h) eps                                                    langevin_step

A length has the unit of x², so that it means something only beside the target's: everywhere here
h = step · variance, with a `step` of 0.1, say, and a variance that the target is known to have. On
a Gaussian of variance s² = variance a step keeps 1 - step of the distance from the mean. It is
stable for step < 2, forgets in about 1 / step steps, and without a correction ends at the
variance s² / (1 - step / 2). Elsewhere `variance` is the smallest of any direction: there the step
is what bounds stability, and a direction of variance S² takes S² / s² times as long.

A kernel moves one chain. `run` scans it, jax.vmap of `run` makes many chains, and none of them
sees another:

  kernel = mala(log_density, step=0.5, variance=0.1)
  state, trace = jax.vmap(lambda x, keys: run(kernel, kernel.init(x), keys))(x, keys)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.diffusion.score import Score, positive, score_from_x0


class Info(NamedTuple):
  """Of one step: the probability of taking the proposal, and whether it was taken."""

  acceptance: Array
  accepted: Array


class Kernel(NamedTuple):
  """init(x) -> state, which begins with x; step(state, key) -> (state, Info)."""

  init: Callable[[Array], Any]
  step: Callable[[Any, Array], tuple[Any, Info]]


class Trace(NamedTuple):
  """What a run leaves behind, one row for each key."""

  x: Array
  info: Info


class State(NamedTuple):
  """The state of a chain that remembers nothing else: x, of any shape."""

  x: Array


class Point(NamedTuple):
  """A place x and what the target says there: log p(x) + constant, in nats, and its gradient."""

  x: Array
  log_density: Array
  score: Array


def run(kernel: Kernel, state: Any, keys: Array) -> tuple[Any, Trace]:
  """One chain of as many steps as there are keys (N,): the last state and the Trace of N rows."""

  def step(state: Any, key: Array) -> tuple[Any, Trace]:
    state, info = kernel.step(state, key)
    return state, Trace(state.x, info)

  return jax.lax.scan(step, state, keys)


def langevin_step(x: Array, score: Array, h: Array | float, eps: Array) -> Array:
  """x + h score + √(2h) eps, for standard normal eps; elementwise."""
  return x + h * score + jnp.sqrt(2 * h) * eps


def ula(score: Score, *, step: float, variance: Array | float) -> Kernel:
  """x ← x + h score(x) + √(2h) eps, h = step · variance: unadjusted Langevin.

  The limit is off by O(step). On N(mean, Σ) with one variance it is N(mean, Σ (1 - ½ h Σ⁻¹)⁻¹):
  `ula_variance` of each eigenvalue.

  Args:
    score: of one example.
    step: above 0; stable below 2 on a Gaussian.
    variance: the target's smallest, or one like x for each component (a preconditioner).

  Reference: Roberts and Tweedie 1996, https://doi.org/10.2307/3318418.
  """
  h = positive(step, 'step') * positive(variance, 'variance')

  def advance(state: State, key: Array) -> tuple[State, Info]:
    x = langevin_step(state.x, score(state.x), h, normal(key, state.x))
    return State(x), Info(jnp.ones(()), jnp.ones((), bool))

  return Kernel(State, advance)


def ula_variance(variance: Array | float, h: Array | float) -> Array | float:
  """V = variance / (1 - h / (2 variance)): the variance that `ula` ends with on a Gaussian.

  The step is x - mean ← (1 - h / variance)(x - mean) + √(2h) eps, and V solves
  V = (1 - h / variance)² V + 2h. From h = 2 variance on there is no limit.

  Args:
    variance: of the target; elementwise.
    h: the step's length.

  Raises:
    ValueError: unless 0 < h < 2 variance, where both are concrete.
  """
  room = 1 - positive(h, 'h') / (2 * positive(variance, 'variance'))
  return variance / positive(room, '1 - h / (2 variance)')


def mala(log_density: Callable[[Array], Array], *, step: float, variance: Array | float) -> Kernel:
  """`ula`'s step as a proposal, taken with probability exp(`log_acceptance`): unbiased.

  Where the log-density of a proposal is NaN it is refused. Begin where it is finite.

  Args:
    log_density: log p + constant, of one example, in nats; its gradient is the score.
    step: above 0; the acceptance falls with it, and 0.57 is best for many equal dimensions.
    variance: the target's smallest, or one like x for each component (a preconditioner).

  Reference: Roberts and Tweedie 1996, https://doi.org/10.2307/3318418.
  """
  h = positive(step, 'step') * positive(variance, 'variance')
  density_and_score = jax.value_and_grad(log_density)

  def point(x: Array) -> Point:
    return Point(x, *density_and_score(x))

  def advance(old: Point, key: Array) -> tuple[Point, Info]:
    of_noise, of_choice = jax.random.split(key)
    new = point(langevin_step(old.x, old.score, h, normal(of_noise, old.x)))
    log_probability = log_acceptance(old, new, h)
    accepted = jnp.log(jax.random.uniform(of_choice)) < log_probability
    state = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), new, old)
    return state, Info(jnp.exp(log_probability), accepted)

  return Kernel(point, advance)


def log_acceptance(old: Point, new: Point, h: Array | float) -> Array:
  """min(0, log p(y) k(x | y) / (p(x) k(y | x))) from x to y, with k(y | x) = N(x + h score, 2h).

  It is what makes p(x) k(y | x) exp(log_acceptance) symmetric in x and y.
  """
  forth, back = log_proposal(old, new, h), log_proposal(new, old, h)
  ratio = new.log_density - old.log_density + back - forth
  return jnp.where(jnp.isnan(ratio), -jnp.inf, jnp.minimum(ratio, 0.0))


def log_proposal(old: Point, new: Point, h: Array | float) -> Array:
  """log N(y; x + h score(x), 2h) + constant, in nats."""
  return -jnp.sum(jnp.square(new.x - old.x - h * old.score) / (4 * h))


def annealed(
  schedule: Schedule,
  denoiser: Denoiser,
  times: Array,
  x: Array,
  keys: Array,
  *,
  step: float,
  num_steps: int,
) -> Array:
  """Langevin steps of h = step · sigma_t² at each time in turn, then the denoiser's x0: NCSN.

  No q(xt) is narrower than its noise, so that sigma_t² is the variance that `step` is a share of;
  the paper's epsilon is 2 step sigma² at the last time. From t to s the chain is scaled by
  alpha_s / alpha_t, which on the paper's VE path is 1 and makes every other path its equal in
  xt / alpha; where alpha_t = 0, xt knows no data and stays as it is.

  Args:
    schedule: the path.
    denoiser: on batches.
    times: (L,), decreasing, every sigma positive.
    x: (B, …), at the noise of times[0].
    keys: (B,): example i depends on x[i] and keys[i] alone.
    step: above 0, 0.1 in the paper's CIFAR-10 (epsilon 2e-5, last sigma 0.01).
    num_steps: at each of the times; the denoiser is called L num_steps + 1 times.

  Reference: Song and Ermon 2019, https://arxiv.org/abs/1907.05600, algorithm 1; the last
  denoising: Jolicoeur-Martineau et al. 2020, https://arxiv.org/abs/2009.05475.
  """
  positive(schedule.sigma(times[-1]), f'sigma at t = {times[-1]}')
  positive(step, 'step')

  def advance(x: Array, moment: tuple[Array, Array, Array]) -> tuple[Array, None]:
    before, t, number = moment
    alpha = schedule.alpha(before)
    x = x * jnp.where(alpha > 0, schedule.alpha(t) / jnp.where(alpha > 0, alpha, 1.0), 1.0)
    score = score_from_x0(schedule, denoiser(x, t).x0, x, t)
    eps = jax.vmap(lambda key, x: normal(jax.random.fold_in(key, number), x))(keys, x)
    return langevin_step(x, score, step * jnp.square(schedule.sigma(t)), eps), None

  now = jnp.repeat(times, num_steps)
  before = jnp.concatenate([now[:1], now[:-1]])
  x, _ = jax.lax.scan(advance, x, (before, now, jnp.arange(now.size)))
  return denoiser(x, times[-1]).x0


def corrector(
  schedule: Schedule,
  denoiser: Denoiser,
  x: Array,
  t: Time,
  eps: Array,
  *,
  snr: float,
  length: str = 'noise',
) -> Array:
  """x + h score(x) + √(2h) eps at time t, √(h/2) |score| / |eps| = snr: between two predictions.

  For 'norms' the drift is `snr` times as long as the noise in every example, by its own |score|
  and |eps|. For 'noise' the score in the formula is ∇ log q(xt | x0) = -eps / sigma, so that
  h = 2 (snr sigma)². That of q(xt) is shorter, E|score|² = d / sigma² - alpha² mmse / sigma⁴ in d
  dimensions, and the drift then at most `snr` times as long as the noise, in root mean square.

  Song et al. put the batch's mean norms into the formula, so that an example depends on its
  neighbors; both lengths here are free of that. But a length that varies with x and eps moves the
  limit: on N(0, s²) in d > 2 dimensions 'norms' ends, for ever smaller snr, at the variance
  s² (1 + 2/d)². That is nothing for an image and much for a point. 'noise' leaves q(xt) as it is up
  to O(snr⁴) a step. Their algorithm 5 (VP) also multiplies h by
  1 - beta_t, which belongs to a grid and is near 1; algorithm 4 (VE) doesn't, nor does this.

  Args:
    schedule: the path.
    denoiser: on batches.
    x: (B, …), at the noise of t.
    t: scalar or (B,), sigma positive.
    eps: standard normals like x.
    snr: above 0; 0.16 in the paper's CIFAR-10.
    length: a key of LENGTHS.

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, algorithms 4 and 5.
  """
  if length not in LENGTHS:
    raise ValueError(f"length '{length}' is not one of {', '.join(LENGTHS)}")
  positive(snr, 'snr')

  def correct(x: Array, x0: Array, t: Time, eps: Array) -> Array:
    score = score_from_x0(schedule, x0, x, t)
    h = LENGTHS[length](snr, schedule.sigma(t), score, eps)
    return langevin_step(x, score, h, eps)

  times = jnp.broadcast_to(t, x.shape[:1])
  return jax.vmap(correct)(x, denoiser(x, t).x0, times, eps)


def by_noise(snr: float, sigma: Array, score: Array, eps: Array) -> Array:
  """2 (snr sigma)²."""
  del score, eps
  return 2 * jnp.square(snr * sigma)


def by_norms(snr: float, sigma: Array, score: Array, eps: Array) -> Array:
  """2 (snr |eps| / |score|)²; where the score is zero, `by_noise`."""
  square = jnp.sum(jnp.square(score))
  ratio = jnp.sum(jnp.square(eps)) / jnp.where(square > 0, square, 1.0)
  return jnp.where(square > 0, 2 * snr**2 * ratio, by_noise(snr, sigma, score, eps))


LENGTHS = {
  'noise': by_noise,
  'norms': by_norms,
}


def normal(key: Array, x: Array) -> Array:
  """Standard normals like x."""
  return jax.random.normal(key, jnp.shape(x), jnp.result_type(x))
