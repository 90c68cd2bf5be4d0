"""What a sweep is to do: its cells, how long each trains, and the folder that they live in."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from ddpm_jax.ablation.sweep import Sweep, Variant
from ddpm_jax.config import Config, differing, from_json, modules_of, to_json
from ddpm_jax.errors import InputError, unknown
from ddpm_jax.files import whole
from ddpm_jax.tasks.identity import identify, other_code
from ddpm_jax.tasks.run import read_record

RECORD = 'sweep.json'
RESULT = 'result.json'
FORMAT = 1  # of sweep.json
# What may differ between a sweep and its continuation: it changes no result.
FREE = ('parallel', 'checkpoint', 'logging')


class Cell(NamedTuple):
  """One training run of a sweep.

  Attributes:
    variant: its number.
    label: the variant's name.
    seed: the number s; the config's own seed is the sweep's first one plus s.
    config: the experiment.
    folder: an ordinary run's.
  """

  variant: int
  label: str
  seed: int
  config: Config
  folder: epath.Path

  @property
  def name(self) -> str:
    """What --cell takes."""
    return f'{self.folder.parent.name}/{self.folder.name}'

  @property
  def done(self) -> bool:
    """Whether its result is there."""
    return (self.folder / RESULT).exists()

  def __str__(self) -> str:
    return f'{self.label}, seed {self.seed}'


@dataclasses.dataclass(frozen=True)
class Plan:
  """A sweep over seeds.

  Attributes:
    workdir: its folder.
    variants: the overrides of each.
    configs: the experiment of each, at the first seed.
    seeds: how many.
    seconds: of training for each cell; None where the configs' num_steps are the budget.
    plugins: the modules that a person named beside the experiments; see `load_run`.
  """

  workdir: epath.Path
  variants: tuple[Variant, ...]
  configs: tuple[Config, ...]
  seeds: int
  seconds: float | None = None
  plugins: tuple[str, ...] = dataclasses.field(default=(), compare=False)

  @property
  def labels(self) -> list[str]:
    """A short name of each variant."""
    return labels(self.variants)

  @property
  def fields(self) -> list[str]:
    """The settings that some variant overrides."""
    return list(dict.fromkeys(itertools.chain(*self.variants)))

  @property
  def modules(self) -> list[str]:
    """All that a person named, in the experiments or beside them."""
    return sorted({*self.plugins, *itertools.chain(*map(modules_of, self.configs))})

  @property
  def cells(self) -> list[Cell]:
    """Seed by seed, so that a sweep cut short has compared every variant."""
    numbers = range(len(self.variants))
    return [self._cell(n, seed) for seed, n in itertools.product(range(self.seeds), numbers)]

  def _cell(self, number: int, seed: int) -> Cell:
    label, config = self.labels[number], self.configs[number]
    folder = self.workdir / 'cells' / f'{number:02d}-{slug(label)}' / f'seed_{seed}'
    return Cell(number, label, seed, dataclasses.replace(config, seed=config.seed + seed), folder)

  def cell(self, name: str) -> Cell:
    """The cell of that name; raises InputError where there is none."""
    cells = {cell.name: cell for cell in self.cells}
    if name not in cells:
      raise InputError(unknown(name, cells, '--cell'))
    return cells[name]


def make_plan(
  workdir: epath.Path,
  sweep: Sweep,
  configure: Callable[[Variant], Config],
  seeds: int,
  budget: str | None = None,
  plugins: Collection[str] = (),
) -> Plan:
  """A plan whose every config was read and given its budget.

  Args:
    workdir: its folder.
    sweep: the variants.
    configure: variant -> its experiment.
    seeds: how many of each.
    budget: as '1500steps', '96000examples' or '60seconds'; None: what the configs say.
    plugins: the modules whose functions runs of `training.init_from` may name.

  Raises:
    InputError: there is no variant or seed, two are one experiment, or one cannot be read.
  """
  if not sweep:
    raise InputError('the sweep has no variants; give --vary=config.a.b=value,value')
  if seeds < 1:
    raise InputError(f'--seeds: {seeds} is not a positive number')
  if any('seed' in variant for variant in sweep):
    raise InputError('config.seed: is what --seeds varies; leave it out of the sweep')
  names = labels(sweep)
  amount, unit = read_budget(budget) if budget else (0.0, None)
  configs = []
  for name, variant in zip(names, sweep, strict=True):
    with naming(name):
      configs.append(UNITS[unit](configure(variant), amount))
  for (i, a), (j, b) in itertools.combinations(enumerate(configs), 2):
    if a == b:
      raise InputError(f"variants '{names[i]}' and '{names[j]}' are one and the same experiment")
  seconds = amount if unit == 'seconds' else None
  variants = tuple(map(tupled, sweep))
  return Plan(workdir, variants, tuple(configs), seeds, seconds, tuple(plugins))


@contextlib.contextmanager
def naming(label: str) -> Iterator[None]:
  """Says of which variant an InputError is."""
  try:
    yield
  except InputError as error:
    raise InputError(f"variant '{label}': {error}") from error


def read_budget(text: str) -> tuple[float, str]:
  """'1500steps' as (1500, 'steps')."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*(steps|examples|seconds)', text.strip())
  if not match or not 0 < float(match[1]) < 1e15:
    raise InputError(f"--budget: '{text}' is not of the form 1500steps, 96000examples or 60seconds")
  return float(match[1]), match[2]


def of_steps(config: Config, steps: float) -> Config:
  """The config with so many steps."""
  if steps != int(steps) or steps >= 2**31:
    raise InputError(f'--budget: {steps:g} is no whole number of steps below 2³¹')
  training = dataclasses.replace(config.training, num_steps=int(steps))
  return dataclasses.replace(config, training=training)


def of_examples(config: Config, examples: float) -> Config:
  """The config with as many steps as see so many examples."""
  size = config.dataset.batch_size
  if examples % size:
    raise InputError(f'--budget: {examples:g} examples are no whole number of batches of {size}')
  return of_steps(config, examples // size)


UNITS: dict[str | None, Callable[[Config, float], Config]] = {
  None: lambda config, _: config,
  'steps': of_steps,
  'examples': of_examples,
  'seconds': lambda config, _: config,  # in each cell, which measures how fast it goes
}


def labels(variants: Sequence[Variant]) -> list[str]:
  """Short names: the values of names alone, of other settings 'key=value'; in full if need be."""
  short = [', '.join(brief(*item) for item in v.items()) or 'as configured' for v in variants]
  if len(set(short)) == len(short):
    return short
  return [', '.join(f'{k}={value}' for k, value in v.items()) or 'as configured' for v in variants]


def brief(field: str, value: Any) -> str:
  """'simple' for loss.name=simple; 'num_steps=100' for schedule.num_steps=100."""
  key = field.rpartition('.')[2]
  return str(value) if key == 'name' else f'{key}={value}'


def slug(label: str) -> str:
  """A label as part of a path."""
  return re.sub(r'[^\w.=+-]+', '_', label).strip('_')[:60]


def save_plan(plan: Plan) -> None:
  """Writes the plan to its folder, which it may share with an earlier state of itself alone.

  Raises:
    InputError: another sweep is there, or cells that other code trained; the message names what
      differs.
  """
  path = plan.workdir / RECORD
  if path.exists():
    refuse_other(read_sweep(plan.workdir), plan)
    refuse_stale(plan)
  elif (plan.workdir / 'config.json').exists() or (plan.workdir / 'cells').exists():
    raise InputError(f'{plan.workdir}: holds no sweep but other files; give another --workdir')
  with whole(path) as part:
    part.write_text(json.dumps(as_json(plan), indent=2) + '\n')


def as_json(plan: Plan) -> dict[str, Any]:
  """What sweep.json holds."""
  rows = zip(plan.labels, plan.variants, plan.configs, strict=True)
  return {
    'format': FORMAT,
    'seeds': plan.seeds,
    'seconds': plan.seconds,
    'variants': [
      {'label': label, 'overrides': variant, 'config': to_json(config)}
      for label, variant, config in rows
    ],
  }


def load_plan(workdir: epath.Path, plugins: Collection[str] = ()) -> Plan:
  """Reads what `save_plan` wrote.

  Args:
    workdir: the sweep's folder.
    plugins: the modules whose functions the experiments there may name, as in `load_run`.

  Raises:
    InputError: there is none, it cannot be read, or it needs other plug-ins.
  """
  record = read_sweep(workdir)
  try:
    variants = tuple(tupled(row['overrides']) for row in record['variants'])
    configs = tuple(from_json(row['config'], plugins=plugins) for row in record['variants'])
  except InputError as error:
    raise InputError(f'{workdir / RECORD}: {error}') from error
  except RecursionError as error:
    raise InputError(f'{workdir / RECORD}: is nested too deep to be a sweep') from error
  return Plan(workdir, variants, configs, record['seeds'], record['seconds'], tuple(plugins))


def read_sweep(workdir: epath.Path) -> dict[str, Any]:
  """What sweep.json says, of which nothing is looked up.

  Raises:
    InputError: there is none, or it cannot be read.
  """
  path = workdir / RECORD
  try:
    record = json.loads(path.read_text())
    if record.get('format', FORMAT) > FORMAT:
      raise InputError('was written by a later version of ddpm_jax; read it with that')
    rows = [
      {'label': row['label'], **{key: dict(row[key]) for key in ('overrides', 'config')}}
      for row in record['variants']
    ]
    seeds, seconds = record['seeds'], record['seconds']
    if not isinstance(seeds, int) or not isinstance(seconds, (int, float, type(None))):
      raise TypeError(f'seeds {seeds!r} and seconds {seconds!r} are no numbers')
    return {'variants': rows, 'seeds': seeds, 'seconds': seconds}
  except FileNotFoundError:
    raise InputError(
      f'{workdir}: holds no sweep yet; start one with --config=FILE and --vary or sweep()'
    ) from None
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f'{path}: cannot be read ({error})') from error


def tupled(tree: Any) -> Any:
  """A tree read from JSON, with tuples again where it has lists."""
  if isinstance(tree, dict):
    return {key: tupled(value) for key, value in tree.items()}
  return tuple(map(tupled, tree)) if isinstance(tree, (list, tuple)) else tree


def refuse_other(old: Mapping[str, Any], plan: Plan) -> None:
  """Raises InputError unless a sweep's record and a plan differ in the number of seeds alone."""
  new = as_json(plan)
  labels = [row['label'] for row in old['variants']]
  if labels != plan.labels:
    differ = f'its variants: {"; ".join(map(str, labels))}'
  elif old['seconds'] != plan.seconds:
    differ = f'its budget: {old["seconds"] or "steps"} against {plan.seconds or "steps"}'
  else:
    pairs = zip(old['variants'], new['variants'], strict=True)
    fields = dict.fromkeys(
      field for a, b in pairs for field in differing(a['config'], b['config'], FREE)
    )
    differ = ', '.join(f'config.{field}' for field in fields)
  if differ:
    raise InputError(
      f'{plan.workdir}: holds another sweep, which differs in {differ}; give another --workdir'
    )


def changed_plugins(cell: Cell) -> list[str]:
  """The modules behind a cell's plug-ins that have changed since it was begun."""
  before = read_record(cell.folder)['provenance'].get('plugins')
  return other_code(before, identify(cell.config).plugins)


def refuse_stale(plan: Plan) -> None:
  """Raises InputError where the code of a plug-in has changed since a cell was trained by it."""
  begun = [cell for cell in plan.cells if (cell.folder / 'config.json').exists()]
  changes = {cell.name: changed_plugins(cell) for cell in begun}
  stale = [name for name, changed in changes.items() if changed]
  if stale:
    modules = ', '.join(sorted({*itertools.chain(*changes.values())}))
    more = f' and {len(stale) - 3} more' if stale[3:] else ''
    raise InputError(
      f'{plan.workdir}: the code of {modules} has changed since cells were trained by it, '
      f'{", ".join(stale[:3])}{more}; restore it, remove their folders in {plan.workdir / "cells"} '
      'to train them anew, or give another --workdir'
    )
