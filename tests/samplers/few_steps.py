"""Every path over every grid of 1 to 6 times, in one compiled program for each sampler.

What a sampler asks of a path at its times and between is tabulated, so that tables of one size
stand for all of them, and all cases run at once. They are of single precision under jit. Of a chain
too r is formed of q, as in continuous time, where rounding does the most.
"""

import itertools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Discrete
from ddpm_jax.samplers import TIME_GRIDS, Step, time_grid

MOST, PARTS = 6, 4  # times of a grid, and parts that each way between them is cut into
VARIANCE = 0.25


@flax.struct.dataclass
class Table:
  """A path at the times 0 … n, by rows; row 0 is the data."""

  alphas: jax.Array
  sigmas: jax.Array
  log_snrs: jax.Array

  @property
  def t_max(self):
    return self.alphas.size - 1

  def alpha(self, t):
    return self.alphas[t]

  def sigma(self, t):
    return self.sigmas[t]

  def log_snr(self, t):
    return self.log_snrs[t]

  def time(self, log_snr):
    return 1 + jnp.sum((self.log_snrs[1:-1] + self.log_snrs[2:]) / 2 >= log_snr)


def coinciding():
  """A chain with levels that single precision cannot tell apart."""
  falls = np.geomspace(0.9, 0.01, 12)
  return schedules.from_alphas_bar(np.repeat(falls, 2) * np.tile([1, 1 - 1e-9], 12))


def paths():
  """Name -> schedule: each family but the learned, chains, and their continuous reading."""
  chains = {
    'cosine': schedules.cosine(),
    'cosine(4000)': schedules.cosine(4000),
    'linear': schedules.linear(),
    'scaled_linear': schedules.scaled_linear(),
    'sigmoid': schedules.sigmoid(),
    'zero_terminal_snr': schedules.zero_terminal_snr(schedules.cosine()),
    'coinciding': coinciding(),
  }
  read = {f'{name} in t': schedules.interpolate(chains[name]) for name in ('cosine', 'linear')}
  formulas = {name: make() for name, make in schedules.CONTINUOUS.items() if name != 'learned'}
  return chains | read | formulas


def grids(path):
  """(name of a grid, number of times) -> the times, of those that the path has."""
  for grid, count in itertools.product(TIME_GRIDS, range(1, MOST + 1)):
    try:
      yield (grid, count), np.asarray(time_grid(grid, path, count))
    except ValueError:  # a chain's times fall together
      continue


def rows_of(path, times):
  """The times and others between them, from late to early, padded to one length."""
  shares = np.arange(PARTS) / PARTS
  between = [late + shares * (early - late) for early, late in itertools.pairwise(times)]
  rows = np.concatenate([*between[::-1], times[:1]])
  rows = np.round(rows).astype(int) if isinstance(path, Discrete) else rows.astype(np.float32)
  return np.pad(rows, (0, PARTS * (MOST - 1) + 1 - rows.size), 'edge')


def places_of(times):
  """Where a grid's times are in the table of such rows, padded to MOST."""
  places = 1 + PARTS * np.arange(len(times))[::-1]
  return np.pad(places, (0, MOST - len(times)), 'edge')


@jax.jit
def answers(path, rows):
  """What the path answers at each of the rows (cases, n)."""
  return jax.vmap(jax.vmap(lambda t: (path.alpha(t), path.sigma(t), path.log_snr(t))))(rows)


def tabulated(path, rows):
  """The tables (cases, n + 1) whose row t has what the path answers at rows[:, t - 1]."""
  data = 1.0, 0.0, np.inf
  found = zip(answers(path, rows), data, strict=True)
  return Table(*(np.insert(np.asarray(values), 0, end, axis=1) for values, end in found))


def stacked():
  """Names of all cases, and their tables, times and numbers of steps, stacked."""
  names, tables, places, counts = [], [], [], []
  for name, path in paths().items():
    found = dict(grids(path))
    names += [(name, *which) for which in found]
    tables.append(tabulated(path, np.stack([rows_of(path, times) for times in found.values()])))
    places += map(places_of, found.values())
    counts += [len(times) - 1 for times in found.values()]
  together = jax.tree.map(lambda *leaves: np.concatenate(leaves), *tables)
  return names, together, np.stack(places), np.array(counts)


def finals(sampler, tables, places, counts):
  """The last x of a run in each case, (cases, 2, 2)."""
  start = jnp.array([[0.5, -1.0], [2.0, 0.0]])

  def run(table, times, count):
    def denoiser(x, t):
      alpha, sigma = table.alpha(t), table.sigma(t)
      total = alpha**2 * VARIANCE + sigma**2
      variance = jnp.full_like(x, VARIANCE * sigma**2 / total)
      return Denoised(alpha * VARIANCE * x / total, variance, jnp.full_like(x, 0.5))

    def noise(t, s, draw=0, part=0):
      return start[::-1]

    def update(state, index):
      step = Step(times[index], times[index + 1], index)
      new = sampler.update(table, denoiser, state, step, noise)
      return jax.tree.map(lambda new, old: jnp.where(index < count, new, old), new, state), None

    spread = jnp.hypot(table.alpha(times[0]), table.sigma(times[0]))
    state = sampler.init(table, times, spread * start)
    state, _ = jax.lax.scan(update, state, jnp.arange(MOST - 1))
    return denoiser(state.x, times[count]).x0

  return jax.jit(jax.vmap(run))(tables, places, counts)
