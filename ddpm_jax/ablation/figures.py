"""The plots of a sweep, each in a light and a dark dress."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ddpm_jax.ablation.plan import Plan
from ddpm_jax.ablation.results import Figure, difference
from ddpm_jax.files import whole
from ddpm_jax.training import metrics

# Okabe and Ito's colors, which the color-blind tell apart; their black would vanish in the dark.
COLORS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#8c6bb1', '#9a8f45')
MARKERS = 'osD^vP*X'
STYLES = ('-', '--', ':', '-.')  # of the first eight variants, the next eight, …
FEW = 5  # names that a legend inside the axes holds
CURVES = {
  'heldout/eps_mse': 'held-out error of eps',
  'heldout/loss': 'held-out loss',
  'loss': 'training loss, each its own',
}


class Theme(NamedTuple):
  """Colors of text and lines, of the grid and of the ground, which is none on the page."""

  ink: str
  faint: str
  ground: str


LIGHT = Theme('#3a3a3c', '#dcdcdf', 'white')
DARK = Theme('#c9c9cf', '#3a3a40', '#161618')

Draw = Callable[[Axes, Theme], None]


class Panel(NamedTuple):
  """A plot: its name, what it shows in words, how it is drawn on axes, and its height in inches."""

  name: str
  title: str
  draw: Draw
  height: float = 2.8


def bar_panels(figures: Sequence[Figure]) -> list[Panel]:
  """Bars of every figure but those by noise level."""
  return [
    Panel(f'bars_{number}', figure.metric.title, bars(figure), 0.8 + 0.36 * len(figure.rows))
    for number, figure in enumerate(f for f in figures if not f.by_level)
  ]


def curve_panels(plan: Plan) -> list[Panel]:
  """The learning curves that the cells have."""
  rows = [(cell, metrics.read(cell.folder / 'metrics.jsonl')) for cell in plan.cells]
  panels = []
  for name, title in CURVES.items():
    lines = [
      (cell.variant, [(row['step'], row[name]) for row in found if name in row])
      for cell, found in rows
    ]
    if any(points for _, points in lines):
      draw, height = curves(plan.labels, lines), 2.8 + legend_height(len(plan.labels))
      panels.append(Panel(f'curves_{len(panels)}', title, draw, height))
  return panels


def level_panels(figures: Sequence[Figure]) -> list[Panel]:
  """Where along the noise levels the variants differ from the baseline."""
  found = [figure for figure in figures if figure.by_level]
  if not found or len(found[0].rows) < 2:
    return []
  baseline = found[0].rows[found[0].baseline].label
  title, height = f'error of eps, relative to {baseline}', 2.8 + legend_height(len(found[0].rows))
  return [Panel('levels', title, ratios(found), height)]


def bars(figure: Figure) -> Draw:
  """A bar of each variant's mean from zero, its standard error, and a dot for every seed."""

  def draw(axes: Axes, theme: Theme) -> None:
    for place, row in enumerate(figure.rows):
      color = COLORS[place % len(COLORS)]
      if math.isfinite(row.mean.mean):
        axes.barh(place, row.mean.mean, height=0.62, color=color, alpha=0.55)
        error = row.mean.error if math.isfinite(row.mean.error) else None
        axes.errorbar(row.mean.mean, place, xerr=error, color=theme.ink, capsize=3, linewidth=1)
      values = [value for value in row.seeds.values() if math.isfinite(value)]
      axes.plot(values, [place] * len(values), 'o', color=color, markersize=3.5)
    axes.set_yticks(range(len(figure.rows)), [wrapped(row.label) for row in figure.rows])
    axes.invert_yaxis()
    axes.grid(axis='y', visible=False)

  return draw


def curves(labels: list[str], lines: list[tuple[int, list[tuple[float, float]]]]) -> Draw:
  """A line for every seed of every variant."""

  def draw(axes: Axes, theme: Theme) -> None:
    del theme
    named: set[int] = set()
    for variant, points in lines:
      if points:
        label = None if variant in named else wrapped(labels[variant])
        named.add(variant)
        style: dict[str, Any] = {**line_style(variant), 'alpha': 0.8, 'label': label}
        axes.plot(*zip(*points, strict=True), linewidth=1, **style)
    positive = all(value > 0 for _, points in lines for _, value in points)
    axes.set(xlabel='step', yscale='log' if positive else 'symlog')
    label_within_a_decade(axes)

  return draw


def ratios(figures: Sequence[Figure]) -> Draw:
  """exp(mean log ratio) to the baseline at the same seed, with the paired interval as a band."""
  baseline = figures[0].baseline

  def draw(axes: Axes, theme: Theme) -> None:
    axes.axhline(1, color=theme.ink, linewidth=1)
    for place, row in enumerate(figures[0].rows):
      if place == baseline:
        continue
      points = [
        (center(figure.name), *relative(figure.rows[place].seeds, figure.rows[baseline].seeds))
        for figure in figures
      ]
      x, middle, low, high = np.array(points).T
      style: dict[str, Any] = {**line_style(place), 'label': wrapped(row.label)}
      axes.plot(x, middle, marker=MARKERS[place % len(MARKERS)], markersize=3.5, **style)
      axes.fill_between(x, low, high, color=style['color'], alpha=0.15, linewidth=0)
    axes.set(xlabel='log-SNR (left: noise, right: data)', yscale='log')
    label_within_a_decade(axes)

  return draw


def label_within_a_decade(axes: Axes) -> None:
  """Gives a logarithmic axis that spans less than a decade, and so hardly a tick, plain numbers."""
  low, high = axes.get_ylim()
  if 0 < low < high < 10 * low:
    axes.yaxis.set_major_locator(ticker.MaxNLocator(6))
    axes.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.yaxis.set_minor_locator(ticker.NullLocator())


def line_style(variant: int) -> dict[str, Any]:
  """A color of the eight, and another line for every eight variants."""
  row, column = divmod(variant, len(COLORS))
  return {'color': COLORS[column], 'linestyle': STYLES[row % len(STYLES)]}


def wrapped(label: str) -> str:
  """A long label in lines."""
  return plain(textwrap.fill(label, 30))


def plain(text: str) -> str:
  """Text for matplotlib to show as it is: between two dollars it would read mathematics."""
  return text.replace('$', r'\$')


def legend_height(count: int) -> float:
  """Inches of a legend in two columns below the axes; 0 where it fits inside."""
  return 0.2 * math.ceil(count / 2) + 0.3 if count > FEW else 0.0


def center(name: str) -> float:
  """The middle of the bin 'eps_mse/-2 to 0'."""
  low, high = name.partition('/')[2].split(' to ')
  return (float(low) + float(high)) / 2


def relative(seeds: dict[int, float], baseline: dict[int, float]) -> tuple[float, float, float]:
  """The geometric mean of the ratios at equal seeds, and its paired interval."""
  logs = ({s: math.log(v) for s, v in part.items() if v > 0} for part in (seeds, baseline))
  found = difference(*logs)
  return math.exp(found.mean), math.exp(found.low), math.exp(found.high)


def render(panels: Sequence[Panel], theme: Theme, width: float = 4.3) -> bytes:
  """The panels, one above another, as a PNG; one by itself has no ground and no title."""
  alone = len(panels) == 1
  canvas = Canvas(figsize=(width, sum(panel.height for panel in panels)), layout='constrained')
  canvas.set_facecolor('none' if alone else theme.ground)
  ratios = [panel.height for panel in panels]
  grid = canvas.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
  for axes, panel in zip(grid, panels, strict=True):
    dress(axes, theme)
    panel.draw(axes, theme)
    if not alone:
      axes.set_title(plain(panel.title), loc='left', fontsize=9, color=theme.ink)
    if names := axes.get_legend_handles_labels()[1]:
      below = {'loc': 'upper center', 'bbox_to_anchor': (0.5, -0.2), 'ncols': 2}
      spot: dict[str, Any] = below if len(names) > FEW else {}
      axes.legend(fontsize=7, frameon=False, handlelength=3, labelcolor=theme.ink, **spot)
  file = io.BytesIO()
  canvas.savefig(file, format='png', dpi=160, metadata={'Software': None})
  return file.getvalue()


def dress(axes: Axes, theme: Theme) -> None:
  """Thin lines, and colors of the theme."""
  axes.set_facecolor('none')
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(theme.faint)
  axes.tick_params(which='both', colors=theme.ink, labelsize=8, length=0)
  axes.xaxis.label.set(color=theme.ink, fontsize=8)
  axes.grid(color=theme.faint, linewidth=0.6)
  axes.set_axisbelow(True)


def write_png(path: epath.Path, panels: Sequence[Panel]) -> list[epath.Path]:
  """The panels in one file; none where there are none."""
  if panels:
    with whole(path) as part:
      part.write_bytes(render(panels, LIGHT, 6.5))
  return [path] if panels else []
