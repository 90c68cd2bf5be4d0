"""Every path over every grid of 1 to 6 times, in one compiled program for each sampler.

What a sampler asks of a path near its times is tabulated, so that a chain of one size stands for all
of them, and all cases are run at once. The tables are those of single precision under jit.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Discrete
from ddpm_jax.samplers import TIME_GRIDS, Step, time_grid

MOST, PARTS = 6, 4  # times of a grid, and parts that each way between them is cut into
VARIANCE = 0.25


def coinciding():
  """A chain with levels that single precision cannot tell apart."""
  falls = np.geomspace(0.9, 0.01, 12)
  return schedules.from_alphas_bar(np.repeat(falls, 2) * np.tile([1, 1 - 1e-9], 12))


def paths():
  """Name -> schedule: each family, chains with and without their continuous reading."""
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
  return chains | read | {name: make() for name, make in schedules.CONTINUOUS.items()}


def cases():
  """(path, grid, number of times) for each grid that the path has."""
  for (name, path), grid, count in itertools.product(
    paths().items(), TIME_GRIDS, range(1, MOST + 1)
  ):
    try:
      yield (name, grid, count), path, np.asarray(time_grid(grid, path, count))
    except ValueError:  # a chain's times fall together
      continue


def tabulated(path, rows):
  """The chain whose row t has what the path answers at rows[t - 1]; row 0 is the data."""

  @jax.jit
  def answers(path, rows):
    return jax.vmap(lambda t: (path.alpha(t), path.sigma(t), path.log_snr(t)))(rows)

  tables = [np.asarray(values) for values in answers(path, jnp.asarray(rows))]
  # The data, whose alpha is one and sigma zero.
  ends = ((1.0,), (0.0,), (np.inf,))
  alphas, sigmas, log_snrs = (
    np.concatenate([end, np.reshape(values, -1)]).astype(np.float32)
    for end, values in zip(ends, tables, strict=True)
  )
  unused = np.zeros_like(alphas)
  return Discrete(unused, unused, alphas, sigmas, log_snrs, unused)


def snapshot(path, times):
  """The path at a grid's times and between, as a chain, and those times in it, padded to MOST."""
  shares = np.arange(PARTS) / PARTS
  between = [late + shares * (early - late) for early, late in itertools.pairwise(times)]
  rows = np.concatenate([*between[::-1], times[:1]])
  rows = np.round(rows).astype(int) if isinstance(path, Discrete) else rows.astype(np.float32)
  rows = np.pad(rows, (0, PARTS * (MOST - 1) + 1 - rows.size), 'edge')
  places = 1 + PARTS * np.arange(len(times))[::-1]
  return rows, np.pad(places, (0, MOST - len(times)), 'edge')


def stacked():
  """Names of all cases, and their chains, times and numbers of steps, stacked."""
  names, chains, places, counts = [], [], [], []
  for name, path, times in cases():
    rows, where = snapshot(path, times)
    names.append(name)
    chains.append(tabulated(path, rows))
    places.append(where)
    counts.append(len(times) - 1)
  together = jax.tree.map(lambda *leaves: np.stack(leaves), *chains)
  return names, together, np.stack(places), np.array(counts)


def finals(sampler, chains, places, counts):
  """The last x of a run in each case, (cases, 2, 2)."""
  start = jnp.array([[0.5, -1.0], [2.0, 0.0]])

  def run(chain, times, count):
    def denoiser(x, t):
      alpha, sigma = chain.alpha(t), chain.sigma(t)
      total = alpha**2 * VARIANCE + sigma**2
      variance = jnp.full_like(x, VARIANCE * sigma**2 / total)
      return Denoised(alpha * VARIANCE * x / total, variance, jnp.full_like(x, 0.5))

    def noise(t, s, draw=0, part=0):
      return start[::-1]

    def update(state, index):
      step = Step(times[index], times[index + 1], index)
      new = sampler.update(chain, denoiser, state, step, noise)
      return jax.tree.map(lambda new, old: jnp.where(index < count, new, old), new, state), None

    spread = jnp.hypot(chain.alpha(times[0]), chain.sigma(times[0]))
    state = sampler.init(chain, times, spread * start)
    state, _ = jax.lax.scan(update, state, jnp.arange(MOST - 1))
    return denoiser(state.x, times[count]).x0

  return jax.jit(jax.vmap(run))(chains, places, counts)
