"""A run's folder: its record, and the trained denoiser in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax import Array

from ddpm_jax import data
from ddpm_jax.config import (
  Config,
  from_json,
  modules_of,
  plugin_sources,
  provenance,
  to_json,
)
from ddpm_jax.diffusion import Parameterization, Schedule
from ddpm_jax.diffusion.parameterization import Denoiser, Network
from ddpm_jax.diffusion.schedules import parameters
from ddpm_jax.errors import InputError
from ddpm_jax.files import whole
from ddpm_jax.losses import OF_TEACHERS
from ddpm_jax.stores import check_reached, path_of, reaching
from ddpm_jax.training import experiment as experiments
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, folder_of, whole_steps
from ddpm_jax.training.copies import CONFIG
from ddpm_jax.training.denoising import bind_schedule, check_guidance
from ddpm_jax.training.experiment import Experiment
from ddpm_jax.training.identity import note_unknown, refuse_other

Path = str | os.PathLike[str]

FORMAT = 1  # of config.json
LARGEST = 2**31  # no side of an image and no number of classes
SHAPE = ('name', 'image_shape', 'num_levels', 'num_classes', 'classes')


@dataclasses.dataclass(frozen=True)
class Run:
  """A trained network with all that it takes to use it; `generate` takes its parts.

  Attributes:
    experiment: everything built from the run's config, and bound to the schedule that it learned,
      if any; its data set holds shapes, no examples.
    step: the number of updates that `params` have had.
    params: the network's.
  """

  experiment: Experiment
  step: int
  params: Any

  @property
  def config(self) -> Config:
    return self.experiment.config

  @property
  def schedule(self) -> Schedule:
    return self.experiment.schedule

  @property
  def parameterization(self) -> Parameterization:
    return self.experiment.parameterization

  @property
  def network(self) -> Network:
    """network(params, x, noise_label, cond) -> output."""
    return self.experiment.network

  def rebuild(self, config: Config) -> Experiment:
    """What another config of the same experiment makes, on the schedule that this run learned."""
    experiment = experiments.build(config, self.experiment.dataset)
    check_guidance(experiment)
    return bind_schedule(experiment, {'schedule': parameters(self.schedule)})

  def denoiser(self, cond: dict[str, Array] | None = None) -> Denoiser:
    """The denoiser for a condition: {'label': (B,) int32}, or {} for an unconditional network."""
    return experiments.denoiser(self.experiment, self.params, cond or {})


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
  record = hosts.from_first(lambda: read_record(workdir))
  config, shape = read_config(workdir, record, plugins), record['data']
  if changed := changed_plugins(record, config):
    logging.warning('%s: the code of %s has changed since training', workdir, ', '.join(changed))
  pixels = np.zeros((0, *shape['image_shape']), np.uint8)
  empty = data.Arrays(pixels, np.zeros(0, np.int32))
  experiment = experiments.build(config, data.Dataset(train=empty, test=empty, **shape))
  step, params = load_params(experiment, workdir, step, ema)
  return Run(bind_schedule(experiment, params), step, params['network'])


def load_params(
  experiment: Experiment, workdir: epath.Path, step: int | None = None, ema: bool = True
) -> tuple[int, dict[str, Any]]:
  """The step of a checkpoint and its parameters, {'network', 'schedule', 'loss'}."""
  params = jax.eval_shape(lambda: experiments.init_params(experiment))
  like = {'ema': {next(iter(experiment.decays)): params}} if ema else {'params': params}
  folder = folder_of(workdir, experiment.config.checkpoint.folder)
  found = hosts.from_first(lambda: chosen_step(workdir, folder, step, experiment.config))
  with Checkpoints(folder) as checkpoints:
    part = checkpoints.restore_part(found, like)
  return found, next(iter(part['ema'].values())) if ema else part['params']


def chosen_step(workdir: epath.Path, folder: epath.Path, step: int | None, config: Config) -> int:
  """The step of a checkpoint of the experiment, the newest where None is asked for."""
  steps = whole_steps(folder)
  if not steps:
    raise InputError(f'{workdir}: holds no checkpoint yet; train it first')
  if step is not None and step not in steps:
    raise InputError(f'{workdir}: no checkpoint of step {step}; there are {steps}')
  step = steps[-1] if step is None else step
  refuse_other(folder, step, config, f'{workdir / CONFIG} is of another run')
  if config.checkpoint.folder:  # else config.json, in the folder above, says whose it is
    note_unknown(folder, step)
  return step


def read_record(workdir: epath.Path) -> dict[str, Any]:
  """What config.json says: its 'config' as JSON, the shape of the 'data', and its 'provenance'.

  Nothing that it names is looked up.

  Raises:
    InputError: there is none, or it cannot be read.
  """
  path = workdir / CONFIG
  try:
    with reaching(path):
      record = json.loads(path.read_bytes())
    if record.get('format', FORMAT) > FORMAT:
      raise InputError('was written by a later version of ddpm_jax; read it with that')
    known = {'config': dict(record['config']), 'data': read_shape(record['data'])}
    return known | {'provenance': dict(record.get('provenance', {}))}
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
  shape = {name: tree[name] for name in SHAPE if name != 'classes'}
  sides = shape['image_shape']
  numbers = {f'image_shape[{axis}]': side for axis, side in enumerate(sides)}
  numbers |= {name: shape[name] for name in ('num_levels', 'num_classes')}
  if shape['num_classes'] is None:
    del numbers['num_classes']
  for name, number in numbers.items():
    if type(number) is not int or not 1 <= number < LARGEST:
      raise InputError(f'data.{name}: {number!r} is not a whole number from 1 to {LARGEST - 1}')
  if len(sides) != 3:
    raise InputError(f'data.image_shape: {sides!r} is not height, width and channels')
  if not isinstance(shape['name'], str):
    raise InputError(f'data.name: {shape["name"]!r} is not a string')
  classes = read_classes(tree.get('classes'), shape['num_classes'])
  return shape | {'image_shape': tuple(sides), 'classes': classes}


def read_classes(classes: Any, num_classes: int | None) -> tuple[int, ...] | None:
  """Those with a training example; None where the record is of before they were kept."""
  if classes is None:
    return None
  known = range(num_classes or 0)
  if not isinstance(classes, list) or not all(type(k) is int and k in known for k in classes):
    raise InputError(f'data.classes: {classes!r} are not all numbers of classes')
  return tuple(classes)


def read_config(workdir: epath.Path, record: Mapping[str, Any], plugins: Collection[str]) -> Config:
  """The config in a record; raises InputError as `from_json`."""
  try:
    return from_json(record['config'], plugins=plugins)
  except InputError as error:
    raise InputError(f'{workdir / CONFIG}: {error}') from error
  except RecursionError as error:
    raise InputError(f'{workdir / CONFIG}: is nested too deep to be a config') from error


def changed_plugins(
  record: Mapping[str, Any], config: Config, free: Collection[str] = ()
) -> list[str]:
  """The modules behind a config's plug-ins that are not as in the record, if that says how.

  Those of the settings `free` may be others.
  """
  before = record['provenance'].get('plugins')
  if not isinstance(before, Mapping):
    return []
  now = plugin_sources(config, free).items()
  return [name for name, digest in now if before.get(name) != digest]


def write_record(workdir: epath.Path, experiment: Experiment) -> None:
  """Writes config.json: the config, the shape of the data, the code and the machine."""
  record = {
    'format': FORMAT,
    'config': to_json(experiment.config),
    'data': {name: getattr(experiment.dataset, name) for name in SHAPE},
    'provenance': provenance() | {'plugins': plugin_sources(experiment.config)},
  }
  with whole(workdir / CONFIG) as part:
    part.write_text(json.dumps(record, indent=2) + '\n')


def initial_params(experiment: Experiment, plugins: Collection[str] = ()) -> dict[str, Any] | None:
  """{'network', 'schedule'} averaged, of the run `training.init_from` names; None where unset.

  That run may name functions of the modules `plugins` and of those that this experiment names.

  Raises:
    InputError: that run has no checkpoint, its parameters have other shapes, or the loss cannot
      learn from it.
  """
  source = experiment.config.training.init_from
  if source is None:
    return None
  try:
    run = load_run(source, plugins=(*plugins, *modules_of(experiment.config)))
    _, params = load_params(run.experiment, path_of(source, 'workdir'))
  except InputError as error:
    raise InputError(f'config.training.init_from: {error}') from error
  check_teacher(experiment.config, run.config)
  here = jax.eval_shape(lambda: experiments.init_params(experiment))
  params, here = ({key: tree[key] for key in ('network', 'schedule')} for tree in (params, here))
  if shapes(params) != shapes(here):
    raise InputError(
      f'config.training.init_from: the network in {source} has parameters of other names or shapes'
    )
  return jax.tree.map(lambda leaf, want: leaf.astype(want.dtype), params, here)


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
