"""Quality against evaluations of the network: every sampler on one trained run.

  python -m experiments.tradeoff --workdir=runs/digits --evaluations=5,10,20,50

Draws samples with each sampler at each budget, unguided and over one grid, and measures their
distance from the held-out images in the features of a classifier of the training images. Prints a
table; writes tradeoff.json, cell by cell, and tradeoff.png to the run's folder. A run that is
started again goes on with what is missing.
"""

import dataclasses

import numpy as np
import rich
from absl import flags
from etils import epath
from matplotlib.figure import Figure
from rich.table import Table

from ddpm_jax.ablation.figures import plain
from ddpm_jax.data import Dataset
from ddpm_jax.errors import InputError, choose
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.distances import DISTANCES, Features, Measured, measured
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.sampling import draw_samples
from ddpm_jax.files import check_writable, read_json, whole, write_json
from ddpm_jax.samplers import SAMPLERS, TIME_GRIDS
from ddpm_jax.stores import path_of
from ddpm_jax.tasks.building import make_dataset
from ddpm_jax.tasks.run import Run, load_run
from ddpm_jax.training import backend
from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
PLUGINS = cli.plugins_flag()
SAMPLER = flags.DEFINE_list('samplers', sorted(SAMPLERS), 'Which samplers.')
EVALUATIONS = flags.DEFINE_list('evaluations', ['5', '10', '20', '50'], 'Budgets of each sample.')
GRID = flags.DEFINE_string('grid', 'log_snr', 'Law of the times.')
NUM = flags.DEFINE_integer('num', 500, 'How many samples each.', lower_bound=20, upper_bound=10**6)

REAL = 5000  # images of each split, at most: the kernel distance is quadratic in them

Rows = dict[str, dict[str, dict[str, float]]]


def main() -> None:
  """The command."""
  backend.prepare()
  workdir = path_of(WORKDIR.value, '--workdir')
  run = load_run(workdir, plugins=PLUGINS.value)
  if run.use.denoiser is None:
    raise InputError(f"{workdir}: '{run.config.task.name}' has no samplers to compare")
  names = [name for name in SAMPLER.value if choose(SAMPLERS, name, '--samplers')]
  budgets = [read_budget(text) for text in EVALUATIONS.value]
  for flag, given in (('--samplers', names), ('--evaluations', budgets)):
    if not given:
      raise InputError(f'{flag}: is empty; leave it out for the usual ones')
  choose(TIME_GRIDS, GRID.value, '--grid')
  path = workdir / 'tradeoff.json'
  check_writable(workdir, '--workdir')
  rows = read_rows(path)
  dataset = make_dataset(run.config)
  features, truth, real = judge(dataset)
  cells = [(name, budget) for name in names for budget in budgets]
  wanted = f'/{GRID.value}/{NUM.value} samples/step {run.step}'
  with progress('samplers at budgets', len(cells)) as advance:
    for name, budget in cells:
      place = name + wanted
      if str(budget) not in rows.setdefault(place, {}) and (found := within(run, name, budget)):
        x = features(draw(found, dataset))
        rows[place][str(budget)] = {
          **{k: v for key, d in DISTANCES.items() for k, v in named(key, measured(d, x, truth))},
          'evaluations': found.use.evaluations() or 0,
        }
        write_json(path, rows)
      advance(1)
  rows = {place: row for place, row in rows.items() if row and place.endswith(wanted)}
  rich.print(make_table(rows, real))
  draw_plot(rows, real, workdir / 'tradeoff.png')
  print(f'{path}\n{workdir / "tradeoff.png"}')


def read_rows(path: epath.Path) -> Rows:
  """What was found before; raises InputError where the file is torn or holds something else."""
  rows = read_json(path) if path.exists() else {}
  try:
    cells = [cell for row in rows.values() for cell in row.values()]
    numbers = [cell[key] for cell in cells for key in ('evaluations', 'frechet', 'frechet_error')]
    sound = all(isinstance(number, (int, float)) for number in numbers)
  except (AttributeError, KeyError, TypeError):
    sound = False
  if not sound:
    raise InputError(f'{path}: holds no table of distances; remove it, and it is made anew')
  return rows


def judge(dataset: Dataset) -> tuple[Features, np.ndarray, Measured]:
  """What reads images, what it reads of held-out ones, and how far training ones are from those.

  Raises:
    InputError: there are too few classes or images for that.
  """
  real = report.read_real(dataset, REAL)
  try:
    features = Features(*real.train)
    truth = features(real.test.images)
    near = measured(DISTANCES['frechet'], features(some(real.train.images)), truth)
  except Unavailable as error:
    raise InputError(
      f"{dataset.name}: cannot be judged by a classifier's features: {error}"
    ) from error
  return features, truth, near


def read_budget(text: str) -> int:
  """A number of evaluations."""
  if not text.isdecimal() or not 1 <= float(text) <= 10**6:
    raise InputError(f"--evaluations: '{text}' is not a number from 1 to a million")
  return int(text)


def within(run: Run, name: str, budget: int) -> Run | None:
  """The run with that sampler at the most times that the budget pays; None where it pays none."""
  sampler = SAMPLERS[name]()
  num_steps = 1 + (budget - 1 - sampler.startup) // sampler.evaluations
  if num_steps < 2:
    return None
  wanted = dataclasses.replace(
    run.config.sampler,
    name=name,
    arguments={},
    num_steps=num_steps,
    grid=GRID.value,
    guidance=1.0,
  )
  return run.rebuild(dataclasses.replace(run.config, sampler=wanted))


def draw(run: Run, dataset: Dataset) -> np.ndarray:
  """The samples, as floats in [-1, 1]."""
  images = draw_samples(
    run,
    NUM.value,
    dataset.some_cond(NUM.value),
    seed=run.config.seed,
    batch_size=run.config.evaluation.batch_size,
  )
  return report.floats(images, 256)


def named(key: str, found: tuple[float, float]) -> list[tuple[str, float]]:
  """[('mmd', value), ('mmd_error', error)]."""
  return list(zip((key, f'{key}_error'), found, strict=True))


def some(images: np.ndarray) -> np.ndarray:
  """As many as there are samples, or all, evenly spaced."""
  return images[:: max(1, len(images) // NUM.value)][: NUM.value]


def make_table(rows: Rows, real: Measured) -> Table:
  """A line for each sampler, a column for each budget: Fréchet distance ± error."""
  budgets = sorted({int(budget) for row in rows.values() for budget in row})
  title = f'Fréchet distance of features from held-out images; of real ones {words(*real)}'
  table = Table(title=title, title_justify='left', box=None, pad_edge=False)
  table.add_column('evaluations', no_wrap=True)
  for budget in budgets:
    table.add_column(str(budget), justify='right', no_wrap=True, min_width=13)
  for place, row in rows.items():
    found = (row.get(str(budget)) for budget in budgets)
    cells = (words(cell['frechet'], cell['frechet_error']) if cell else '' for cell in found)
    table.add_row(place.split('/')[0], *cells)
  return table


def words(value: float, error: float) -> str:
  """12.34 ± 0.45."""
  return f'{value:.2f} ± {error:.2f}'


def draw_plot(rows: Rows, real: Measured, path: epath.Path) -> None:
  """Every sampler's distance over its evaluations, and that of real images."""
  figure = Figure(figsize=(8, 5), layout='constrained')
  axes = figure.subplots()
  for number, (place, row) in enumerate(rows.items()):
    cells = [row[budget] for budget in sorted(row, key=int)]
    x, y, error = (
      [cell[key] for cell in cells] for key in ('evaluations', 'frechet', 'frechet_error')
    )
    style = {'linestyle': ('-', '--', ':')[number // 10 % 3], 'marker': 'o', 'markersize': 3}
    axes.errorbar(x, y, error, label=plain(place.split('/')[0]), **style)
  axes.axhline(real.value, color='gray', linewidth=0.8, label='real images')
  axes.set(xscale='log', yscale='log', xlabel='evaluations', ylabel='Fréchet distance of features')
  budgets = sorted({int(budget) for row in rows.values() for budget in row})
  axes.set_xticks(budgets, list(map(str, budgets)))
  axes.set_xticks([], minor=True)
  axes.legend(
    fontsize='x-small', ncols=2, handlelength=4, loc='center left', bbox_to_anchor=(1.0, 0.5)
  )
  with whole(path) as part:
    figure.savefig(part, dpi=120)


if __name__ == '__main__':
  cli.run(main)
