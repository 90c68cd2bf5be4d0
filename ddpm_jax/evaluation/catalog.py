"""What there is to sample with, as tables to look at."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Group
from rich.table import Table

from ddpm_jax.config.signatures import keywords
from ddpm_jax.samplers import SAMPLERS, SOLVERS, TIME_GRIDS


def sampler_table() -> Group:
  """Every sampler with its order, cost and reference; every solver; every grid."""
  samplers = Table(box=box.SIMPLE_HEAD)
  for head in ('sampler', 'options', 'order', 'evaluations', 'stochastic', 'reference'):
    samplers.add_column(head, justify='right' if head in ('order', 'evaluations') else 'left')
  for name, make in SAMPLERS.items():
    sampler = make()
    startup = f' (+ {sampler.startup})' if sampler.startup else ''
    samplers.add_row(
      name,
      ', '.join(keywords(make, frozenset())),
      str(sampler.order) if sampler.order else '-',
      f'{sampler.evaluations}{startup}',
      'yes' if sampler.stochastic else '',
      reference(make),
    )
  solvers = described('sampler of adaptive steps', 'method', SOLVERS)
  grids = described('grid', 'its times', TIME_GRIDS)
  note = '  evaluations of the network in each step, and once in the last'
  return Group(samplers, note, solvers, grids)


def described(kind: str, what: str, entries: Mapping[str, Callable]) -> Table:
  """A line for each entry: its name, the first line of its docstring, its reference."""
  table = Table(kind, what, 'reference', box=box.SIMPLE_HEAD)
  for name, entry in entries.items():
    table.add_row(name, headline(entry), reference(entry))
  return table


def headline(function: Callable) -> str:
  """The first line of a docstring."""
  return (inspect.getdoc(function) or '').split('\n')[0]


def reference(function: Callable) -> str:
  """The work that a docstring's Reference names first, and where it is."""
  text = ' '.join((inspect.getdoc(function) or '').split())
  found = re.search(r'Reference:.*?([A-Z][^;:]*? \d{4}), (https?://\S+?)[,.;]?(?: |$)', text)
  return f'{found[1]}, {found[2]}' if found else ''
