r"""Compares variants of an experiment: trains each at several seeds, measures and tells them apart.

  python -m experiments.ablate --config=configs/digits.py --workdir=runs/losses --seeds=3 \
      --vary=config.loss.name=simple,variational --vary=config.schedule.name=linear,cosine
  python -m experiments.ablate --config=configs/digits_losses.py --workdir=runs/losses --workers=2
  python -m experiments.ablate --workdir=runs/losses

The second takes the variants from the file's sweep(); the last goes on with the sweep in a folder,
as any of them does when it is started again. Writes results.csv, bars.png, curves.png, levels.png
and report.html to the folder, whose cells/ holds each training run.
"""

import contextlib
import importlib.util
import sys
from typing import Any

import jax
import rich
from absl import flags
from etils import epath
from ml_collections import config_flags

from ddpm_jax.ablation import COMBINATIONS, vary
from ddpm_jax.ablation import figures as plots
from ddpm_jax.ablation.cell import run_cell
from ddpm_jax.ablation.page import make_page, write_page
from ddpm_jax.ablation.plan import (
  Cell,
  Plan,
  load_plan,
  make_plan,
  naming,
  refuse_stale,
  save_plan,
)
from ddpm_jax.ablation.results import left_out, make_figures, read_finished, write_csv
from ddpm_jax.ablation.runners import LOG, here, lines, pinned, shared, submit, workers
from ddpm_jax.ablation.sweep import Sweep, split_values
from ddpm_jax.ablation.table import LEGEND, make_table
from ddpm_jax.errors import InputError, unknown
from ddpm_jax.files import check_writable
from ddpm_jax.stores import on_disk
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.run import used
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training import backend
from ddpm_jax.training.parallel import check_batch_size
from ddpm_jax.training.task import NoMeasure
from experiments import cli

CONFIG = cli.config_flag(required=False)
WORKDIR = flags.DEFINE_string('workdir', None, "The sweep's folder.", required=True)
VARY = flags.DEFINE_multi_string('vary', [], 'A setting and its values: config.loss.name=a,b.')
COMBINE = flags.DEFINE_string('combine', 'grid', 'Several --vary: grid, zipped or listed.')
SEEDS = flags.DEFINE_integer('seeds', 3, 'How many of each variant.', 1, 10_000)
BUDGET = flags.DEFINE_string(
  'budget', None, "Of each cell: 1500steps, 96000examples or 60seconds; unset: the config's steps."
)
BASELINE = flags.DEFINE_string('baseline', None, 'The variant to compare with; unset: the first.')
WORKERS = flags.DEFINE_integer(
  'workers', 0, 'Cells at a time, each a process of its own; 0: in this one.', 0, 10_000
)
PER_DEVICE = flags.DEFINE_bool('per_device', False, 'A cell at a time on each device of this host.')
SLURM = flags.DEFINE_bool('slurm', False, 'Submit the cells to Slurm, and end.')
OPTION = flags.DEFINE_multi_string('option', [], "Of Slurm's jobs, as timeout_min=60.")
PRINT = flags.DEFINE_bool('print', False, 'Print the command of each missing cell, and end.')
PLUGINS = cli.plugins_flag()
CELL = flags.DEFINE_string('cell', None, 'Run this cell of the folder alone, and end.')


def main() -> None:
  """The command."""
  workdir = on_disk(WORKDIR.value, '--workdir')
  if CELL.value is not None:
    run_one(load_plan(workdir, PLUGINS.value), CELL.value)
    return
  elsewhere = WORKERS.value or PER_DEVICE.value or SLURM.value or PRINT.value
  if elsewhere:  # The devices are the workers'.
    jax.config.update('jax_platforms', 'cpu')
  plan = planned(workdir) if CONFIG.value else continued(workdir)
  baseline = chosen_baseline(plan)
  check(plan, alone=not elsewhere)
  check_writable(workdir, '--workdir')
  save_plan(plan)
  missing = [cell for cell in plan.cells if not cell.done]
  if PRINT.value:
    print('\n'.join(lines(plan, missing)))
    return
  if SLURM.value and missing:
    jobs = submit(plan, missing, dict(cli.read_option(text) for text in OPTION.value))
    print(f'submitted {len(jobs)} jobs to Slurm: {jobs[0]} … {jobs[-1]}; when they are done,')
    print(f'python -m experiments.ablate --workdir={workdir}')
    return
  failed = run(plan, missing)
  tell(plan, baseline)
  if failed:
    sys.exit(1)


def planned(workdir: epath.Path) -> Plan:
  """The plan that the flags and the config file make."""
  config = CONFIG.value
  return make_plan(
    workdir,
    read_sweep(),
    lambda variant: cli.overridden(config, variant),
    SEEDS.value,
    BUDGET.value,
    PLUGINS.value,
  )


def continued(workdir: epath.Path) -> Plan:
  """The plan in the folder."""
  for flag in (VARY, COMBINE, SEEDS, BUDGET):
    if flag.present:
      raise InputError(f'--{flag.name}: of which experiment? give --config=FILE too')
  return load_plan(workdir, PLUGINS.value)


def read_sweep() -> Sweep:
  """The variants of --vary, or else those of the config file's sweep()."""
  if not VARY.value:
    return sweep_of_file(config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0])
  if COMBINE.value not in COMBINATIONS:
    raise InputError(unknown(COMBINE.value, COMBINATIONS, '--combine'))
  return COMBINATIONS[COMBINE.value](*map(read_vary, VARY.value))


def read_vary(text: str) -> Sweep:
  """'config.loss.name=simple,variational' as a variant for each value."""
  field, equals, values = text.partition('=')
  if not equals:
    raise InputError(f"--vary: '{text}' is not of the form config.a.b=value,value")
  field = field.strip().removeprefix('config.')
  parts = split_values(values)
  return vary(field, *(cli.read_value(CONFIG.value, field, part) for part in parts))


def sweep_of_file(file: str) -> Sweep:
  """What sweep() of a config file returns, a list of {'loss.name': 'simple'}."""
  spec: Any = importlib.util.spec_from_file_location('config_of_sweep', file)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, 'sweep'):
    raise InputError(f'{file}: has no function sweep(); give --vary=config.a.b=value,value')
  try:
    found = module.sweep()
  except (Exception, SystemExit) as error:
    raise InputError(cli.blame(error, file) or f'{file}: sweep(): {error}') from error
  if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
    raise InputError(f"{file}: sweep() must return a list of {{'group.setting': value}}")
  return [{name.removeprefix('config.'): v for name, v in each.items()} for each in found]


def chosen_baseline(plan: Plan) -> int:
  """The number of the variant that the others are compared with."""
  if BASELINE.value is None:
    return 0
  if BASELINE.value not in plan.labels:
    raise InputError(unknown(BASELINE.value, plan.labels, '--baseline'))
  return plan.labels.index(BASELINE.value)


def check(plan: Plan, alone: bool) -> None:
  """Makes every variant's objects, so that what cannot be is refused before anything is trained."""
  for label, config in zip(plan.labels, plan.configs, strict=True):
    with naming(label):
      with contextlib.suppress(NoMeasure):  # the cell says so
        used(make_task(build(config))).bits()
      if alone:
        check_batch_size(config.dataset.batch_size, len(jax.devices()))


def run_one(plan: Plan, name: str) -> None:
  """One cell, for whoever started this process."""
  cell = plan.cell(name)
  backend.prepare(cell.config.training.deterministic)
  run_cell(cell, plan.seconds, plan.plugins)


def run(plan: Plan, missing: list[Cell]) -> list[Cell]:
  """Runs the missing cells with a line for each; returns those that failed."""
  done = len(plan.cells) - len(missing)
  print(
    f'{len(plan.cells)} cells: {len(plan.variants)} variants × {plan.seeds} seeds'
    + (f'; {done} are done' if done else ''),
    flush=True,
  )
  if PER_DEVICE.value:
    outcomes = workers(plan, missing, pinned())
  elif WORKERS.value:
    outcomes = workers(plan, missing, shared(WORKERS.value))
  else:
    backend.prepare(any(config.training.deterministic for config in plan.configs))
    outcomes = here(plan, missing)
  failed = []
  with contextlib.closing(outcomes):
    for count, (cell, seconds, error) in enumerate(outcomes, done + 1):
      words = f'{seconds:.0f} s' if error is None else f'failed: {error} (see {cell.folder / LOG})'
      print(f'[{count}/{len(plan.cells)}] {cell}: {words}', flush=True)
      failed += [cell] if error else []
  return failed


def tell(plan: Plan, baseline: int) -> None:
  """The table, and the files."""
  refuse_stale(plan)
  finished, workdir = read_finished(plan), plan.workdir
  figures = make_figures(plan, finished, baseline)
  write_csv(workdir / 'results.csv', plan, finished)
  panels = {
    'bars': plots.bar_panels(figures),
    'curves': plots.curve_panels(plan),
    'levels': plots.level_panels(figures),
  }
  pictures = [
    path for name, each in panels.items() for path in plots.write_png(workdir / f'{name}.png', each)
  ]
  page = write_page(workdir / 'report.html', make_page(plan, finished, figures, panels))
  if figures:
    rich.print(make_table(f'{len(finished)} of {len(plan.cells)} cells', figures))
    print('\n'.join([LEGEND, *left_out(finished)]))
  print('\n'.join(map(str, [workdir / 'results.csv', *pictures, page])))


if __name__ == '__main__':
  cli.run(main)
