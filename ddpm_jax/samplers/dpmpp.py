"""DPM-Solver++: exponential integrators of the predicted data."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Interval
from jax import Array

from ddpm_jax.samplers.exponential import DATA, halved, midpoint, multistep
from ddpm_jax.samplers.sampler import Sampler


def dpmpp_2s(r1: Annotated[float, Interval(gt=0, lt=1)] = 0.5) -> Sampler:
  """xs = sigma_s/sigma_t xt + alpha_s (1 - e^-h) D, D = (1 - 1/(2 r1)) x0(t) + 1/(2 r1) x0(s1).

  A first-order step leads to s1, at λ_t + r1 h: two evaluations each step.

  Reference: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 1.

  Raises:
    ValueError: where r1 is outside (0, 1).
  """
  return midpoint(DATA, r1)


def dpmpp_2m() -> Sampler:
  """xs = sigma_s/sigma_t xt + alpha_s (1 - e^-h) D, D = (1 + 1/(2 r)) x0 - 1/(2 r) x0(before).

  Here r = h_before / h. The first step is of first order.

  Reference: Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2.
  """
  return multistep(DATA, 2)


def dpmpp_3m(published: bool = False) -> Sampler:
  """xs = sigma_s/sigma_t xt + alpha_s (h φ_1 x0 + h² φ_2 x0' + h³ φ_3 x0''), all φ at -h.

  Here x0' and x0'' are the derivatives by λ, where the step begins, of the parabola through the
  last three predictions. The first step is of first order, the second is that of `dpmpp_2m`.

  The authors' code, https://github.com/LuChengTHU/dpm-solver, and those that follow it put the
  second divided difference, which is half of x0'', in its place. That loses an order: with exact
  history the error's slope is 2.0, not 3.0.

  Reference: the derivation of Lu et al. 2022, https://arxiv.org/abs/2211.01095, one order further.

  Args:
    published: whether to take half of the second derivative, as they do.
  """
  return multistep(DATA, 3, as_published if published else halved)._replace(
    order=2 if published else 3
  )


def as_published(h: Array, of: tuple[Array, ...]) -> tuple[Array, ...]:
  """Half the weight of τ²."""
  line, *weights = halved(h, of)
  return line, weights[0], weights[1] / 2
