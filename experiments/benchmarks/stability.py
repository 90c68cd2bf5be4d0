"""From how many steps each sampler is stable over each grid; a table in Markdown.

  python -m experiments.benchmarks.stability --path=cosine

A cell has the least number of steps from which on, up to --most, a run makes Gaussian data at most
twice as large as it is (`samplers.stability`); a dash where there is none. Samplers that are stable
from 2 steps on over all grids are named below the table. It draws nothing and trains nothing.
"""

from __future__ import annotations

from absl import flags

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import Discrete, Schedule
from ddpm_jax.samplers import OF_LOG_SNR, SAMPLERS, TIME_GRIDS, Sampler, time_grid
from ddpm_jax.samplers.stability import LIMIT, enlargement
from experiments import cli

# Chains are read in continuous time where a sampler or a grid asks for it, as by the commands.
PATHS = {
  'cosine': schedules.cosine,
  'linear': schedules.linear,
  'zero_terminal_snr': lambda: schedules.zero_terminal_snr(schedules.cosine()),
  'vp': schedules.vp,
  've': schedules.ve,
  'edm': schedules.edm,
  'flow': schedules.flow,
}

PATH = flags.DEFINE_enum('path', 'cosine', list(PATHS), 'The path that is sampled on.')
MOST = flags.DEFINE_integer('most', 50, 'Numbers of steps that are tried.', lower_bound=2)


def main() -> None:
  """The command."""
  path, always = PATHS[PATH.value](), []
  print(f'| {PATH.value} | {" | ".join(f"`{grid}`" for grid in TIME_GRIDS)} |')
  print(f'| --- |{" --- |" * len(TIME_GRIDS)}')
  for name, make in SAMPLERS.items():
    cells = [stable_from(make(), path, grid, MOST.value) for grid in TIME_GRIDS]
    if all(cell in ('2', '') for cell in cells):
      always.append(f'`{name}`')
    else:
      print(f'| `{name}` | {" | ".join(cells)} |', flush=True)
  print(f'\nStable from 2 steps on over all: {", ".join(always)}.')


def stable_from(sampler: Sampler, path: Schedule, grid: str, most: int) -> str:
  """One more than the largest number of steps that is not stable; 2 for none, a dash for `most`.

  Empty where the path has no such grid for this sampler.
  """
  sizes = ((count, factor(sampler, path, grid, count)) for count in range(2, most + 1))
  found = {count: size for count, size in sizes if size is not None}
  if not found:
    return ''
  bad = [count for count, size in found.items() if size > LIMIT]
  return '–' if bad and bad[-1] == max(found) else str(bad[-1] + 1 if bad else min(found))


def factor(sampler: Sampler, path: Schedule, grid: str, count: int) -> float | None:
  """`enlargement` over a grid of so many times; None where there is none."""
  try:
    if isinstance(path, Discrete) and (sampler.between or grid in OF_LOG_SNR):
      path = schedules.interpolate(path)
    times = time_grid(grid, path, count)
  except ValueError:
    return None
  return enlargement(sampler, path, times)


if __name__ == '__main__':
  cli.run(main)
