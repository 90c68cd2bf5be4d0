"""Starting a method with a memory where the first step counts as much as any other."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.dpm import third
from ddpm_jax.samplers.dpmpp import dpmpp_2s
from ddpm_jax.samplers.exponential import DATA
from ddpm_jax.samplers.noise import Noise, Step
from ddpm_jax.samplers.sampler import Sampler, start

# By the order to keep: a single-step method of one order less.
SINGLE_STEP = {3: dpmpp_2s(), 4: third(DATA, 1 / 3)}


def midway(sampler: Sampler) -> Sampler:
  """The sampler, its first steps taken by a single-step method, to begin in mid-path.

  A method of order p with a memory begins with lower orders, the first step being of order 1. That
  step errs by O(h²), whatever follows: the run is of order 2. From pure noise it matters little,
  for there the prediction hardly changes along a step. In mid-path, as from a picture, it does. A
  single step of order p - 1 errs by O(h^p), so that p - 1 of those, each of p - 1 evaluations, fill
  the memory and keep the order.

  A sampler comes back as it is where that changes no order: without a memory, of order 2, or with a
  start of its own (`unipc` corrects its first step, `plms` and `pndm` begin with single steps).
  """
  order = max(sampler.order, sampler.order_even)
  if not sampler.history or order not in SINGLE_STEP:
    return sampler
  single, count = SINGLE_STEP[order], order - 1

  def update(schedule: Schedule, denoiser: Denoiser, state: Any, step: Step, noise: Noise) -> Any:
    here = denoiser(state.x, step.t)

    def known(xt: Array, t: Time) -> Denoised:
      return here if xt is state.x else denoiser(xt, t)

    def by_single_step() -> Array:
      begin = start(schedule, step.t, state.x)
      return single.update(schedule, known, begin, step, noise).x

    new = sampler.update(schedule, known, state, step, noise)
    return new._replace(x=jax.lax.cond(step.index < count, by_single_step, lambda: new.x))

  return sampler._replace(
    update=update,
    history=0,
    startup=count * (single.evaluations - 1),
    between=True,
  )
