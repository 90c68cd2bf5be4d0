"""The one place where a config becomes objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from ddpm_jax import data, models
from ddpm_jax.codec import CODECS
from ddpm_jax.config.entries import find_entry
from ddpm_jax.config.settings import Config, naming
from ddpm_jax.diffusion import PARAMETERIZATIONS, SCHEDULES
from ddpm_jax.diffusion.parameterization import VARIANCE_HEADS
from ddpm_jax.diffusion.schedules import Discrete, interpolate, zero_terminal_snr
from ddpm_jax.errors import InputError
from ddpm_jax.losses import FACTORS, LOSSES, PRESETS, LossOutput, make_factors
from ddpm_jax.samplers import SAMPLERS, SOLVERS
from ddpm_jax.tasks.compatibility import check
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.training import optimizers


def build(config: Config, dataset: data.Dataset | None = None) -> Experiment:
  """Makes every object that a config names.

  Args:
    config: an experiment.
    dataset: where given, it stands for the config's own, which is not opened.

  Raises:
    InputError: naming the field, where an entry refuses its arguments or the data is not there.
  """
  made: dict[str, Any] = {
    'dataset': make_dataset(config, dataset),
    'learning_rate': rate_of(config.optimizer, config.training.num_steps),
  }
  for group, (table, supplied) in PARTS.items():
    made[group] = getattr(config, group).build(table, **supplied(made))
  loss = config.loss.bind(LOSSES) if config.loss.name else no_loss
  factors = make_factors(config.loss.name, **given_factors(config.loss))
  experiment = Experiment(
    config=config,
    dataset=made['dataset'],
    codec=made['codec'],
    schedule=changed(config.schedule, made['schedule']),
    parameterization=headed(config.parameterization, made['parameterization']),
    module=made['model'],
    network=models.make_network(made['model']),
    loss=loss,
    factors=factors,
    optimizer=optimizers.clipped(made['optimizer'], config.optimizer.clip_norm),
    learning_rate=made['learning_rate'],
    sampler=made['sampler'],
  )
  check(experiment)
  return experiment


def no_loss(*args: Any) -> LossOutput:
  """Stands for the loss of a task that has one of its own."""
  del args
  raise InputError('config.loss.name: unset, and the task asks for it; choose one of LOSSES')


# Of the groups of a config in the order in which they are made: their table, and what an entry is
# called with besides its settings, of what is made before it.
PARTS: dict[str, tuple[Mapping[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]] = {
  'schedule': (SCHEDULES, lambda made: {}),
  'parameterization': (PARAMETERIZATIONS, lambda made: {}),
  'sampler': (SAMPLERS | SOLVERS, lambda made: {}),
  'codec': (
    CODECS,
    lambda made: {'shape': made['dataset'].image_shape, 'num_levels': made['dataset'].num_levels},
  ),
  'model': (
    models.MODELS,
    lambda made: {'spec': made['dataset'].cond, 'out_channels': made['codec'].shape[-1]},
  ),
  'optimizer': (optimizers.OPTIMIZERS, lambda made: {'learning_rate': made['learning_rate']}),
}
CHANGES = {'zero_terminal_snr': zero_terminal_snr, 'continuous': interpolate}


def make_dataset(config: Config, dataset: data.Dataset | None = None) -> data.Dataset:
  """The data set that a config names, or the one given in its place, once it is one."""
  dataset = dataset or config.dataset.build(data.DATASETS, data.source)
  data.check_examples(dataset)
  return dataset if config.dataset.conditional else dataclasses.replace(dataset, cond={})


def headed(wanted: Any, parameterization: Any) -> Any:
  """The parameterization, which reads a learned variance as the settings say; None for none."""
  head = VARIANCE_HEADS[wanted.variance_head]
  return parameterization and dataclasses.replace(parameterization, head=head)


def given_factors(loss: Any) -> dict[str, Callable]:
  """The factors that a config names itself.

  Raises:
    InputError: the loss is no product, and would make no use of them.
  """
  if loss.name in LOSSES and loss.name not in PRESETS:
    for factor in FACTORS:
      if getattr(loss, factor):
        raise InputError(
          f"config.loss.{factor}: '{loss.name}' is no product of factors and makes no use of it; "
          'leave it unset'
        )
  return {
    factor: find_entry(getattr(loss, factor), table, f'config.loss.{factor}')
    for factor, table in FACTORS.items()
    if getattr(loss, factor)
  }


def rate_of(wanted: Any, num_steps: int) -> optax.Schedule:
  """The learning rate that a config's optimizer has in a run of so many steps."""
  return optimizers.learning_rate(
    wanted.lr_schedule, wanted.learning_rate, wanted.warmup_steps, num_steps
  )


def changed(wanted: Any, schedule: Any) -> Any:
  """The schedule, changed as the settings say; None where there is none.

  Raises:
    InputError: a change is asked for that is one of discrete chains, or not possible.
  """
  for name, change in CHANGES.items():
    if not getattr(wanted, name):
      continue
    if not isinstance(schedule, Discrete):
      raise InputError(f"config.schedule.{name}: '{wanted.name}' is not a discrete chain")
    with naming('config.schedule', otherwise=f'config.schedule.{name}'):
      schedule = change(schedule)
  return schedule
