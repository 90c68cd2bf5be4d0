"""What the finished cells of a sweep say: a table of each figure, and results.csv."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from typing import NamedTuple

from etils import epath

from ddpm_jax.ablation.cell import read_result
from ddpm_jax.ablation.metrics import Metric, metric, place
from ddpm_jax.ablation.plan import Cell, Plan
from ddpm_jax.ablation.statistics import Difference, Mean, mean_error, paired
from ddpm_jax.files import whole

Seeds = dict[int, float]


class Row(NamedTuple):
  """A variant's figure.

  Attributes:
    label: of the variant.
    seeds: its value at every seed that is done.
    mean: of those.
    difference: to the baseline at the seeds that both have; None for the baseline itself.
    best: whether it is better than every other variant by its mean and, by the interval of the
      paired difference, than the runner-up.
  """

  label: str
  seeds: Seeds
  mean: Mean
  difference: Difference | None
  best: bool


class Figure(NamedTuple):
  """One figure of all variants; `baseline` is a row's number."""

  name: str
  metric: Metric
  rows: list[Row]
  baseline: int

  @property
  def by_level(self) -> bool:
    """Whether it is one of a bin of log-SNR."""
    return self.name.startswith('eps_mse/')


class Finished(NamedTuple):
  """A cell that is done; a figure that could not be had is nan, and `left_out` says why."""

  cell: Cell
  steps: int
  metrics: dict[str, float]
  left_out: dict[str, str]


def read_finished(plan: Plan) -> list[Finished]:
  """The cells that are done, variant by variant."""
  found = []
  for cell in sorted(plan.cells, key=lambda cell: (cell.variant, cell.seed)):
    if result := read_result(cell):
      found.append(Finished(cell, **result))
  return found


def names_of(finished: Iterable[Finished]) -> list[str]:
  """The figures that any cell has, in the order of METRICS, bins of log-SNR from noise to data."""
  return sorted(dict.fromkeys(name for each in finished for name in each.metrics), key=place)


def left_out(finished: Iterable[Finished]) -> list[str]:
  """A line for each figure that could not be had, why, and of which cells."""
  cells: dict[tuple[str, str], list[str]] = {}
  for each in finished:
    for reason in each.left_out.items():
      cells.setdefault(reason, []).append(str(each.cell))
  return [
    f'Left out: {metric(name).title}: {why} ({"; ".join(found)})'
    for (name, why), found in cells.items()
  ]


def make_figures(plan: Plan, finished: list[Finished], baseline: int = 0) -> list[Figure]:
  """Every figure of every variant, the differences being to the variant of number `baseline`."""
  figures = []
  for name in names_of(finished):
    read = metric(name)
    seeds: list[Seeds] = [{} for _ in plan.variants]
    for each in finished:
      if name in each.metrics:
        seeds[each.cell.variant][each.cell.seed] = read.scale * each.metrics[name]
    rows = make_rows(plan.labels, seeds, read.sign, baseline)
    figures.append(Figure(name, read, rows, baseline))
  return figures


def make_rows(labels: list[str], seeds: list[Seeds], sign: int, baseline: int) -> list[Row]:
  """The rows of one figure."""
  means = [mean_error(list(found.values())) for found in seeds]
  best = clear_best(seeds, means, sign)
  return [
    Row(
      label,
      seeds[number],
      means[number],
      None if number == baseline else difference(seeds[number], seeds[baseline]),
      number == best,
    )
    for number, label in enumerate(labels)
  ]


def clear_best(seeds: list[Seeds], means: list[Mean], sign: int) -> int | None:
  """The variant with the best mean, where the interval of its paired difference to the second best
  excludes zero; else None.
  """
  order = [n for n, mean in enumerate(means) if math.isfinite(mean.mean)]
  order.sort(key=lambda n: -sign * means[n].mean)
  if len(order) < 2:
    return None
  best, second = order[:2]
  return best if difference(seeds[best], seeds[second]).excludes_zero else None


def difference(seeds: Seeds, baseline: Seeds) -> Difference:
  """The paired difference over the seeds that both have."""
  both = [seed for seed in seeds if seed in baseline]
  return paired([seeds[s] for s in both], [baseline[s] for s in both])


def write_csv(path: epath.Path, plan: Plan, finished: list[Finished]) -> None:
  """A line for each cell that is done: its settings, seed, steps, examples and figures.

  It holds no times: a sweep that was stopped and went on writes the same file, byte for byte.
  """
  names = names_of(finished)
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['variant', *plan.fields, 'seed', 'steps', 'examples', *names])
  for each in finished:
    cell = each.cell
    overrides = (plan.variants[cell.variant].get(field, '') for field in plan.fields)
    examples = each.steps * cell.config.dataset.batch_size
    values = (each.metrics.get(name, math.nan) for name in names)
    shown = ('' if math.isnan(value) else value for value in values)
    writer.writerow([cell.label, *overrides, cell.seed, each.steps, examples, *shown])
  with whole(path) as part:
    part.write_text(text.getvalue(), encoding='utf-8', errors='backslashreplace')
