"""What `sample` and `solve` are given, looked at before anything runs: a line that says the mend.

Only kinds and shapes are looked at, and values where they are concrete: all of it holds under jit.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Time

DENOISER = (
  'a denoiser is a function of (xt (B, …), t) that returns Denoised(x0=…): `make_denoiser` makes '
  "one of a network, `denoiser_from_score` of a score, an oracle's `denoiser(schedule)` is one"
)
SAMPLER = "a sampler is an entry of SAMPLERS, called: SAMPLERS['ddim']()"


def check(
  sampler: Any, denoiser: Any, schedule: Any, times: Any, xT: Any, keys: Any, falls: bool
) -> None:
  """Refuses what `sample` cannot begin with.

  Raises:
    TypeError: for an argument that is none of its kind, naming it.
    ValueError: for one of a wrong shape, or times in a wrong order.
  """
  check_sampler(sampler)
  check_denoiser(denoiser)
  check_schedule(schedule)
  check_times(times, falls)
  check_batch(xT, keys, sampler.stochastic)


def check_sampler(sampler: Any) -> None:
  """Refuses a name, a table's entry that was not called, and a solver.

  Raises:
    TypeError: naming the argument.
  """
  if all(hasattr(sampler, name) for name in ('init', 'update', 'stochastic')):
    return
  if isinstance(sampler, str):
    raise TypeError(f"sampler: '{sampler}' is a name; {SAMPLER}")
  if callable(sampler) and hasattr(sampler, '__name__'):
    raise TypeError(
      f'sampler: {sampler.__name__} is a function that makes one; call it, {sampler.__name__}()'
    )
  if callable(sampler):
    raise TypeError(
      f'sampler: {type(sampler).__name__} goes from t to s by steps of its own; call it, '
      'solver(schedule, denoiser, x, t, s)'
    )
  raise TypeError(f'sampler: {shown(sampler)} is none; {SAMPLER}')


def check_schedule(schedule: Any) -> None:
  """Refuses what does not answer as a schedule does.

  Raises:
    TypeError: naming the argument.
  """
  if isinstance(schedule, type) or not all(
    hasattr(schedule, name) for name in ('alpha', 'sigma', 'log_snr')
  ):
    raise TypeError(
      f'schedule: {shown(schedule)} is none; it answers alpha(t), sigma(t) and log_snr(t), as '
      "SCHEDULES['cosine']() does"
    )


def check_denoiser(denoiser: Any) -> None:
  """Refuses what cannot be called.

  Raises:
    TypeError: naming the argument.
  """
  if not callable(denoiser):
    raise TypeError(f'denoiser: {shown(denoiser)} is none; {DENOISER}')


def checked(denoiser: Denoiser) -> Denoiser:
  """The denoiser, which raises where it does not return what one returns, named in one line."""

  def same(xt: Array, t: Time) -> Denoised:
    denoised = denoiser(xt, t)
    if not hasattr(denoised, 'x0'):
      raise TypeError(f'denoiser: it returned {shown(denoised)}; {DENOISER}')
    if jnp.shape(denoised.x0) != jnp.shape(xt):
      raise ValueError(
        f'denoiser: its x0 has shape {jnp.shape(denoised.x0)}, but xt has {jnp.shape(xt)}'
      )
    return denoised

  return same


def check_times(times: Any, falls: bool) -> None:
  """Refuses what is no vector of times and, where they are concrete, times that do not fall.

  Args:
    times: what should be (N,).
    falls: whether they have to fall; else they may rise instead, as for an inversion.

  Raises:
    TypeError: for no array.
    ValueError: for another shape or order.
  """
  mend = "`time_grid('trailing', schedule, num_steps)` makes them"
  if not isinstance(times, (jax.Array, np.ndarray)):
    raise TypeError(f'times: {shown(times)} is no array (N,) of times; {mend}')
  if times.ndim != 1 or not times.size:
    raise ValueError(f'times: shape {times.shape} is not (N,); {mend}')
  if isinstance(times, jax.core.Tracer):
    return
  ways = np.diff(times)
  if not (np.all(ways < 0) or (np.all(ways > 0) and not falls)):
    raise ValueError(
      f'times: they have to fall strictly, from noise to data; {mend}. Rising ones, which invert, '
      "go with final='keep'"
    )


def check_batch(xT: Any, keys: Any, stochastic: bool) -> None:
  """Refuses a start that is no batch, and keys that are not one for each of its examples.

  Raises:
    TypeError: for no array.
    ValueError: for another shape; keys may be None where no noise is drawn.
  """
  if not isinstance(xT, (jax.Array, np.ndarray)):
    raise TypeError(f'xT: {shown(xT)} is no array (B, …); `prior_sample` draws one')
  if not xT.ndim:
    raise ValueError('xT: a scalar is no batch (B, …); `prior_sample` draws one')
  if keys is None and not stochastic:
    return
  mend = f'jax.random.split(key, {xT.shape[0]}) makes them'
  if not isinstance(keys, (jax.Array, np.ndarray)):
    raise TypeError(f'keys: {shown(keys)} is no array of keys, one for each example; {mend}')
  if key_shape(keys) != xT.shape[:1]:
    raise ValueError(
      f'keys: shape {key_shape(keys)}, but xT is a batch of {xT.shape[0]}, and each example has a '
      f'key of its own; {mend}'
    )


def key_shape(keys: Array | np.ndarray) -> tuple[int, ...]:
  """The shape of keys, typed or raw, each of which is a row."""
  return keys.shape if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys.shape[:-1]


def shown(value: Any) -> str:
  """What a value is, in a few words."""
  if isinstance(value, (jax.Array, np.ndarray)):
    return f'an array of shape {value.shape}'
  if isinstance(value, (str, int, float)) or value is None:
    return repr(value)
  if isinstance(value, type):
    return f'the class {value.__name__}'
  name = getattr(value, '__name__', None)
  return f'the function {name}' if callable(value) and name else type(value).__name__
