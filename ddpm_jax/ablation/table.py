"""The table of a sweep's figures on a terminal."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from ddpm_jax.ablation.results import Figure, Row
from ddpm_jax.ablation.words import show_interval, show_mean

ARROWS = {-1: '↓', 1: '↑'}
LEGEND = (
  '↓ less is better, ↑ more is; ± the standard error over seeds; differences are paired by seed,\n'
  "with 95 % intervals of Student's t. Bold: best, and the interval of its difference to the\n"
  'second best excludes zero.'
)


def make_table(title: str, figures: list[Figure]) -> Table:
  """A block of lines for each figure but those by noise level."""
  table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD)
  table.add_column('')
  table.add_column('mean', justify='right')
  table.add_column('difference', justify='right')
  table.add_column('95 % interval')
  for figure in figures:
    if not figure.by_level:
      table.add_row(f'{figure.metric.title} {ARROWS[figure.metric.sign]}', style='dim')
      for row in figure.rows:
        table.add_row(*map(escape, line(row)), style='bold' if row.best else '')
      table.add_section()
  return table


def line(row: Row) -> tuple[str, str, str, str]:
  """The cells of a variant's line."""
  if not row.seeds:
    return f'  {row.label}', 'not done', '', ''
  label, mean = f'  {row.label}', show_mean(row.mean)
  if row.difference is None:
    return label, mean, 'baseline', ''
  return label, mean, *show_interval(row.difference)
