"""Time grids: N strictly decreasing times, each with sigma > 0; the step to data comes after."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion.schedules import Discrete, Schedule
from ddpm_jax.errors import InputError, choose


def linspace(first: float, last: float, num_steps: int, stride: float) -> np.ndarray:
  """T - i (T - t_min) / (N - 1): from T to t_min, both included (N = 1 takes T)."""
  del stride
  return np.linspace(last, first, num_steps)


def trailing(first: float, last: float, num_steps: int, stride: float) -> np.ndarray:
  """T - i T / N: begins at T, ends a stride above the data."""
  del first, stride
  return last * (1 - np.arange(num_steps) / num_steps)


def leading(first: float, last: float, num_steps: int, stride: float) -> np.ndarray:
  """t_min + (N - 1 - i) stride: ends at t_min, begins below T; that of DDIM's code.

  The stride is ⌊T / N⌋ on a chain, else (T - t_min) / N.
  """
  del last
  return first + np.arange(num_steps)[::-1] * stride


TIME_GRIDS = {
  'linspace': linspace,
  'trailing': trailing,
  'leading': leading,
}


def time_grid(name: str, schedule: Schedule, num_steps: int) -> Array:
  """The N = num_steps times of the grid `name` (a key of TIME_GRIDS), rounded on a chain.

  T is the schedule's t_max. Grids are even in the schedule's own time.

  Raises:
    InputError: for an unknown name, or where num_steps is not in 1 … T on a chain; where N is below
      one or so large that the last time is below t_min in continuous time.
  """
  grid = choose(TIME_GRIDS, name, 'config.sampler.grid')
  first, last = float(schedule.t_min), float(schedule.t_max)
  discrete = isinstance(schedule, Discrete)
  if num_steps < 1 or (discrete and num_steps > last):
    most = f'{last:.0f}, the chain' if discrete else ''
    raise InputError(f'config.sampler.num_steps: {num_steps} is not in 1 … {most}'.rstrip())
  if discrete:
    return jnp.asarray(np.round(grid(first, last, num_steps, last // num_steps)).astype(int))
  times = grid(first, last, num_steps, (last - first) / num_steps)
  if times[-1] < first:
    raise InputError(
      f"config.sampler.num_steps: {num_steps} leads below t_min = {first}; 'linspace' does not"
    )
  return jnp.asarray(times)
