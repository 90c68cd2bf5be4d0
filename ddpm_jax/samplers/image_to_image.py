"""Image to image: noise a picture part of the way, and sample from there.

  times = last_part(time_grid('trailing', schedule, 50), strength=0.6)
  sample(sampler, denoiser, schedule, times, start_from(schedule, x0, times[0], keys), keys)

With `midway(sampler)` in its place a method of order 3 or 4 keeps its order from such a start.

Reference: Meng et al. 2022, https://arxiv.org/abs/2108.01073 (SDEdit).
"""

from __future__ import annotations

import jax
from jax import Array

from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.errors import InputError
from ddpm_jax.keys import for_purpose


def start_from(schedule: Schedule, x0: Array, t: Time, keys: Array) -> Array:
  """xt = alpha x0 + sigma eps: a draw of q(xt | x0) for each key, where `prior_sample` has no x0.

  Args:
    schedule: the path.
    x0: (B, …), in the data's range.
    t: a scalar, the first of the times to come.
    keys: (B,).

  Raises:
    InputError: where there are not as many examples as keys.
  """
  if x0.shape[:1] != keys.shape:
    raise InputError(f'init_image: {x0.shape[:1]} of them, but {keys.shape} keys')

  def example(x0: Array, key: Array) -> Array:
    return q_sample(schedule, x0, t, jax.random.normal(key, x0.shape, x0.dtype))

  return jax.vmap(example)(x0, for_purpose(keys, 'prior'))


def last_part(times: Array, strength: float) -> Array:
  """The last strength N of N times, to the nearest whole number and at least one.

  Strength 1 keeps all; the less of it, the more is left of the picture. For one below a time t take
  times[times <= t].

  Raises:
    InputError: where strength is outside (0, 1].
  """
  if not 0 < strength <= 1:
    raise InputError(f'strength: {strength} is outside (0, 1]')
  return times[times.shape[0] - max(1, round(strength * times.shape[0])) :]
