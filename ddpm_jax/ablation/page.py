"""One HTML file that says all of a sweep, and needs nothing beside itself to be read."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from etils import epath

from ddpm_jax.ablation.figures import DARK, LIGHT, Panel, render
from ddpm_jax.ablation.metrics import GRID
from ddpm_jax.ablation.plan import FREE, Cell, Plan
from ddpm_jax.ablation.results import Figure, Finished, Row, left_out
from ddpm_jax.ablation.stylesheet import CSS
from ddpm_jax.ablation.table import ARROWS
from ddpm_jax.ablation.words import NONE, decimals, number, show_interval, show_mean
from ddpm_jax.config import differing, to_json
from ddpm_jax.config.tree import leaves
from ddpm_jax.errors import InputError
from ddpm_jax.files import read_json, whole

MEANINGS = {
  'bits/dim': 'of the held-out images, an upper bound on −log₂ P per pixel and channel; the part '
  'after the comma says by which chain of steps it is measured',
  'Fréchet distance': 'between samples and held-out images, of the normal laws with their moments, '
  'in the features of a small classifier of the training images',
  'kernel distance': 'the squared maximum mean discrepancy of the same features, kernel '
  '(1 + x·y / D)³; unbiased, so it may be below zero',
  'read as asked': 'share of samples that a classifier of the training images reads as the class '
  'asked for',
  'gradient variance': 'tr Cov(g) / |E g|² of the training loss’s minibatch gradient g at the last '
  'parameters, over examples, times, noise and dropout, before clipping',
  'error of eps': 'mean squared error of the predicted noise on held-out images, at log-SNRs even '
  'in a bin',
}


def make_page(
  plan: Plan, finished: list[Finished], figures: list[Figure], panels: dict[str, list[Panel]]
) -> str:
  """The whole page.

  Args:
    plan: the sweep.
    finished: its cells that are done.
    figures: of those.
    panels: the plots 'bars', 'curves' and 'levels'.
  """
  main = [f for f in figures if not f.by_level]
  by_level = [f for f in figures if f.by_level]
  parts = [
    header(plan, finished),
    section('What differs', differences(plan, finished)),
    section('Results', results(main, plan), reasons(finished), plots(panels['bars'])),
    section('Learning curves', note(CURVES_NOTE), plots(panels['curves'])),
    section('Along the noise levels', levels(by_level), plots(panels['levels'])),
    section('Samples', samples(plan)),
    section('What the numbers mean', meanings(main)),
    footer(finished),
  ]
  title = escape(heading(plan))
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    f'<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n'
    + '\n'.join(parts)
    + '\n</main>\n</body>\n</html>\n'
  )


CURVES_NOTE = (
  'A line for every seed. The held-out error is the mean over the noise levels of the variant’s '
  'own schedule. Training losses are not comparable between variants.'
)


def heading(plan: Plan) -> str:
  """'Ablation of loss.name × schedule.name on digits'."""
  names = dict.fromkeys(config.dataset.name for config in plan.configs)
  return f'Ablation of {" × ".join(plan.fields) or "nothing"} on {", ".join(names)}'


def header(plan: Plan, finished: list[Finished]) -> str:
  """The title, what was run, and what is missing."""
  steps = sorted({each.steps for each in finished})
  budget = f'{plan.seconds:g} seconds of training' if plan.seconds else f'{span(steps)} steps'
  words = [
    f'{len(plan.variants)} variants, {plan.seeds} seed{"s" if plan.seeds > 1 else ""} each, '
    f'{budget}. Seed s of every variant meets the same data order and the same noise.'
  ]
  lines = [
    f'<header><h1>{escape(heading(plan))}</h1>',
    *(f'<p class="soft">{escape(w)}</p>' for w in words),
  ]
  have = {each.cell.name for each in finished}
  missing = [str(cell) for cell in plan.cells if cell.name not in have]
  if missing:
    lines.append(f'<p class="warn">Not done: {escape("; ".join(missing))}.</p>')
  return '\n'.join(lines) + '</header>'


def span(values: Sequence[int]) -> str:
  """'1500', or '1400 to 1500'."""
  return ' to '.join(str(value) for value in dict.fromkeys([*values[:1], *values[-1:]])) or 'no'


def section(title: str, *parts: str) -> str:
  """A heading with what is under it; nothing where that is nothing."""
  body = '\n'.join(part for part in parts if part)
  return f'<section><h2>{title}</h2>\n{body}\n</section>' if parts[-1] else ''


def note(text: str) -> str:
  """A paragraph in a soft color."""
  return f'<p class="soft">{text}</p>'


def make_table(head: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
  """A table that scrolls by itself; rows begin with their heading, and hold finished cells."""
  heads = ''.join(f'<th scope="col">{escape(name)}</th>' for name in head)
  body = '\n'.join(
    f'<tr><th scope="row">{escape(first)}</th>{"".join(rest)}</tr>' for first, *rest in rows
  )
  return (
    f'<div class="scroll" tabindex="0"><table><thead><tr>{heads}</tr></thead>\n'
    f'<tbody>{body}</tbody></table></div>'
  )


def differences(plan: Plan, finished: list[Finished]) -> str:
  """The settings in which the variants' configs are not all the same."""
  first, *others = trees = [to_json(config) for config in plan.configs]
  found = dict.fromkeys(field for tree in others for field in differing(first, tree, FREE))
  fields = sorted(found, key=lambda field: [*plan.fields, field].index(field))
  steps = {each.cell.variant: each.steps for each in reversed(finished)}
  rows = []
  for place, (label, tree) in enumerate(zip(plan.labels, trees, strict=True)):
    values = dict(leaves(tree))
    shown = [text(values.get(field)) for field in fields]
    rows.append([label, *shown, text(steps.get(place))])
  return make_table(['', *fields, 'steps'], rows)


def text(value: Any) -> str:
  """A setting's cell."""
  return f'<td>{NONE if value is None else escape(str(value))}</td>'


def results(figures: list[Figure], plan: Plan) -> str:
  """Variants × figures: mean ± error; under it the paired difference to the baseline."""
  if not figures:
    return note('No cell is done yet.')
  base = escape(plan.labels[figures[0].baseline])
  words = (
    f'Mean over seeds ± its standard error; under it the difference to <b>{base}</b>, paired by '
    'seed, with its 95 % interval of Student’s t. '
    'Bold: the best, where the interval of its difference to the second best excludes zero. '
    'Nothing is corrected for the number of comparisons.'
  )
  heads = [f'{figure.metric.title} {ARROWS[figure.metric.sign]}' for figure in figures]
  rows = [
    [label, *(result(figure.rows[place]) for figure in figures)]
    for place, label in enumerate(plan.labels)
  ]
  return note(words) + make_table(['', *heads], rows)


def reasons(finished: list[Finished]) -> str:
  """Why figures are not there."""
  return '\n'.join(note(escape(line)) for line in left_out(finished))


def result(row: Row) -> str:
  """One cell of the results."""
  if not row.seeds:
    return f'<td>{NONE}</td>'
  below = '&nbsp;'
  if row.difference is not None:
    below = ' '.join(show_interval(row.difference))
  best = ' class="best"' if row.best else ''
  return f'<td{best}>{show_mean(row.mean)}<small>{below}</small></td>'


def levels(figures: list[Figure]) -> str:
  """Variants × bins of log-SNR: the mean error, the best marked as in the results."""
  if not figures:
    return ''
  words = (
    'Mean squared error of the predicted noise on held-out images, in bins of log-SNR: noise on '
    'the left, data on the right. What is outside a schedule’s range is left out.'
  )
  heads = [figure.name.partition('/')[2].replace('-', '−') for figure in figures]
  rows = [
    [row.label, *(level(figure.rows[place]) for figure in figures)]
    for place, row in enumerate(figures[0].rows)
  ]
  return note(words) + make_table(['', *heads], rows)


def level(row: Row) -> str:
  """One cell of the noise levels."""
  best = ' class="best"' if row.best else ''
  shown = number(row.mean.mean, decimals(row.mean.mean, 0.0)) if row.seeds else NONE
  return f'<td{best}>{shown}</td>'


def plots(panels: list[Panel]) -> str:
  """Figures that follow the reader's light or dark."""
  cards = []
  for panel in panels:
    light, dark = (embed(render([panel], theme)) for theme in (LIGHT, DARK))
    cards.append(
      f'<figure><figcaption>{escape(panel.title)}</figcaption><picture>'
      f'<source srcset="{dark}" media="(prefers-color-scheme: dark)">'
      f'<img src="{light}" alt="{escape(panel.title)}"></picture></figure>'
    )
  return f'<div class="panels">{"".join(cards)}</div>' if cards else ''


def samples(plan: Plan) -> str:
  """The samples of each variant at its first seed that is done, from the same noise."""
  cards = []
  for variant in range(len(plan.variants)):
    cell = first_done(plan, variant)
    if cell and (cell.folder / GRID).exists():
      image = embed((cell.folder / GRID).read_bytes())
      name = escape(str(cell))
      cards.append(
        f'<figure><figcaption>{name}</figcaption><img src="{image}" alt="{name}"></figure>'
      )
  return f'<div class="samples">{"".join(cards)}</div>' if cards else ''


def first_done(plan: Plan, variant: int) -> Cell | None:
  """The variant's finished cell of the lowest seed."""
  done = (cell for cell in plan.cells if cell.variant == variant and cell.done)
  return min(done, key=lambda cell: cell.seed, default=None)


def meanings(figures: list[Figure]) -> str:
  """What each figure is."""
  titles = [figure.metric.title for figure in figures]
  rows = [
    f'<dt>{escape(name)}</dt><dd>{meaning}</dd>'
    for name, meaning in MEANINGS.items()
    if any(title.startswith(name) for title in titles)
  ]
  return f'<dl>{"".join(rows)}</dl>' if rows else ''


def footer(finished: list[Finished]) -> str:
  """The code and the machine, as the first cell's record has them."""
  if not finished:
    return ''
  path = finished[0].cell.folder / 'config.json'
  try:
    record = read_json(path)['provenance']
    devices, versions = record['devices'], record['versions']
    words = [
      f'revision {record["git_revision"] or "unknown"}',
      f'{devices["count"]} × {devices["kind"]}',
      *(f'{name} {versions[name]}' for name in ('python', 'jax', 'flax', 'numpy')),
    ]
  except (InputError, KeyError, TypeError):
    words = [f'{path} cannot be read: code and machine unknown']
  return f'<footer>{escape(" · ".join(words))}</footer>'


def embed(png: bytes) -> str:
  """A PNG as an address that needs no request."""
  return 'data:image/png;base64,' + base64.b64encode(png).decode()


def write_page(path: epath.Path, page: str) -> epath.Path:
  """Writes it, whole or not at all; returns its path."""
  with whole(path) as part:
    part.write_text(page, encoding='utf-8', errors='backslashreplace')
  return path
