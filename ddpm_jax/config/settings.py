"""The settings of an experiment, one frozen dataclass a group, with their defaults and help."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from ddpm_jax.config.entries import find_function
from ddpm_jax.config.signatures import fit, show
from ddpm_jax.errors import InputError

BOUNDS: dict[str, tuple[Callable[[float, float], bool], str]] = {
  'at_least': (operator.ge, 'at least'),
  'above': (operator.gt, 'above'),
  'below': (operator.lt, 'below'),
  'at_most': (operator.le, 'at most'),
}


def setting(default: Any, doc: str, **bounds: float) -> Any:
  """A field with its one line of help, within `bounds` (keys of BOUNDS)."""
  return dataclasses.field(default=default, metadata={'doc': doc, 'bounds': bounds})


@dataclasses.dataclass(frozen=True)
class Choice:
  """An entry of a table and the keyword arguments set for it; the rest keep its own defaults.

  The name is '' where the model makes no use of the group.
  """

  name: str
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
  group: str = dataclasses.field(default='', compare=False)

  def bind(
    self, table: Mapping[str, Callable], fallback: Callable[[str], Callable] | None = None
  ) -> Callable:
    """The entry (or fallback(name), where the table has none) with its arguments set."""
    function = find_function(self.name, table, f'config.{self.group}.name', fallback)
    return functools.partial(function, **self.arguments)

  def build(
    self,
    table: Mapping[str, Callable],
    fallback: Callable[[str], Callable] | None = None,
    **supplied: Any,
  ) -> Any:
    """Calls the entry with its arguments and what the program supplies; None where it is unset.

    Raises:
      InputError: where the entry refuses one of them by a ValueError.
    """
    if not self.name:
      return None
    try:
      return self.bind(table, fallback)(**supplied)
    except InputError:
      raise
    except ValueError as error:
      raise InputError(f'config.{self.group}: {error}') from error


@dataclasses.dataclass(frozen=True)
class Dataset(Choice):
  """Where the images come from."""

  batch_size: int = setting(128, 'examples in a step, over all devices', at_least=1)
  flip: bool = setting(False, 'mirror each training image with probability one half')
  augment: float = setting(
    0.0, 'probability of each geometric change, of which the network is told', at_least=0, at_most=1
  )
  conditional: bool = setting(True, 'tell the network the labels, where there are any')


@dataclasses.dataclass(frozen=True)
class Model(Choice):
  """The network."""


@dataclasses.dataclass(frozen=True)
class Schedule(Choice):
  """How much noise there is at each time."""

  zero_terminal_snr: bool = setting(False, "shift and scale a chain's alphas so that it ends at 0")
  continuous: bool = setting(False, 'read a chain in continuous time, log-SNR linear between')


@dataclasses.dataclass(frozen=True)
class Parameterization(Choice):
  """What the network predicts, and what it is told of the noise."""

  variance_head: str = setting('range', 'how a learned variance is read')


@dataclasses.dataclass(frozen=True)
class Loss(Choice):
  """What is minimized; a factor left unset is the loss's own."""

  weight: str | None = setting(None, 'weight of the squared eps error, as min_snr(gamma=5)')
  time_law: str | None = setting(None, 'how times are drawn')
  distance: str | None = setting(None, 'between output and target')
  noise_law: str | None = setting(None, 'how the noise is drawn, as offset(scale=0.1)')


@dataclasses.dataclass(frozen=True)
class Optimizer(Choice):
  """What turns gradients into updates."""

  learning_rate: float = setting(2e-4, 'its peak, after the warm-up', above=0)
  lr_schedule: str = setting('constant', 'its course after the warm-up')
  warmup_steps: int = setting(0, 'steps of linear warm-up', at_least=0)
  clip_norm: float | None = setting(None, 'bound on the global gradient norm; unset: none', above=0)


@dataclasses.dataclass(frozen=True)
class Sampler(Choice):
  """How noise becomes samples."""

  grid: str = setting('trailing', 'law of the times that it visits')
  num_steps: int = setting(50, 'evaluations of the network', at_least=1)
  noise: str = setting('white', "where a stochastic one's noise comes from")
  guidance: float = setting(1.0, 'scale of classifier-free guidance; 1: none', at_least=0)
  rescale: float = setting(
    0.0, "share in which guidance keeps the prediction's contrast", at_least=0, at_most=1
  )
  interval: tuple[float, float] | None = setting(
    None, 'log-SNRs between which to guide; unset: all'
  )
  threshold: str = setting('clip', 'how each prediction of the data is kept in [-1, 1]')


@dataclasses.dataclass(frozen=True)
class Ema:
  """The running average of the parameters."""

  decay: float = setting(0.9999, 'weight of the past in a step', at_least=0, below=1)
  warmup: bool = setting(True, 'begin with a short memory: min(decay, (1 + n) / (10 + n))')


@dataclasses.dataclass(frozen=True)
class Training:
  """The loop."""

  num_steps: int = setting(100_000, 'steps in all, those before a resume included', at_least=1)
  deterministic: bool = setting(False, 'bit-identical repeats on a GPU, at some speed')
  init_from: str | None = setting(None, 'workdir of a run whose parameters to begin with')
  max_skipped: int = setting(
    20, 'steps in a row with a loss or gradient that is not finite, after which it ends', at_least=1
  )


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Held-out figures."""

  every_steps: int = setting(1000, 'steps between held-out losses', at_least=1)
  batch_size: int = setting(256, 'examples or samples at a time, over all devices', at_least=1)
  num_samples: int = setting(1000, 'samples that experiments.sample draws', at_least=1)
  strata: int = setting(8, 'times drawn for each example by the stratified bound', at_least=1)
  likelihoods: tuple[str, ...] = setting(('chain',), 'what bits/dim are measured by')
  decoder: str = setting('discretized', 'from the first noise level to pixels')
  draws: int = setting(100, "latents drawn for each example by an autoencoder's bounds", at_least=1)


@dataclasses.dataclass(frozen=True)
class Parallel:
  """How the step runs on several devices."""

  mode: str = setting('pmap', 'way of doing it')
  microbatches: int = setting(
    1, 'parts that a device takes its examples in, one after another, to save memory', at_least=1
  )
  steps_per_dispatch: int = setting(
    1,
    'steps that a device takes at one call, where nothing is due between; slow on CPUs',
    at_least=1,
  )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """What is saved of a run."""

  every_steps: int = setting(1000, 'steps between checkpoints', at_least=1)
  keep: int = setting(3, 'the newest so many stay', at_least=1)
  folder: str | None = setting(
    None, "where, as gs://bucket/run; unset: checkpoints in the run's folder"
  )


@dataclasses.dataclass(frozen=True)
class Logging:
  """What a run shows of itself."""

  every_steps: int = setting(50, 'steps between lines of metrics', at_least=1)
  preview_every_steps: int = setting(1000, 'steps between preview grids', at_least=1)


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment, checked."""

  dataset: Dataset
  model: Model
  schedule: Schedule
  parameterization: Parameterization
  loss: Loss
  optimizer: Optimizer
  sampler: Sampler
  ema: Ema
  training: Training
  evaluation: Evaluation
  parallel: Parallel
  checkpoint: Checkpoint
  logging: Logging
  seed: int = setting(0, 'of every random number', at_least=0, below=2**32)


CLASSES: dict[str, type] = {k: v for k, v in get_type_hints(Config).items() if k != 'seed'}


def settings(cls: type) -> dict[str, dataclasses.Field]:
  """The fields of a group's dataclass that are settings."""
  return {field.name: field for field in dataclasses.fields(cls) if 'doc' in field.metadata}


def checked(field: dataclasses.Field, hint: Any, value: Any, where: str) -> Any:
  """The value of one setting, of its type and within its bounds.

  Raises:
    InputError: naming `where`, the value and what it must be.
  """
  if value is None and field.default is not None:
    raise InputError(f'{where}: unset; its default is {field.default}')
  if value is None:
    return None
  value = converted(value, hint, where)
  if isinstance(value, float) and not math.isfinite(value):
    raise InputError(f'{where}: {value} is not finite')
  bounds = field.metadata['bounds'].items()
  if not all(BOUNDS[key][0](value, bound) for key, bound in bounds):
    words = ' and '.join(f'{BOUNDS[key][1]} {bound}' for key, bound in bounds)
    raise InputError(f'{where}: {value} must be {words}')
  return value


def converted(value: Any, hint: Any, where: str) -> Any:
  """`value` in the type of `hint`, or an InputError that names `where`."""
  try:
    return fit(value, hint)
  except TypeError:
    raise InputError(f'{where}: {value!r} is not {show(hint)}') from None
