"""DPM-Solver++ for the reverse SDE: exponential integrators with x0 as what is predicted.

In y = x / alpha, n = sigma / alpha and lambda = -log n, half the log-SNR, the process

  dy = -(1 + eta) (y - x0) dlambda + sqrt(2 eta) n dw

has the marginals of the path for every eta >= 0: it is the probability flow for eta = 0, Anderson's
reversed diffusion for eta = 1. Over a step of length h = lambda_s - lambda_t its linear part and
its noise are integrated exactly, with H = (1 + eta) h,

  xs = (sigma_s / sigma_t) e^(-eta h) xt + alpha_s (1 - e^-H) X0
       + sigma_s sqrt(1 - e^(-2 eta h)) noise                                             advance

and X0 is the average of x0 over the step, with weights e^(H v) at its fraction v in [0, 1]. A
polynomial c0 + c1 v + c2 v² for x0 has the average c0 + c1 E v + c2 E v². What is left to a method
is that polynomial. A run is the same on every path: x / alpha for the same noise and values of n.

At zero terminal SNR the first step is infinitely long; e^-h is 0, and all of this holds.

Here eta scales the variance of the noise, as it does in k-diffusion; in `ddim` and the ancestral
samplers it scales the deviation, where eta² stands for this one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.continuous import root
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start
from ddpm_jax.samplers.stochastic import NoiseScale


class History(NamedTuple):
  """The state of a multistep method; lengths are infinite where there was no step.

  Attributes:
    x: (B, …).
    x0: the last prediction.
    older: the one before.
    h1: the length of the last step.
    h2: of the one before.
  """

  x: Array
  x0: Array
  older: Array
  h1: Array
  h2: Array


Eta = Annotated[float, Interval(ge=0, le=100)]
Inner = Annotated[float, Interval(gt=0, lt=1)]


@bounded
def dpmpp_sde(eta: Eta = 1.0, r: Inner = 0.5, noise_scale: NoiseScale = 1.0) -> Sampler:
  """X0 = (1 - 1 / (2r)) x0(xt) + 1 / (2r) x0(xm): DPM-Solver++ (S) for the SDE.

  Here xm is where a first-order step, X0 = x0(xt), arrives at the fraction r of h. The noise of the
  whole step continues that of the first part: the two make one path of the exact process, without
  which the variance of xs would be right to first order only. It is weakly of second order.
  k-diffusion takes the ancestral samplers' eta here, which is the same for 0 and 1.

  Reference: Crowson 2022, https://github.com/crowsonkb/k-diffusion, after Lu et al. 2022,
  https://arxiv.org/abs/2211.01095, algorithm 1.

  Args:
    eta: >= 0, how much noise; 0 is DPM-Solver++ (2S).
    r: in (0, 1), where the middle is, in log-SNR.
    noise_scale: multiplies the noise; any but 1 changes the marginals.

  Raises:
    ValueError: where one of them is out of range.
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    t, s, h = step.t, step.s, length(schedule, step)
    m = schedule.time((1 - r) * schedule.log_snr(t) + r * schedule.log_snr(s))
    first = noise_scale * fresh(noise, m, t, eta, r * h)
    second = noise_scale * fresh(noise, s, m, eta, (1 - r) * h, part=1)
    x0 = denoiser(state.x, t).x0
    xm = advance(schedule, state.x, x0, first, m, t, eta, r * h)
    average = x0 + (denoiser(xm, m).x0 - x0) / (2 * r)
    both = decay(eta, (1 - r) * h) * first + second
    return State(advance(schedule, state.x, average, both, s, t, eta, h), x0)

  return Sampler(start, update, order=2, evaluations=2, stochastic=eta > 0, between=True)


@bounded
def dpmpp_2m_sde(
  eta: Eta = 1.0, rule: Annotated[str, OneOf(RULES)] = 'midpoint', noise_scale: NoiseScale = 1.0
) -> Sampler:
  """X0 = x0 + E v (h / h1) (x0 - x0'): DPM-Solver++ (2M) for the SDE.

  The line through this prediction and the last, x0', made h1 before. The average place E v is
  1 / (1 - e^-H) - 1 / H by the rule 'heun' and its limit for short steps, ½, by 'midpoint'. It
  begins with a step of first order and is weakly of second order by either rule.

  Reference: Lu et al. 2022, https://arxiv.org/abs/2211.01095, SDE-DPM-Solver++ (2M), which is
  'midpoint'; Crowson 2022, https://github.com/crowsonkb/k-diffusion, for eta and 'heun'.

  Args:
    eta: >= 0, how much noise; 0 is DPM-Solver++ (2M).
    rule: a key of RULES.
    noise_scale: multiplies the noise; any but 1 changes the marginals.

  Raises:
    ValueError: where one of them is out of range.
  """
  place_of = RULES[rule]

  def average(state: History, x0: Array, h: Array) -> Array:
    slope = per_step(h, state.h1) * (x0 - state.x0)
    return x0 + place_of((1 + eta) * h) * slope

  return multistep(average, eta, noise_scale, order=2)


@bounded
def dpmpp_3m_sde(eta: Eta = 1.0, published: bool = False, noise_scale: NoiseScale = 1.0) -> Sampler:
  """X0 = x0 + c1 E v + c2 E v²: the parabola through this prediction and the last two.

  With the slopes g1 = (h / h1) (x0 - x0') and g2 = (h / h2) (x0' - x0'') its coefficients are
  c1 = g1 + (g1 - g2) h1 / (h1 + h2) and c2 = (g1 - g2) h / (h1 + h2). As it was published, the
  method takes half of c2: for eta = 0 and with exact history that measures order 2, the parabola
  itself order 3. For eta > 0 the noise within a step acts on the variance through later predictions
  alone, which is right to second order: the weak order of both, as measured. It begins with a step
  of first and one of second order.

  A step much longer than the last extrapolates the noise in x0 as well: a grid even in time down to
  the first time of a chain gives narrow data several times its variance. It wants steps of much the
  same length in log-SNR, where its error is below that of `dpmpp_2m_sde`.

  Reference: Crowson 2022, https://github.com/crowsonkb/k-diffusion.

  Args:
    eta: >= 0, how much noise; 0 is DPM-Solver++ (3M).
    published: whether to halve c2.
    noise_scale: multiplies the noise; any but 1 changes the marginals.

  Raises:
    ValueError: where one of them is out of range.
  """

  def average(state: History, x0: Array, h: Array) -> Array:
    g1 = per_step(h, state.h1) * (x0 - state.x0)
    g2 = per_step(h, state.h2) * (state.x0 - state.older)
    both = state.h1 + state.h2
    c1 = g1 + per_step(state.h1, both) * (g1 - g2)
    c2 = per_step(h, both) * (g1 - g2)
    place, square = moments((1 + eta) * h)
    return x0 + place * c1 + square * (c2 / 2 if published else c2)

  return multistep(average, eta, noise_scale, order=2 if eta or published else 3)


def multistep(
  average: Callable[[History, Array, Array], Array], eta: float, noise_scale: float, order: int
) -> Sampler:
  """The sampler of the module's formula with X0 = average(state, x0, h)."""

  def init(schedule: Schedule, times: Array, xT: Array) -> History:
    del schedule, times
    none, never = jnp.zeros_like(xT), jnp.full((), jnp.inf)
    return History(xT, none, none, never, never)

  def update(
    schedule: Schedule, denoiser: Denoiser, state: History, step: Step, noise: Noise
  ) -> History:
    t, s, h = step.t, step.s, length(schedule, step)
    x0 = denoiser(state.x, t).x0
    of_noise = noise_scale * fresh(noise, s, t, eta, h)
    xs = advance(schedule, state.x, average(state, x0, h), of_noise, s, t, eta, h)
    return History(xs, x0, state.x0, h, state.h1)

  return Sampler(init, update, order=order, stochastic=eta > 0)


def advance(
  schedule: Schedule,
  xt: Array,
  x0: Array,
  noise: Array | float,
  s: Time,
  t: Time,
  eta: float,
  h: Array,
) -> Array:
  """(sigma_s / sigma_t) e^(-eta h) xt + alpha_s (1 - e^-H) x0 + sigma_s noise, from `fresh`."""
  of_xt = schedule.sigma(s) / schedule.sigma(t) * decay(eta, h)
  of_x0 = -schedule.alpha(s) * jnp.expm1(-(1 + eta) * h)
  return of_xt * xt + of_x0 * x0 + schedule.sigma(s) * noise


def fresh(noise: Noise, s: Time, t: Time, eta: float, h: Array, part: int = 0) -> Array | float:
  """sqrt(1 - e^(-2 eta h)) noise, in units of sigma_s; none is drawn for eta = 0."""
  return root(-jnp.expm1(-2 * eta * h)) * noise(t, s, 0, part) if eta else 0.0


def decay(eta: float, h: Array) -> Array | float:
  """e^(-eta h), which is 1 for eta = 0 even where h is infinite."""
  return jnp.exp(-eta * h) if eta else 1.0


def length(schedule: Schedule, step: Step) -> Array:
  """h = lambda_s - lambda_t: half the gain in log-SNR, infinite from zero SNR."""
  return (schedule.log_snr(step.s) - schedule.log_snr(step.t)) / 2


def per_step(h: Array, other: Array) -> Array:
  """h / other, but zero where the other is infinite or zero, whatever h: there was no such step."""
  never = jnp.isinf(other) | (other == 0)
  return jnp.where(never, 0.0, h / jnp.where(never, 1.0, other))


def moments(H: Array) -> tuple[Array, Array]:
  """(E v, E v²) for v in [0, 1] with the density e^(H v) H / (e^H - 1).

  E v = 1 / (1 - e^-H) - 1 / H and E v² = 1 / (1 - e^-H) - 2 E v / H. For small H the terms cancel;
  there it is their series in H.
  """
  small = jnp.abs(H) < 0.1
  near, far = jnp.where(small, H, 0.0), jnp.where(small, 1.0, H)
  total = -1 / jnp.expm1(-far)
  place = total - 1 / far
  place_near = 1 / 2 + near / 12 - near**3 / 720
  square_near = 1 / 3 + near / 12 + near**2 / 360 - near**3 / 720 - near**4 / 15120
  return (
    jnp.where(small, place_near, place),
    jnp.where(small, square_near, total - 2 * place / far),
  )


RULES = {
  'midpoint': lambda H: jnp.full_like(H, 0.5),
  'heun': lambda H: moments(H)[0],
}
