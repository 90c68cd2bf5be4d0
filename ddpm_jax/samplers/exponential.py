"""Exponential integrators: the linear part of the flow exactly, the prediction by a polynomial.

With λ = ½ log_snr and h = λ_s - λ_t the probability flow from t to s is, on every path and for
either of the denoiser's readings,

  xs = place(x0, eps, s) + alpha_s ∫ e^(τ-h) (x0(τ) - x0) dτ
     = place(x0, eps, s) - sigma_s ∫ e^(h-τ) (eps(τ) - eps) dτ,    τ = λ - λ_t from 0 to h,

where x0 and eps are those at xt. A method is a choice of the reading and of the nodes through which
its polynomial goes: earlier predictions (multistep) or predictions on the way (single-step).

A step from or to zero SNR is infinitely long: it is of first order, `place`. What was predicted at
zero SNR, like what has not been predicted yet, lies infinitely far from the other nodes, where its
difference quotients vanish: so the first steps are of lower order, each of the highest it can be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.formulas import eps_of, place
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, State, start


class Reading(NamedTuple):
  """What a denoiser makes of xt, read both ways, and λ_t."""

  x0: Array
  eps: Array
  lam: Array


class Node(NamedTuple):
  """A prediction that the polynomial goes through, and its λ."""

  value: Array
  lam: Array


class Form(NamedTuple):
  """The reading that the polynomial approximates.

  Attributes:
    of: takes it from a `Reading`.
    scale: (schedule, s) -> the factor of the integral.
    sign: of the exponent in the integral's weight, e^(sign (h - τ)).
  """

  of: Callable[[Reading], Array]
  scale: Callable[[Schedule, Time], Array]
  sign: float

  def node(self, reading: Reading) -> Node:
    """The reading as a node."""
    return Node(self.of(reading), reading.lam)


DATA = Form(lambda reading: reading.x0, lambda schedule, s: schedule.alpha(s), -1.0)
NOISE = Form(lambda reading: reading.eps, lambda schedule, s: -schedule.sigma(s), 1.0)


class Multistep(NamedTuple):
  """The state of a multistep method: `past` has the latest prediction first."""

  x: Array
  x0: Array
  past: tuple[Node, ...]


# The weights that a method gives to the polynomial, from h and the moments of e^(±(h - τ)): first
# that of the slope where two nodes are all there are, then of τ, τ², … where there are more.
Rule = Callable[[Array, tuple[Array, ...]], tuple[Array, ...]]


def exact(h: Array, of: tuple[Array, ...]) -> tuple[Array, ...]:
  """The integral of the polynomial, whatever its degree."""
  del h
  return of[1], *of[1:]


def halved(h: Array, of: tuple[Array, ...]) -> tuple[Array, ...]:
  """A line weighs ½ h ∫ e^(±(h - τ)) dτ, as if it were at its middle all the time.

  It differs from the line's integral by O(h³), as that does from the prediction's. So do the
  published methods of order 2.
  """
  return h / 2 * of[0], *of[1:]


def multistep(form: Form, order: int, rule: Rule = halved) -> Sampler:
  """The polynomial goes through the last `order` predictions."""

  def update(
    schedule: Schedule, denoiser: Denoiser, state: Multistep, step: Step, noise: Noise
  ) -> Multistep:
    del noise
    here = evaluate(schedule, denoiser, state.x, step.t)
    xs = advance(form, schedule, here, step.s, state.past, rule)
    return Multistep(xs, here.x0, (form.node(here), *state.past)[: order - 1])

  return Sampler(starter(order - 1), update, order=order, history=order - 1)


@bounded
def midpoint(form: Form, r1: Annotated[float, Interval(gt=0, lt=1)]) -> Sampler:
  """The line goes through one more prediction, at λ_t + r1 h, where a first-order step leads.

  Raises:
    ValueError: where r1 is outside (0, 1).
  """

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    del noise
    here = evaluate(schedule, denoiser, state.x, step.t)
    s1 = on_the_way(schedule, here, step.s, r1)
    there = evaluate(schedule, denoiser, advance(form, schedule, here, s1), s1)
    return State(advance(form, schedule, here, step.s, (form.node(there),)), here.x0)

  return Sampler(start, update, order=2, evaluations=2, between=True)


def starter(length: int) -> Callable[[Schedule, Array, Array], Multistep]:
  """The `init` of a state with `length` nodes, which are yet to be predicted."""

  def init(schedule: Schedule, times: Array, xT: Array) -> Multistep:
    never = jnp.full_like(half_log_snr(schedule, times[0]), -jnp.inf)
    return Multistep(xT, jnp.zeros_like(xT), (Node(jnp.zeros_like(xT), never),) * length)

  return init


def evaluate(schedule: Schedule, denoiser: Denoiser, xt: Array, t: Time) -> Reading:
  """What the denoiser makes of xt."""
  return read(schedule, xt, denoiser(xt, t).x0, t)


def read(schedule: Schedule, xt: Array, x0: Array, t: Time) -> Reading:
  """A prediction read both ways at xt."""
  return Reading(x0, eps_of(schedule, xt, x0, t), half_log_snr(schedule, t))


def advance(
  form: Form,
  schedule: Schedule,
  here: Reading,
  s: Time,
  others: tuple[Node, ...] = (),
  rule: Rule = halved,
) -> Array:
  """xs = place(x0, eps, s) + scale_s ∫ e^(±(h - τ)) (P(τ) - P(0)) dτ.

  P goes through the reading here and the other nodes; without any the step is of first order.
  """
  xs = place(schedule, here.x0, here.eps, s)
  if not others:
    return xs
  h = finite(half_log_snr(schedule, s) - here.lam)
  return xs + form.scale(schedule, s) * integral(form, (form.node(here), *others), h, rule)


def integral(form: Form, nodes: tuple[Node, ...], h: Array, rule: Rule) -> Array:
  """∫ e^(±(h - τ)) (P(τ) - P(0)) dτ over [0, h], with P(τ) = Σ_k f[0 … k] ∏_{i<k} (τ - τ_i).

  This is Newton's polynomial: f[…] are the nodes' divided differences, τ_0 = 0 is the first node's.
  Nodes infinitely far from that one come last.
  """
  line, *weights = rule(h, moments(h, form.sign, len(nodes)))
  tau = [node.lam - nodes[0].lam for node in nodes]
  known = len(nodes) > 2 and jnp.isfinite(tau[2])
  weights[0] = jnp.where(known, weights[0], line)
  column, total = [node.value for node in nodes], jnp.zeros_like(nodes[0].value)
  for k in range(1, len(nodes)):
    rises = enumerate(itertools.pairwise(column))
    column = [(b - a) * reciprocal(tau[i + k] - tau[i]) for i, (a, b) in rises]
    total = total + weights[0] * column[0]
    # From the weights of τ^j p(τ) to those of τ^j p(τ) (τ - τ_k).
    weights = [high - finite(tau[k]) * low for low, high in itertools.pairwise(weights)]
  return total


def moments(h: Array, sign: float, count: int) -> tuple[Array, ...]:
  """∫ e^(sign (h - τ)) τ^k dτ over [0, h] = k! h^(k+1) φ_{k+1}(sign h), for k = 0 … count - 1."""
  return tuple(
    math.factorial(k) * h ** (k + 1) * phi for k, phi in enumerate(phis(sign * h, count))
  )


def phis(z: Array, count: int) -> tuple[Array, ...]:
  """φ_k(z) = ∫ e^((1-u) z) u^(k-1) / (k-1)! du over [0, 1], for k = 1 … count.

  φ_1 = (e^z - 1) / z and φ_{k+1} = (φ_k - 1/k!) / z, upwards where z is large. Where it is small
  that cancels, and it goes downwards from the series φ_k = Σ_n zⁿ / (n + k)!.
  """
  small = jnp.abs(z) < 2
  near, far = jnp.where(small, z, 0.0), jnp.where(small, 2.0, z)
  series = jnp.zeros_like(near)
  for n in reversed(range(24)):
    series = series * near + 1 / math.factorial(n + count)
  down, up = [series], [jnp.expm1(far) / far]
  for k in range(1, count):
    down.append(down[-1] * near + 1 / math.factorial(count - k))
    up.append((up[-1] - 1 / math.factorial(k)) / far)
  return tuple(jnp.where(small, *pair) for pair in zip(reversed(down), up, strict=True))


def on_the_way(schedule: Schedule, here: Reading, s: Time, share: float) -> Array:
  """The time at λ_t + share h; that of the reading for a step of infinite length."""
  h = finite(half_log_snr(schedule, s) - here.lam)
  return schedule.time(2 * (here.lam + share * h))


def half_log_snr(schedule: Schedule, t: Time) -> Array:
  """λ = log(alpha / sigma)."""
  return schedule.log_snr(t) / 2


def finite(x: Array) -> Array:
  """x, or zero where that is infinite or undefined."""
  return jnp.where(jnp.isfinite(x), x, 0.0)


def reciprocal(x: Array) -> Array:
  """1 / x, or zero where x is zero, infinite or undefined."""
  usable = jnp.isfinite(x) & (x != 0)
  return jnp.where(usable, 1 / jnp.where(usable, x, 1.0), 0.0)
