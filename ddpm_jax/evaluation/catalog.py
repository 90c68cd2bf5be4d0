"""What there is to sample with, as tables to look at."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping

from rich import box
from rich.console import Group
from rich.table import Table

from ddpm_jax.config.signatures import keywords
from ddpm_jax.samplers import SAMPLERS, SOLVERS, TIME_GRIDS, Sampler

NOTES = """\
  order of convergence from pure noise over log_snr and karras; in brackets: where sigma / alpha is
  evenly spaced. Over grids even in time it is lower, and so is an order above 2 in mid-path; see
  docs/samplers.md. '-': more steps do not converge to the flow
  evaluations of the network in each step, and once in the last
"""


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
      order_of(sampler),
      f'{sampler.evaluations}{startup}',
      'yes' if sampler.stochastic else '',
      reference(make),
    )
  solvers = described('sampler of adaptive steps', 'method', SOLVERS)
  grids = described('grid', 'its times', TIME_GRIDS)
  return Group(samplers, NOTES, solvers, grids)


def order_of(sampler: Sampler) -> str:
  """Its order, in brackets that on even steps of sigma / alpha where that is higher."""
  even = f' ({sampler.order_even})' if sampler.order_even > sampler.order else ''
  return f'{sampler.order}{even}' if sampler.order else '-'


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
