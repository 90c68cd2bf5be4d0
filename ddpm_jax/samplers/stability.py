"""Whether a run over these times blows its data up: found by running it on Gaussian data.

Of data N(0, 1) the denoiser is linear, x0 = alpha xt / (alpha² + sigma²), and so is a run: the
result is a linear map of the start and of the noises. The deviation that this map gives the result
is by how much the run enlarges the data. The exact flow ends at one; most methods end below it
where steps are few, but some far above.

Those carry eps over too long a step. In y = x / alpha and n = sigma / alpha the flow is

  dy/dn = eps = n y / (1 + n²),  hence  y = sqrt(1 + n²) z.

A step from n_t >> 1 to n_s < 1 has to take y from n_t z to about z, by the mean of eps. That is z
at its one end and at most ½ z at the other, to which a method may give a weight w: it ends about
w n_t away. Euler's w is zero. Beside the flow's gain that of its step is

  (1 + n_t n_s) / sqrt((1 + n_t²) (1 + n_s²)) <= 1,

so that `ddim` never enlarges. Heun's w is ½: from n_t = 20,000, where the cosine chain ends, a
single such step makes 10,000 of 1.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy.linalg import hadamard

from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers.grids import TIME_GRIDS, time_grid
from ddpm_jax.samplers.noise import Step

Sampler = Any  # samplers.sampler.Sampler; that module imports this one
# (name of a grid, number of times) -> the path and the times; ValueError where there are none.
Places = Callable[[str, int], tuple[Schedule, Array]]

# A run that makes the data's deviation more than this many times as large is called unstable.
LIMIT = 2.0
# Programs take this many times, or twice as many, …: one serves all grids.
LEAST_TIMES = 64
# Numbers of times to advise, as multiples of one that is too small.
GROWTH = (1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)


def enlargement(sampler: Sampler, schedule: Schedule, times: Array) -> float:
  """The deviation of what a run makes of data N(0, 1), without drawing; infinite for NaN.

  Draws are rows of a Hadamard matrix: orthogonal and of variance one, so that the squares' mean is
  the variance itself, to rounding, for up to 64 steps of up to 8 draws each. A sampler's first run
  on a kind of schedule compiles a small program, in about half a second; others take milliseconds.

  Args:
    sampler: one whose update takes examples of any shape.
    schedule: the path, concrete.
    times: (N,), concrete.
  """
  count, length = len(times), LEAST_TIMES
  while length < count:
    length *= 2
  rows = draws(jnp.result_type(float))
  spread = jnp.hypot(schedule.alpha(times[0]), schedule.sigma(times[0]))
  state = sampler.init(schedule, times, spread * rows[0])
  padded = np.concatenate([times, np.repeat(np.asarray(times)[-1:], length - count)])
  program = compiled(Alike(identity(sampler.update), sampler.update))
  found = float(program(schedule, padded, count - 1, state, rows))
  return found if np.isfinite(found) else np.inf


class Alike:
  """A function that is equal to those of the same code and closure."""

  def __init__(self, identity: Hashable, function: Callable):
    self.identity, self.function = identity, function

  def __hash__(self) -> int:
    return hash(self.identity)

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Alike) and self.identity == other.identity


def identity(value: Any) -> Hashable:
  """Equal for two functions that one factory made with the same arguments."""
  if inspect.isfunction(value):
    cells = [identity(cell.cell_contents) for cell in value.__closure__ or ()]
    keywords = sorted((value.__kwdefaults__ or {}).items())
    return value.__code__, *cells, identity(value.__defaults__), identity(keywords)
  if isinstance(value, (tuple, list)):
    return type(value), *map(identity, value)
  try:
    hash(value)
  except TypeError:
    return id(value)
  return type(value), value


@functools.lru_cache(maxsize=256)
def compiled(update: Alike) -> Callable:
  """(schedule, times, count, state, rows) -> the deviation of x0 after `count` updates."""

  def run(schedule: Schedule, times: Array, count: int, state: Any, rows: Array) -> Array:
    def body(index: Array, state: Any) -> Any:
      def noise(t: Time, s: Time, draw: int | Array = 0, part: int = 0) -> Array:
        del t, s
        return rows[1 + (16 * index + 2 * draw + part) % (len(rows) - 1)]

      step = Step(times[index], times[index + 1], index)
      return update.function(schedule, functools.partial(denoise, schedule), state, step, noise)

    state = jax.lax.fori_loop(0, count, body, state)
    return jnp.sqrt(jnp.mean(jnp.square(denoise(schedule, state.x, times[count]).x0)))

  # It runs for a moment: what compiles fast is best.
  quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
  return jax.jit(run, compiler_options=quick)


def denoise(schedule: Schedule, xt: Array, t: Time) -> Denoised:
  """The exact denoiser of N(0, 1): E[x0 | xt] and Var[x0 | xt]."""
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  total = jnp.square(alpha) + jnp.square(sigma)
  variance = jnp.full_like(xt, jnp.square(sigma) / total)
  return Denoised(alpha / total * xt, variance, jnp.full_like(xt, 0.5))


@functools.cache
def draws(dtype: Any) -> np.ndarray:
  """(1024, 32, 32): orthogonal rows of ±1."""
  return hadamard(1024, dtype).reshape(1024, 32, 32)


def complaint(
  sampler: Sampler, schedule: Schedule, times: Array, places: Places, grid: str | None
) -> str | None:
  """One line where a run enlarges its data more than LIMIT times, with what is stable; or None.

  Nothing is said of a sampler that does not run on such data, like those that know a picture.

  Args:
    sampler: of the run.
    schedule: the path, concrete.
    times: (N,), concrete.
    places: what a grid's name and a number of times stand for.
    grid: the name of these times' own, where it is known.
  """
  found = tried(sampler, schedule, times)
  if not blows_up(found):
    return None

  def stable(grid: str, count: int) -> bool:
    try:
      found = tried(sampler, *places(grid, count))
    except ValueError:
      return False
    return found is not None and found <= LIMIT

  count = len(times)
  mends = [f"the grid '{name}'" for name in TIME_GRIDS if name != grid and stable(name, count)][:2]
  if grid is not None:
    more = (int(np.ceil(part * count)) for part in GROWTH)
    mends += [f"{n} steps over '{grid}'" for n in more if stable(grid, n)][:1]
  return (
    f'this sampler blows up in {count} steps: Gaussian data ends {found:.3g} times as large as it '
    f'is. Stable instead: {", ".join([*mends, "the sampler ddim"])}'
  )


def tried(sampler: Sampler, schedule: Schedule, times: Array) -> float | None:
  """`enlargement`; None where the sampler does not take what it is run on."""
  try:
    return enlargement(sampler, schedule, times)
  except Exception:  # whatever a sampler of one's own may raise: this is only looked at
    return None


def blows_up(found: float | None) -> bool:
  """Whether an enlargement is of a run that is not stable."""
  return found is not None and found > LIMIT


def warn(sampler: Sampler, schedule: Schedule, times: Array, xT: Array) -> None:
  """Warns of a run from xT that blows up, where all of it is concrete: not under jit."""
  if not all(map(concrete, jax.tree.leaves((schedule, times, xT)))):
    return
  if not blows_up(tried(sampler, schedule, times)):  # to name the grid takes longer
    return

  def places(grid: str, count: int) -> tuple[Schedule, Array]:
    return schedule, time_grid(grid, schedule, count)

  line = complaint(sampler, schedule, times, places, grid_of(schedule, times))
  if line:
    warnings.warn(line, stacklevel=3)


def concrete(leaf: Any) -> bool:
  """Whether a leaf is a number or an array of them, and not traced."""
  return isinstance(leaf, (jax.Array, np.ndarray, float, int)) and not isinstance(
    leaf, jax.core.Tracer
  )


def grid_of(schedule: Schedule, times: Array) -> str | None:
  """The name of the grid that has these times."""
  for name in TIME_GRIDS:
    with contextlib.suppress(ValueError):
      if np.array_equal(time_grid(name, schedule, len(times)), times):
        return name
  return None
