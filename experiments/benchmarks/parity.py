"""Holds samplers, grids and schedules against the schedulers of diffusers, point by point.

  python -m experiments.benchmarks.parity

Each sampler and scheduler run with one exact denoiser from one start over the scheduler's own times
and with the same noise; x is compared at every time. PyTorch and diffusers, which are no
dependencies, are wanted for this command: pip install torch diffusers scipy torchsde. Exit code 1
where a pair doesn't do as its row says.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import rich
from absl import flags
from rich import box
from rich.markup import escape
from rich.table import Table

from ddpm_jax.errors import InputError
from experiments import cli

AGREE = 1e-4
WANTED = ('torch', 'diffusers', 'scipy', 'torchsde')

ONLY = flags.DEFINE_string('only', '', 'Only rows that have this in a name.')


class Row(NamedTuple):
  """One comparison: what with what, the measurement at one or two numbers of steps, the reason."""

  ours: str
  theirs: str
  deviations: list[float]
  why: str

  @property
  def holds(self) -> bool:
    """Whether they agree where no reason says otherwise, and only there."""
    return (self.deviations[0] < AGREE) == (not self.why)


def main() -> None:
  """The command."""
  missing = [name for name in WANTED if not importlib.util.find_spec(name)]
  if missing:
    raise InputError(f'the comparison wants diffusers: pip install {" ".join(missing)}')
  warnings.simplefilter('ignore')  # diffusers deprecates what it is asked for here
  jax.config.update('jax_enable_x64', True)
  table, failed = new_table(), []
  for row in rows(ONLY.value):
    table.add_row(*cells(row))
    failed += [] if row.holds else [row]
  rich.print(table)
  for row in failed:
    found = 'agree' if row.why else 'part'
    print(f'unlike the table says, {row.ours} and {row.theirs} {found}', file=sys.stderr)
  if failed:
    sys.exit(1)


def rows(only: str = '') -> Iterator[Row]:
  """Every comparison, as it is measured."""
  for ours, theirs, why, measure, num_steps in comparisons():
    if only in ours or only in theirs:
      counts = [num_steps, 2 * num_steps] if why else [num_steps]
      yield Row(ours, theirs, [measure(count) for count in counts], why)


def comparisons() -> Iterator[tuple[str, str, str, Callable[[int], float], int]]:
  """(ours, theirs, why they part, number of steps -> deviation, number of steps)."""
  from experiments.benchmarks import torch_schedulers
  from experiments.benchmarks.parity_cases import CASES, CHAINS, GRIDS, described

  for case in CASES:
    theirs = described(case.theirs, case.settings, case.arguments)
    measure = functools.partial(torch_schedulers.of_case, case)
    yield case.ours.label, theirs, case.why, measure, case.num_steps
  for grid in GRIDS:
    theirs = f'{described(grid.theirs, grid.settings)}, {grid.num_steps} times'
    measure = functools.partial(torch_schedulers.of_grid, grid)
    yield f'grid {grid.ours}', theirs, grid.why, measure, grid.num_steps
  for chain in CHAINS:
    theirs = described(chain.theirs, chain.settings)
    measure = functools.partial(torch_schedulers.of_chain, chain)
    theirs += ', betas multiplied in double precision' if chain.from_betas else ''
    yield f'chain {chain.ours}', theirs, chain.why, measure, 1000


def new_table() -> Table:
  """The head of the table."""
  versions = ', '.join(f'{name} {importlib.metadata.version(name)}' for name in WANTED[:2])
  heads = ('ddpm_jax', 'diffusers', 'largest deviation', 'at twice the steps', 'why they part')
  return Table(*heads, title=versions, box=box.MARKDOWN)


def cells(row: Row) -> list[str]:
  """The row in words."""
  numbers = [f'{deviation:.1e}' for deviation in row.deviations]
  return [escape(row.ours), escape(row.theirs), numbers[0], ''.join(numbers[1:]), row.why]


if __name__ == '__main__':
  cli.run(main)
