"""Inpainting: samplers that fill in what a mask leaves open around known pixels.

  sampler, denoiser = repaint(ancestral(), known, mask), keep_known(denoiser, known, mask)

Both come together: the sampler puts the known part of every x at x's noise level, and the denoiser
says the known part of x0, so that the result, which is a denoiser's x0, has it exactly. `known` is
(B, …) like the samples, or (1, …); `mask` is like it, true where it is known, one channel being
enough. Both methods are approximations, because the open part is drawn without looking at the known
one but through its noise; `inverse.pigdm` with x0 -> mask x0 for the operator is the other way.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, q_sample, q_transition
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.errors import InputError
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler

# The draws of a step are numbered: the sampler's own below, then that of the known part, then that
# of the way back to t; each repetition has as many again.
OF_KNOWN, OF_RETURN, DRAWS = 2**16, 2**16 + 1, 2**17


class Repainted(NamedTuple):
  """A sampler's state, and what it was where the jump began; begins with x and x0."""

  x: Array
  x0: Array
  inner: Any
  before: Any
  times: Array


def keep_known(denoiser: Denoiser, known: Array, mask: Array) -> Denoiser:
  """x0 where the mask is false, `known` where it is true."""
  check_fits('mask', mask, 'known', known)

  def kept(xt: Array, t: Time) -> Denoised:
    check_fits('known', known, 'samples', xt)
    denoised = denoiser(xt, t)
    return denoised._replace(x0=jnp.where(mask, known, denoised.x0))

  return kept


def replacement(sampler: Sampler, known: Array, mask: Array) -> Sampler:
  """After each update the known part of xs becomes alpha_s known + sigma_s eps, eps fresh.

  The open part sees the known one through as much noise as it has itself, and so learns of it too
  late: even on the finest grid this is not the conditional distribution.

  Reference: Song et al. 2021, https://arxiv.org/abs/2011.13456, appendix I.

  Args:
    sampler: any.
    known: (B, …) or (1, …).
    mask: like `known`, true where it is known.

  Raises:
    InputError: where known and mask, or known and the samples, don't fit one another.
  """
  check_fits('mask', mask, 'known', known)

  def update(schedule: Schedule, denoiser: Denoiser, state: Any, step: Step, noise: Noise) -> Any:
    check_fits('known', known, 'samples', state.x)
    state = sampler.update(schedule, denoiser, state, step, noise)
    eps = noise(step.t, step.s, OF_KNOWN)
    return state._replace(x=jnp.where(mask, q_sample(schedule, known, step.s, eps), state.x))

  return sampler._replace(update=update, stochastic=True)


def repaint(
  sampler: Sampler, known: Array, mask: Array, resample: int = 10, jump: int = 1
) -> Sampler:
  """`replacement` where every `jump` steps are taken `resample` times, back up by q(xt | xs).

  Each repetition draws the open part anew with the known one before it, and so brings them
  together. A jump at the grid's end that lacks steps is not repeated; but for that the cost is
  `resample` times the sampler's. What it remembers is put back with each return.

  Reference: Lugmayr et al. 2022, https://arxiv.org/abs/2201.09865, algorithm 1.

  Args:
    sampler: any; the paper's is `ancestral`.
    known: (B, …) or (1, …).
    mask: like `known`, true where it is known.
    resample: how often each jump is taken in all; 1 is `replacement`.
    jump: of how many steps.

  Raises:
    InputError: where resample or jump is below one; for the rest see `replacement`.
  """
  for name, value in (('resample', resample), ('jump', jump)):
    if value < 1:
      raise ValueError(f'{name}: {value} is below 1')
  once = replacement(sampler, known, mask)

  def init(schedule: Schedule, times: Array, xT: Array) -> Repainted:
    inner = sampler.init(schedule, times, xT)
    return Repainted(inner.x, inner.x0, inner, inner, times)

  def update(
    schedule: Schedule, denoiser: Denoiser, state: Repainted, step: Step, noise: Noise
  ) -> Repainted:
    first = step.index + 1 - jump
    begins, ends = step.index % jump == 0, (step.index + 1) % jump == 0
    before = jax.tree.map(lambda new, old: jnp.where(begins, new, old), state.inner, state.before)

    def repeat(inner: Any, s: Time, t: Time) -> Any:
      def again(number: Array, inner: Any) -> Any:
        own = numbered(noise, number * jump * DRAWS)
        back = q_transition(schedule, inner.x, s, t).sample(own(t, s, OF_RETURN))

        def down(place: Array, inner: Any) -> Any:
          index = first + place
          way = Step(state.times[index], state.times[index + 1], index)
          return once.update(schedule, denoiser, inner, way, numbered(own, place * DRAWS))

        return jax.lax.fori_loop(0, jump, down, before._replace(x=back))

      return jax.lax.fori_loop(1, resample, again, inner)

    inner = once.update(schedule, denoiser, state.inner, step, noise)
    t = state.times[jnp.maximum(first, 0)]
    inner = jax.lax.cond(ends, repeat, lambda inner, *_: inner, inner, step.s, t)
    return Repainted(inner.x, inner.x0, inner, before, state.times)

  return once._replace(
    init=init,
    update=update,
    evaluations=resample * sampler.evaluations,
    startup=resample * sampler.startup,
  )


def numbered(noise: Noise, offset: Array) -> Noise:
  """The same source, its draws counted from another number."""

  def draw(t: Time, s: Time, draw: int = 0) -> Array:
    return noise(t, s, draw + offset)

  return draw


def check_fits(name: str, small: Array, other: str, large: Array) -> None:
  """Refuses what does not broadcast to the shape of another array of the same rank."""
  sizes = zip(small.shape, large.shape, strict=False)
  if small.ndim != large.ndim or not all(m in (1, n) for m, n in sizes):
    raise InputError(f'{name}: shape {small.shape} does not fit that of {other}, {large.shape}')
