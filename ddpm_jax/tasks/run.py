"""A run's folder: its record, and the trained denoiser in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath

from ddpm_jax import data
from ddpm_jax.condition import Cond, earlier_record, from_record, to_record
from ddpm_jax.config import (
  Config,
  from_json,
  modules_of,
  provenance,
  upgraded,
)
from ddpm_jax.diffusion import Parameterization, Schedule
from ddpm_jax.diffusion.parameterization import Denoiser, Network
from ddpm_jax.diffusion.schedules import bind
from ddpm_jax.errors import InputError
from ddpm_jax.files import whole
from ddpm_jax.losses import OF_TEACHERS
from ddpm_jax.stores import check_reached, path_of, reaching
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.drawing import check_guidance
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.identity import Identity, identify, note_unknown, other_code, refuse_other
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, folder_of, whole_steps
from ddpm_jax.training.copies import CONFIG
from ddpm_jax.training.ema import decays
from ddpm_jax.training.task import (
  Frozen,
  Task,
  Use,
  frozen_record,
  load_frozen,
  refuse_changed,
)

Path = str | os.PathLike[str]

FORMAT = 2  # of config.json; 1 had the number of classes in place of the condition, and no task
LARGEST = 2**31  # no side of an image


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained task with all that it takes to use it.

  Attributes:
    experiment: everything built from the run's config; its data set holds shapes, no examples.
    task: what was trained.
    use: how it is used, bound to what it learned of its schedule.
    step: the number of updates that the parameters have had.
    trained: the task's parameters, {'network', 'schedule', 'loss'}.
    frozen: what the task reads besides.
  """

  experiment: Experiment
  task: Task
  use: Use
  step: int
  trained: Any
  frozen: Any

  @property
  def config(self) -> Config:
    return self.experiment.config

  @property
  def schedule(self) -> Schedule:
    """The path, with what was learned of it."""
    schedule: Any = self.experiment.schedule
    return bind(schedule, self.trained['schedule'])

  @property
  def parameterization(self) -> Parameterization:
    found: Any = self.experiment.parameterization
    return found

  @property
  def network(self) -> Network:
    """network(params, x, noise_label, cond) -> output."""
    return self.experiment.network

  @property
  def params(self) -> Any:
    """The network's parameters."""
    return self.trained['network']

  def rebuild(self, config: Config) -> Run:
    """The run under another config of the same experiment, as with another sampler."""
    experiment = build(config, self.experiment.dataset)
    check_guidance(experiment)
    task = make_task(experiment)
    use = used(task, self.trained)
    return dataclasses.replace(self, experiment=experiment, task=task, use=use)

  def denoiser(self, cond: Cond | None = None) -> Denoiser:
    """The denoiser for a condition, as {'label': (B,) int32}; {} for an unconditional network.

    Raises:
      InputError: the task is none of removing noise.
    """
    if self.use.denoiser is None:
      raise InputError(f"config.task.name: '{self.config.task.name}' has no denoiser")
    return self.use.denoiser(self.trained, cond or {})


def used(task: Task, params: Any = None) -> Use:
  """How a task's parameters are used, bound to them where they are given.

  Where the task does not say, its run can be loaded still, and every use raises InputError.
  """
  use = task.use or Use(generate=nothing_drawn)
  return use if params is None or use.bind is None else use.bind(params)


def nothing_drawn(*args: Any, **options: Any) -> Any:
  """The samples of a task that has none."""
  del args, options
  raise InputError('config.task.name: the task draws nothing by what it trains')


def load_run(
  workdir: Path, step: int | None = None, ema: bool = True, plugins: Collection[str] = ()
) -> Run:
  """Loads a trained network; its data need not be there.

  Args:
    workdir: the run's folder.
    step: of the checkpoint; None is the newest.
    ema: the averaged parameters, or those of the last step.
    plugins: the modules whose functions the run's config may name, as ('my_losses',): a folder is
      data, and no code is run that you don't name.

  Raises:
    InputError: there is no run, no such checkpoint, it cannot be read, or it needs other plug-ins.
  """
  with hosts.together():
    workdir = path_of(workdir, 'workdir')
    check_reached(workdir, 'workdir')
  record = understood(workdir, hosts.from_first(lambda: json_of(workdir)))
  config, shape = read_config(workdir, record, plugins), record['data']
  identity = identify(config)
  if changed := other_code(record['provenance'].get('plugins'), identity.plugins):
    logging.warning('%s: the code of %s has changed since training', workdir, ', '.join(changed))
  experiment = build(config, without_examples(shape))
  task = make_task(experiment)
  step, trained = load_params(task, config, workdir, step, ema)
  frozen = load_frozen(task)
  refuse_changed(record['frozen'], frozen_record(task, frozen))
  return Run(experiment, task, used(task, trained), step, trained, frozen)


def without_examples(shape: Mapping[str, Any]) -> data.Dataset:
  """A data set of these shapes that holds no examples."""
  cond = {name: np.zeros((0, *field.shape), field.dtype) for name, field in shape['cond'].items()}
  empty = data.Arrays(np.zeros((0, *shape['image_shape']), np.uint8), cond)
  return data.Dataset(train=empty, test=empty, **shape)


def load_params(
  task: Task, config: Config, workdir: epath.Path, step: int | None = None, ema: bool = True
) -> tuple[int, Any]:
  """The step of a checkpoint and the task's parameters in it."""
  params = jax.eval_shape(lambda: task.init(None)[0])
  like = {'ema': {next(iter(decays(config))): params}} if ema else {'params': params}
  folder = folder_of(workdir, config.checkpoint.folder)
  found = hosts.from_first(lambda: chosen_step(workdir, folder, step, identify(config)))
  with Checkpoints(folder) as checkpoints:
    part = checkpoints.restore_part(found, like)
  return found, next(iter(part['ema'].values())) if ema else part['params']


def chosen_step(
  workdir: epath.Path, folder: epath.Path, step: int | None, identity: Identity
) -> int:
  """The step of a checkpoint of the experiment, the newest where None is asked for."""
  steps = whole_steps(folder)
  if not steps:
    raise InputError(f'{workdir}: holds no checkpoint yet; train it first')
  if step is not None and step not in steps:
    raise InputError(f'{workdir}: no checkpoint of step {step}; there are {steps}')
  step = steps[-1] if step is None else step
  refuse_other(folder, step, identity, f'{workdir / CONFIG} is of another run')
  # A folder of checkpoints beside config.json is its own.
  if identity.config['checkpoint']['folder']:
    note_unknown(folder, step)
  return step


def read_record(workdir: epath.Path) -> dict[str, Any]:
  """What config.json says: 'config' as JSON, 'data' (its shape), 'frozen' and 'provenance'.

  Nothing that it names is looked up.

  Raises:
    InputError: there is none, or it cannot be read.
  """
  return understood(workdir, json_of(workdir))


def json_of(workdir: epath.Path) -> Any:
  """The JSON in config.json; raises InputError as `read_record`."""
  with refused(workdir), reaching(workdir / CONFIG):
    return json.loads((workdir / CONFIG).read_bytes())


def understood(workdir: epath.Path, record: Any) -> dict[str, Any]:
  """What the JSON of config.json says; raises InputError as `read_record`."""
  with refused(workdir):
    if record.get('format', FORMAT) > FORMAT:
      raise InputError('was written by a later version of ddpm_jax; read it with that')
    return {
      'config': upgraded(dict(record['config'])),
      'data': read_shape(record['data']),
      'frozen': dict(record['frozen']) if 'frozen' in record else None,
      'provenance': dict(record.get('provenance', {})),
    }


@contextlib.contextmanager
def refused(workdir: epath.Path) -> Iterator[None]:
  """Raises InputError for whatever is wrong with config.json."""
  path = workdir / CONFIG
  try:
    yield
  except FileNotFoundError:
    raise InputError(
      f'{workdir}: not the folder of a run (it has no config.json); make one by '
      f'python -m experiments.train --config=configs/… --workdir={workdir}'
    ) from None
  except InputError as error:
    raise InputError(f'{path}: {error}') from error
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
    raise InputError(f'{path}: cannot be read ({type(error).__name__}: {error})') from error


def read_shape(tree: Any) -> dict[str, Any]:
  """The shape of the data as config.json has it; raises InputError where it is none."""
  sides, num_levels, name = (tree[key] for key in ('image_shape', 'num_levels', 'name'))
  numbers = {f'image_shape[{axis}]': side for axis, side in enumerate(sides)}
  for key, number in (numbers | {'num_levels': num_levels}).items():
    if type(number) is not int or not 1 <= number < LARGEST:
      raise InputError(f'data.{key}: {number!r} is not a whole number from 1 to {LARGEST - 1}')
  if len(sides) != 3:
    raise InputError(f'data.image_shape: {sides!r} is not height, width and channels')
  if not isinstance(name, str):
    raise InputError(f'data.name: {name!r} is not a string')
  try:
    cond = from_record(tree['cond'] if 'cond' in tree else earlier_record(tree))
  except ValueError as error:
    raise InputError(f'data.{error}') from error
  return {'name': name, 'image_shape': tuple(sides), 'num_levels': num_levels, 'cond': cond}


def read_config(workdir: epath.Path, record: Mapping[str, Any], plugins: Collection[str]) -> Config:
  """The config in a record; raises InputError as `from_json`."""
  try:
    return from_json(record['config'], plugins=plugins)
  except InputError as error:
    raise InputError(f'{workdir / CONFIG}: {error}') from error
  except RecursionError as error:
    raise InputError(f'{workdir / CONFIG}: is nested too deep to be a config') from error


def write_record(workdir: epath.Path, experiment: Experiment, frozen: Mapping[str, Any]) -> None:
  """Writes config.json: the config, the shape of the data, what is frozen, code and machine."""
  dataset = experiment.dataset
  identity = identify(experiment.config)
  record = {
    'format': FORMAT,
    'config': identity.config,
    'data': {
      'name': dataset.name,
      'image_shape': dataset.image_shape,
      'num_levels': dataset.num_levels,
      'cond': to_record(dataset.cond),
    },
    'frozen': frozen,
    'provenance': provenance() | {'plugins': identity.plugins},
  }
  with whole(workdir / CONFIG) as part:
    part.write_text(json.dumps(record, indent=2) + '\n')


def init_from(config: Config, plugins: Collection[str] = ()) -> dict[str, Any]:
  """The parameters, averaged, of the run that `training.init_from` names, but for its loss's own.

  That run may name functions of the modules `plugins` and of those that this experiment names.

  Raises:
    InputError: that run has no checkpoint, or the loss cannot learn from it.
  """
  source: Any = config.training.init_from
  try:
    run = load_run(source, plugins=(*plugins, *modules_of(config)))
  except InputError as error:
    raise InputError(f'config.training.init_from: {error}') from error
  check_teacher(config, run.config)
  return without_loss(run.trained)


def given(first: Frozen, params: Any) -> Any:
  """The parameters of another run in the types of `params`, whose shapes they must have.

  They are copies: a step donates its state, and what is frozen may be the same arrays.

  Raises:
    InputError: they have others.
  """
  found, here = first.load(), without_loss(params)
  if shapes(found) != shapes(here):
    raise InputError(
      f'config.training.init_from: the network in {first.source} has parameters of other names or '
      'shapes'
    )
  return jax.tree.map(lambda leaf, want: jnp.array(leaf, want.dtype, copy=True), found, here)


def without_loss(params: Mapping[str, Any]) -> dict[str, Any]:
  """The branches of a task's parameters that another run may begin with: the loss's begin anew."""
  return {name: branch for name, branch in params.items() if name != 'loss'}


def check_teacher(config: Config, teacher: Config) -> None:
  """Raises InputError where the loss would learn from a run that means something else by its xt."""
  name = config.loss.name
  if name not in OF_TEACHERS:
    return
  predicted = OF_TEACHERS[name] or config.parameterization.name
  ours, theirs = config.parameterization.arguments, teacher.parameterization.arguments
  same = teacher.parameterization.name == predicted and all(
    ours.get(key) == theirs.get(key) for key in ('sigma_data', 'noise_label')
  )
  for field, agrees, mend in (
    ('schedule', teacher.schedule == config.schedule, 'the same schedule'),
    ('parameterization', same, f"'{predicted}' with the same sigma_data and noise_label"),
  ):
    if not agrees:
      raise InputError(
        f"config.training.init_from: '{name}' learns from a run with config.{field} of {mend}, "
        f'which that in {config.training.init_from} has not'
      )


def shapes(tree: Any) -> Any:
  """The shape of every leaf."""
  return jax.tree.map(lambda leaf: leaf.shape, tree)
