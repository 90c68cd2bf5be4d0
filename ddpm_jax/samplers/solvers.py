"""Whole solves of the probability flow with steps chosen by their errors, through diffrax.

The solves run over the angle θ = arctan(sigma / alpha), see ddpm_jax.diffusion.angle: the equation
is the same on every path and finite from the data to pure noise.

Each example is a solve of its own, with steps of its own, so that it doesn't depend on its batch.

Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, section 4.3.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import diffrax
import jax
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import check_fields
from ddpm_jax.diffusion.angle import angle_at, angular_flow, length
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Discrete, Schedule, Time
from ddpm_jax.samplers.arguments import check_denoiser, checked

Tolerance = Annotated[float, Interval(ge=1e-14, le=1)]
Steps = Annotated[int, Interval(ge=1, le=1_000_000)]


class Solution(NamedTuple):
  """What a solve gives.

  Attributes:
    x: (B, …), at time s.
    evaluations: (B,), of the denoiser for each example. A batch waits for its slowest.
  """

  x: Array
  evaluations: Array


@dataclasses.dataclass(frozen=True)
class Solver:
  """A method and its tolerances: solver(schedule, denoiser, x, t, s) -> x at s.

  Attributes:
    method: diffrax's.
    rtol: relative tolerance. Each step keeps the error of z within atol + rtol |z|, in the root
      mean square over an example's components.
    atol: absolute tolerance.
    max_steps: of an example, before an error.

  Raises:
    ValueError: where one of the three is out of bounds.
  """

  method: diffrax.AbstractERK
  rtol: Tolerance
  atol: Tolerance
  max_steps: Steps
  between: ClassVar[bool] = True  # as a Sampler's: it asks for times of its own

  def __post_init__(self) -> None:
    check_fields(self)

  def __call__(self, schedule: Schedule, denoiser: Denoiser, x: Array, t: Time, s: Time) -> Array:
    """(B, …), x taken from t to s; see `solve`."""
    return solve(self, schedule, denoiser, x, t, s).x


def solve(
  solver: Solver, schedule: Schedule, denoiser: Denoiser, x: Array, t: Time, s: Time
) -> Solution:
  """Takes x (B, …) along the flow from t to s, towards data or away from it.

  Raises:
    TypeError: for a discrete chain, or what is no denoiser.
    RuntimeError: where max_steps do not reach s, also under jit.
  """
  check_denoiser(denoiser)
  if isinstance(schedule, Discrete):
    raise TypeError('a solver chooses times of its own: use schedules.interpolate')

  field = angular_flow(schedule, checked(denoiser))
  begin, end = angle_at(schedule, t), angle_at(schedule, s)

  def rates(angle: Array, z: Array, _: None) -> Array:
    return field(z[None], angle)[0]

  def one(x: Array) -> Solution:
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(rates),
      solver.method,
      t0=begin,
      t1=end,
      dt0=(end - begin) / 100,
      y0=x / length(schedule, t),
      stepsize_controller=diffrax.PIDController(rtol=solver.rtol, atol=solver.atol),
      max_steps=solver.max_steps,
    )
    xs = length(schedule, s) * solution.ys[0]
    return Solution(xs, evaluations_of(solver.method, solution.stats['num_steps']))

  return jax.vmap(one)(x)


def evaluations_of(method: diffrax.AbstractERK, num_steps: Array) -> Array:
  """What steps cost, the rejected ones too; a last stage that is the next step's first counts once.

  Such a method keeps that evaluation where a step is rejected, and makes one more at the start.
  """
  tableau: Any = method.tableau
  kept = int(tableau.fsal)
  return (tableau.num_stages - kept) * num_steps + kept


def heun12(rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5, max_steps: Steps = 4096) -> Solver:
  """Heun's second order with Euler's error, two evaluations a step."""
  return Solver(diffrax.Heun(), rtol, atol, max_steps)


def bosh3(rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5, max_steps: Steps = 4096) -> Solver:
  """Third order, three evaluations a step: for loose tolerances.

  Reference: Bogacki and Shampine 1989, https://doi.org/10.1016/0893-9659(89)90079-7.
  """
  return Solver(diffrax.Bosh3(), rtol, atol, max_steps)


def dopri5(rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5, max_steps: Steps = 4096) -> Solver:
  """Fifth order, six evaluations a step: what others call RK45.

  Reference: Dormand and Prince 1980, https://doi.org/10.1016/0771-050X(80)90013-3.
  """
  return Solver(diffrax.Dopri5(), rtol, atol, max_steps)


def tsit5(rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5, max_steps: Steps = 4096) -> Solver:
  """Fifth order, six evaluations a step, of smaller error than `dopri5`.

  Reference: Tsitouras 2011, https://doi.org/10.1016/j.camwa.2011.06.002.
  """
  return Solver(diffrax.Tsit5(), rtol, atol, max_steps)


def dopri8(rtol: Tolerance = 1e-5, atol: Tolerance = 1e-5, max_steps: Steps = 4096) -> Solver:
  """Eighth order, thirteen evaluations a step: for tight tolerances, in double precision.

  Reference: Prince and Dormand 1981, https://doi.org/10.1016/0771-050X(81)90010-3.
  """
  return Solver(diffrax.Dopri8(), rtol, atol, max_steps)


SOLVERS = {
  'heun12': heun12,
  'bosh3': bosh3,
  'dopri5': dopri5,
  'tsit5': tsit5,
  'dopri8': dopri8,
}
