"""Linear multistep methods on the probability flow: one evaluation a step, and a memory.

In y = x / alpha and n = sigma / alpha the flow is dy/dn = eps, see runge_kutta.py, hence

  y_s = y_t + ∫ eps dn = y_t + (n_s - n_t) Σ w_i eps_i   from n_t to n_s,

with the polynomial through the last few eps under the integral. Methods differ in the variable of
the polynomial, in whether the integral heeds the grid (`lms`, `deis`) or has the weights of an even
one (`ipndm`, `plms`, `pndm`, whose order is therefore that of their name where n is even, and 2 on
other smooth grids), and in how they begin. An eps seen at alpha = 0, where n is infinite, is not
remembered by the first kind: a node at infinity doesn't bend a polynomial.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule
from ddpm_jax.samplers.formulas import eps_of
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.runge_kutta import EULER, HEUN, RK4, Tableau, advance, in_time, reach, within
from ddpm_jax.samplers.sampler import Sampler

Weigh = Callable[[Schedule, Array, Step], Array]


class Remembered(NamedTuple):
  """The state.

  Attributes:
    x: (B, …).
    x0: (B, …), the last prediction.
    eps: (B, …), of each of the order - 1 steps before, the latest first.
    log_sigmas: (order - 1,), log n where each was seen; infinite where none was.
  """

  x: Array
  x0: Array
  eps: tuple[Array, ...]
  log_sigmas: Array


# The variable of the polynomial, at log n.
VARIABLES: dict[str, Callable[[Schedule, Array], Array]] = {
  'sigma': lambda schedule, log_sigma: jnp.exp(log_sigma),
  'log_sigma': lambda schedule, log_sigma: log_sigma,
  'time': lambda schedule, log_sigma: 1.0 * schedule.time(-2 * log_sigma),
}

# Row k - 1 integrates a polynomial of degree k - 1 through k even nodes over the next step.
ADAMS_BASHFORTH = np.array(
  [
    [1, 0, 0, 0],
    [3 / 2, -1 / 2, 0, 0],
    [23 / 12, -16 / 12, 5 / 12, 0],
    [55 / 24, -59 / 24, 37 / 24, -9 / 24],
  ]
)

# How `pndm` begins.
PSEUDO = {2: HEUN, 4: RK4}

# Gauss and Legendre's sixteen points and masses on [-1, 1]: over log n they integrate a cubic in n
# to 1e-14 as far as n_t / n_s = e⁴, and to 1e-7 at e⁷.
POINTS, MASSES = np.polynomial.legendre.leggauss(16)


@bounded
def lms(order: Literal[1, 2, 3, 4] = 4) -> Sampler:
  """y_s = y_t + Σ_i eps_i ∫ ℓ_i dn, with ℓ_i the Lagrange basis over the last `order` values of n.

  Adams and Bashforth's method on the grid as it is. It begins with lower orders, 1, 2, …
  Reference: Zhang and Chen 2022, https://arxiv.org/abs/2204.13902, as ρAB-DEIS.

  Raises:
    ValueError: where the order is not in 1 … 4.
  """
  return deis(order, 'sigma')


@bounded
def deis(
  order: Literal[1, 2, 3, 4] = 3, variable: Annotated[str, OneOf(VARIABLES)] = 'time'
) -> Sampler:
  """y_s = y_t + Σ_i eps_i ∫ ℓ_i(τ(n)) dn, with ℓ_i the Lagrange basis over the last values of τ.

  The paper's tAB-DEIS, whose tAB3 has order 4 here. It begins with lower orders, 1, 2, …
  Reference: Zhang and Chen 2022, https://arxiv.org/abs/2204.13902.

  Args:
    order: how many eps the polynomial goes through.
    variable: what it is a polynomial in, a key of VARIABLES: `time`; `sigma`, which is `lms`;
      `log_sigma`, the choice of later codes.

  Raises:
    ValueError: where the order is not in 1 … 4 or there is no such variable.
  """
  of = VARIABLES[variable]

  def weigh(schedule: Schedule, log_sigmas: Array, step: Step) -> Array:
    end = -schedule.log_snr(step.s) / 2
    return mean_basis(lambda log_sigma: of(schedule, log_sigma), log_sigmas, end)

  return multistep(order, weigh)


@bounded
def ipndm(order: Literal[1, 2, 3, 4] = 4) -> Sampler:
  """y_s = y_t + (n_s - n_t) (55 eps_0 - 59 eps_1 + 37 eps_2 - 9 eps_3) / 24, begun by lower orders.

  The weights are those of an even grid in n: there the order is as named, else 2.
  Reference: Zhang and Chen 2022, https://arxiv.org/abs/2204.13902, as iPNDM; `lms` has the weights
  that its followers call variable-step.

  Raises:
    ValueError: where the order is not in 1 … 4.
  """
  return evenly(multistep(order, of_even_grid))


@bounded
def plms(order: Literal[2, 3, 4] = 4) -> Sampler:
  """`ipndm`, but with Heun's method for its first step, which costs one evaluation more.

  Reference: Liu et al. 2022, https://arxiv.org/abs/2202.09778, without its Runge-Kutta steps, as in
  the published code of Rombach et al. 2022, https://arxiv.org/abs/2112.10752.

  Raises:
    ValueError: where the order is not in 2 … 4.
  """
  return evenly(multistep(order, of_even_grid, HEUN, warmup=1))


@bounded
def pndm(order: Literal[2, 4] = 4) -> Sampler:
  """The weights of `ipndm`, after order - 1 Runge-Kutta steps of the same order.

  Their middle is that of t, as published, so that they err by O(h³) each. Order 4 is F-PNDM, nine
  evaluations more than steps; order 2 is S-PNDM, one more, and `plms` of order 2.
  Reference: Liu et al. 2022, https://arxiv.org/abs/2202.09778.

  Raises:
    ValueError: where the order is neither 2 nor 4.
  """
  return evenly(multistep(order, of_even_grid, PSEUDO[order], warmup=order - 1))


def multistep(order: int, weigh: Weigh, tableau: Tableau = EULER, warmup: int = 0) -> Sampler:
  """The sampler that weighs the last `order` eps, after `warmup` steps of a tableau.

  Args:
    order: how many eps it sees.
    weigh: (schedule, log_sigmas (order,), step) -> weights (order,), which sum to one.
    tableau: of the first steps.
    warmup: how many those are.
  """

  def init(schedule: Schedule, times: Array, xT: Array) -> Remembered:
    del schedule, times
    zeros = jnp.zeros_like(xT)
    return Remembered(xT, zeros, (zeros,) * (order - 1), jnp.full(order - 1, jnp.inf))

  def update(
    schedule: Schedule, denoiser: Denoiser, state: Remembered, step: Step, noise: Noise
  ) -> Remembered:
    del noise
    t, s = step.t, step.s
    x0 = denoiser(state.x, t).x0
    eps = (eps_of(schedule, state.x, x0, t), *state.eps)
    log_sigmas = jnp.append(-schedule.log_snr(t) / 2, state.log_sigmas)

    def by_memory() -> Array:
      return reach(schedule, x0, eps, weigh(schedule, log_sigmas, step), t, s)

    def by_stages() -> Array:
      return advance(tableau, in_time, schedule, denoiser, state.x, x0, t, s)

    xs = jax.lax.cond(step.index < warmup, by_stages, by_memory) if warmup else by_memory()
    return Remembered(xs, x0, eps[: order - 1], log_sigmas[: order - 1])

  return Sampler(
    init,
    update,
    order=order,
    history=0 if warmup else order - 1,
    startup=warmup * len(tableau.nodes),
    between=warmup > 0 and within(tableau),
  )


def evenly(sampler: Sampler) -> Sampler:
  """A sampler that has its order where sigma / alpha is evenly spaced, and order 2 elsewhere."""
  return sampler._replace(order=min(sampler.order, 2), order_even=sampler.order)


def of_even_grid(schedule: Schedule, log_sigmas: Array, step: Step) -> Array:
  """Adams and Bashforth's weights for as many eps as there are by now."""
  del schedule
  order = log_sigmas.size
  rows = jnp.asarray(ADAMS_BASHFORTH, jnp.result_type(float))
  return rows[jnp.minimum(step.index, order - 1), :order]


def mean_basis(of: Callable[[Array], Array], log_sigmas: Array, end: Array) -> Array:
  """∫ ℓ_i(τ(n)) dn / (n_s - n_t) for each i: the basis' mean over the way from n_t to n_s.

  Nodes at infinity are none: in the limit, their ℓ_i is zero and their factor in the others one.
  Nor is one that an earlier node falls together with.
  With an infinite end, where no polynomial has a mean, only the first ℓ is left.

  Args:
    of: log n -> τ.
    log_sigmas: (k,), log n at the nodes, that of n_t first.
    end: log n_s.
  """
  known = jnp.isfinite(log_sigmas)
  first = jnp.where(known[0], log_sigmas[0], end)
  last = jnp.where(jnp.isfinite(end), end, first)
  points = first + (1 + POINTS) / 2 * (last - first)
  masses = jax.nn.softmax(points + np.log(MASSES))  # n dlog n = dn, in shares of the way
  nodes = jax.vmap(of)(jnp.where(known, log_sigmas, first))
  earlier = known[None, :] & np.tri(known.size, k=-1, dtype=bool)
  seen = known & ~jnp.any(earlier & (nodes[:, None] == nodes[None, :]), axis=1)
  others = seen[:, None] & seen[None, :] & ~np.eye(seen.size, dtype=bool)
  gaps = jnp.where(others, nodes[:, None] - nodes[None, :], 1.0)
  ways = jax.vmap(of)(points)[:, None, None] - nodes[None, None, :]
  factors = jnp.where(others[None], ways / gaps[None], 1.0)
  basis = jnp.where(seen[None], jnp.prod(factors, axis=2), 0.0)
  return masses @ basis
