"""Runge-Kutta methods on the probability flow.

In the coordinates y = x / alpha and n = sigma / alpha, where y = x0 + n eps, the flow
dx/dt = alpha' x0 + sigma' eps of every Gaussian path is one and the same equation:

  y' = (x' - alpha' y) / alpha = (sigma' - alpha' n) / alpha eps = n' eps,  hence  dy/dn = eps.

Each classical method takes some mean of the eps that it has seen, with weights w_i of sum one:

  y_s = y_t + (n_s - n_t) Σ w_i eps_i
  x_s = alpha_s x0 + sigma_s eps_0 + alpha_s (n_s - n_t) Σ w_i (eps_i - eps_0)

where x0 and eps_0 are those of xt. At alpha_t = 0, where n_t is infinite and no finite step has a
higher order, the last term is left out, and the first-order step remains.

Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, section 3; Song et al. 2021,
https://arxiv.org/abs/2010.02502, equation 14.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.formulas import eps_of, place
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start

Node = Callable[[Schedule, Time, Time, float], Time]


class Tableau(NamedTuple):
  """An explicit Runge-Kutta method, as the means of directions that it takes.

  Attributes:
    order: of convergence.
    nodes: where the stages after the first are, as shares of the step.
    weights: of the eps seen so far, rows that sum to one: the mean by which each of the nodes is
      reached, and last the whole step's. Butcher's a_ij are nodes_i weights_ij.
  """

  order: int
  nodes: tuple[float, ...]
  weights: tuple[tuple[float, ...], ...]


EULER = Tableau(1, (), ((1.0,),))
HEUN = Tableau(2, (1.0,), ((1.0,), (1 / 2, 1 / 2)))
MIDPOINT = Tableau(2, (0.5,), ((1.0,), (0.0, 1.0)))
RK4 = Tableau(
  4,
  (0.5, 0.5, 1.0),
  ((1.0,), (0.0, 1.0), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
)


def in_sigma(schedule: Schedule, t: Time, s: Time, share: float) -> Time:
  """The time at which n = (1 - share) n_t + share n_s."""
  n_t, n_s = (jnp.exp(-schedule.log_snr(time) / 2) for time in (t, s))
  return schedule.time(-2 * jnp.log((1 - share) * n_t + share * n_s))


def in_log_sigma(schedule: Schedule, t: Time, s: Time, share: float) -> Time:
  """The time at which log n = (1 - share) log n_t + share log n_s."""
  return schedule.time((1 - share) * schedule.log_snr(t) + share * schedule.log_snr(s))


def in_time(schedule: Schedule, t: Time, s: Time, share: float) -> Time:
  """t + share (s - t), rounded on a chain."""
  del schedule
  time = t + share * (s - t)
  return time if jnp.issubdtype(jnp.result_type(t), jnp.floating) else jnp.round(time).astype(int)


def reach(
  schedule: Schedule,
  x0: Array,
  eps: Sequence[Array],
  weights: Sequence[float] | Array,
  t: Time,
  s: Time,
) -> Array:
  """alpha_s x0 + sigma_s eps_0 + alpha_s (n_s - n_t) Σ w_i (eps_i - eps_0): y moves by the mean.

  The weights sum to one; the first is implied by the others. Where alpha_t = 0 the last term is
  left out.
  """
  alpha = schedule.alpha(t)
  n_t = schedule.sigma(t) / jnp.where(alpha > 0, alpha, 1.0)
  way = jnp.where(alpha > 0, schedule.sigma(s) - schedule.alpha(s) * n_t, 0.0)
  straight = place(schedule, x0, eps[0], s)
  turns = zip(weights[1:], eps[1:], strict=True)
  return straight + sum(way * weight * (other - eps[0]) for weight, other in turns)


def advance(
  tableau: Tableau,
  node: Node,
  schedule: Schedule,
  denoiser: Denoiser,
  xt: Array,
  x0: Array,
  t: Time,
  s: Time,
) -> Array:
  """xs, by the tableau's stages, of which x0 = denoiser(xt, t).x0 is the first."""
  eps = [eps_of(schedule, xt, x0, t)]
  for share, weights in zip(tableau.nodes, tableau.weights[:-1], strict=True):
    time = s if share == 1 else node(schedule, t, s, share)
    x = reach(schedule, x0, eps, weights, t, time)
    eps.append(eps_of(schedule, x, denoiser(x, time).x0, time))
  return reach(schedule, x0, eps, tableau.weights[-1], t, s)


def runge_kutta(tableau: Tableau, node: Node = in_sigma) -> Sampler:
  """The sampler of a tableau whose nodes are even in n, or as `node` has them."""

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    del noise
    x0 = denoiser(state.x, step.t).x0
    return State(advance(tableau, node, schedule, denoiser, state.x, x0, step.t, step.s), x0)

  return Sampler(
    start,
    update,
    order=tableau.order,
    evaluations=1 + len(tableau.nodes),
    between=within(tableau),
  )


def within(tableau: Tableau) -> bool:
  """Whether some of the nodes are within the step."""
  return any(share != 1 for share in tableau.nodes)


def euler() -> Sampler:
  """y_s = y_t + (n_s - n_t) eps(y_t, n_t): DDIM with eta = 0, as the flow's simplest method.

  Reference: Song et al. 2021, https://arxiv.org/abs/2010.02502, equation 14.
  """
  return runge_kutta(EULER)


def heun() -> Sampler:
  """y_s = y_t + (n_s - n_t) ½ (eps(y_t, n_t) + eps(y', n_s)), y' being Euler's y_s.

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, algorithm 1, for its equation
  in y and n.
  """
  return runge_kutta(HEUN)


def dpm2() -> Sampler:
  """y_s = y_t + (n_s - n_t) eps(y_m, n_m), n_m = sqrt(n_t n_s), y_m = y_t + (n_m - n_t) eps_t.

  The midpoint method but for the middle, which is that of log n: hence DPM-Solver-2 with r1 = ½.
  Reference: Lu et al. 2022, https://arxiv.org/abs/2206.00927, algorithm 1; k-diffusion's name.
  """
  return runge_kutta(MIDPOINT, in_log_sigma)


def rk4() -> Sampler:
  """y_s = y_t + (n_s - n_t) (eps_1 + 2 eps_2 + 2 eps_3 + eps_4) / 6, with nodes at 0, ½, ½, 1 in n.

  Reference: Kutta 1901; Zhang and Chen 2022, https://arxiv.org/abs/2204.13902, as ρRK4.
  """
  return runge_kutta(RK4)
