"""What there is to sample with, as tables to look at."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

from rich import box
from rich.console import Group
from rich.table import Table

from ddpm_jax.config.signatures import keywords
from ddpm_jax.samplers import SAMPLERS, TIME_GRIDS


def sampler_table() -> Group:
  """Every sampler with its order, cost and reference; every grid."""
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
  grids = Table(box=box.SIMPLE_HEAD)
  for head in ('grid', 'its times', 'reference'):
    grids.add_column(head)
  for name, grid in TIME_GRIDS.items():
    grids.add_row(name, headline(grid), reference(grid))
  return Group(samplers, '  evaluations of the network in each step, and once in the last', grids)


def headline(function: Callable) -> str:
  """The first line of a docstring."""
  return (inspect.getdoc(function) or '').split('\n')[0]


def reference(function: Callable) -> str:
  """The work that a docstring's Reference names first, and where it is."""
  text = ' '.join((inspect.getdoc(function) or '').split())
  found = re.search(r'Reference:.*?([A-Z][^;:]*? \d{4}), (https?://\S+?)[,.;]?(?: |$)', text)
  return f'{found[1]}, {found[2]}' if found else ''
