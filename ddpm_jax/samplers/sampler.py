"""A sampler is a pair of pure functions, and one scan runs them all.

  init(schedule, times, xT) -> state
  update(schedule, denoiser, state, step, noise) -> state

A state is a NamedTuple that begins with x and x0, the last prediction. Times decrease, each with
sigma > 0; the last step, to data itself, is the denoiser's x0, taken here once for all samplers.
Hence a run over N times costs N evaluations for a sampler with one evaluation a step
(`num_evaluations`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import prior
from ddpm_jax.diffusion.schedules import Schedule, Time, check_range
from ddpm_jax.errors import choose
from ddpm_jax.keys import for_purpose
from ddpm_jax.samplers import arguments, stability
from ddpm_jax.samplers.noise import NOISES, Noise, Step


class Sampler(NamedTuple):
  """A pair of pure functions, and what is known of them.

  Attributes:
    init: (schedule, times, xT) -> state.
    update: (schedule, denoiser, state, step, noise) -> state.
    order: of convergence to the probability flow; for a stochastic one, weakly, to the data; 0 for
      those that more times do not bring there. It holds where all steps in log-SNR shrink as one
      over their number, as on the grids `log_snr` and `karras`, and for a method with a memory
      where what that begins with is right; see docs/samplers.md and `midway`.
    order_even: of convergence where sigma / alpha is evenly spaced, if that is higher.
    history: how many of the first updates have less in memory than the method asks for.
    evaluations: of the denoiser, in each update.
    startup: evaluations beyond those, in the first updates together.
    stochastic: whether it draws noise.
    between: whether it asks for times between those of the grid, which a chain may not have.
  """

  init: Callable[[Schedule, Array, Array], Any]
  update: Callable[[Schedule, Denoiser, Any, Step, Noise], Any]
  order: int = 1
  order_even: int = 0
  history: int = 0
  evaluations: int = 1
  startup: int = 0
  stochastic: bool = False
  between: bool = False


class State(NamedTuple):
  """The state of a sampler without history: x (B, …), and x0, the last prediction."""

  x: Array
  x0: Array


def start(schedule: Schedule, times: Array, xT: Array) -> State:
  """The `init` of a sampler without history; the first prediction is zero."""
  del schedule, times
  return State(xT, jnp.zeros_like(xT))


def sample(
  sampler: Sampler,
  denoiser: Any,
  schedule: Schedule,
  times: Array,
  xT: Array,
  keys: Array,
  noise: str = 'white',
  return_path: bool = False,
  final: str = 'denoise',
  recall: bool = False,
) -> Any:
  """Runs a sampler from xT at times[0] to data.

  Args:
    sampler: an entry of SAMPLERS, called.
    denoiser: a network's, an oracle's, or one under guidance.
    schedule: the path.
    times: (N,), strictly decreasing, from `time_grid`.
    xT: (B, …), where to begin: `prior_sample` or anything at the noise level of times[0].
    keys: (B,), one for each sample: sample i depends on keys[i] and xT[i] alone.
    noise: a key of NOISES.
    return_path: whether to return every x on the way too.
    final: 'denoise' ends with x0 predicted at times[-1], 'keep' with x at times[-1].
    recall: whether `denoiser` is a function of the last prediction, x0 (B, …) -> denoiser: for
      networks under self-conditioning. The first is zeros.

  Returns:
    The samples (B, …); with return_path also the path, (N + 1, B, …) or (N, B, …) for 'keep',
    which begins with xT.

  Raises:
    TypeError: for an argument that is none of its kind; the message names it and the mend.
    ValueError: for one of a wrong shape, times that do not fall, or an unknown name.

  Warns:
    UserWarning: where these times are too few for the sampler, which blows data up; not under jit.
  """
  if final not in ('denoise', 'keep'):
    raise ValueError(f"final: '{final}' is not one of denoise, keep")
  draw = choose(NOISES, noise, 'noise')
  arguments.check(sampler, denoiser, schedule, times, xT, keys, falls=final == 'denoise')
  check_range(schedule, times)
  stability.warn(sampler, schedule, times, xT)

  def recalling(state: Any) -> Denoiser:
    return arguments.checked(denoiser(state.x0) if recall else denoiser)

  def update(state: Any, step: Step) -> tuple[Any, Array | None]:
    new = sampler.update(schedule, recalling(state), state, step, draw(schedule, keys, xT, step))
    return new, new.x if return_path else None

  steps = Step(times[:-1], times[1:], jnp.arange(times.shape[0] - 1))
  state, path = jax.lax.scan(update, sampler.init(schedule, times, xT), steps)
  x = recalling(state)(state.x, times[-1]).x0 if final == 'denoise' else state.x
  if not return_path:
    return x
  parts: list[Any] = [xT[None], path]
  if final == 'denoise':
    parts.append(x[None])
  return x, jnp.concatenate(parts)


def num_evaluations(sampler: Sampler, num_times: int) -> int:
  """How often `sample` evaluates the denoiser: N - 1 updates, their start, the step to data."""
  updates = num_times - 1
  return updates * sampler.evaluations + (sampler.startup if updates else 0) + 1


def prior_sample(schedule: Schedule, t: Time, keys: Array, shape: tuple[int, ...]) -> Array:
  """Where sampling begins: a draw like one example of `shape` from the prior at t, for each key."""

  def example(key: Array) -> Array:
    return prior(schedule, jnp.zeros(shape), t).sample(jax.random.normal(key, shape))

  return jax.vmap(example)(for_purpose(keys, 'prior'))
