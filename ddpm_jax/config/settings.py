"""The settings of an experiment, one frozen dataclass a group, with their defaults and help."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, get_type_hints

from annotated_types import Interval, MinLen

from ddpm_jax.bounds import complaint
from ddpm_jax.config.entries import find_function
from ddpm_jax.config.signatures import fit, show
from ddpm_jax.errors import InputError

# The types of settings that are bounded. A step's number is kept in 32 bits.
Count = Annotated[int, Interval(ge=1, le=1_000_000)]
Steps = Annotated[int, Interval(ge=1, le=2**31 - 1)]
Share = Annotated[float, Interval(ge=0, le=1)]
Path = Annotated[str, MinLen(1)]


def setting(default: Any, doc: str) -> Any:
  """A field with its one line of help; its bounds are those of its annotation."""
  return dataclasses.field(default=default, metadata={'doc': doc})


@contextlib.contextmanager
def naming(field: str, otherwise: str | None = None) -> Iterator[None]:
  """Says in the config's words what a library refuses by a ValueError.

  An argument is a setting of the field, and another group is that group: of 'config.sampler',
  'eta: …' becomes 'config.sampler.eta: …' and 'schedule.name: …' 'config.schedule.name: …'. What
  names nothing is said of `otherwise`, by default the field.
  """
  try:
    yield
  except ValueError as error:
    line = ' '.join(str(error).split())
    if line.startswith(('config.', '--')):
      raise
    if found := re.match(r'([a-z_]\w*)[\w.]*: ', line):
      raise InputError(f'{"config" if found[1] in CLASSES else field}.{line}') from error
    raise InputError(f'{otherwise or field}: {line}') from error


@dataclasses.dataclass(frozen=True)
class Choice:
  """An entry of a table and the keyword arguments set for it; the rest keep its own defaults.

  The name is '' where the task makes no use of the group; `usual` is the name where none is given,
  if the group has such a one.
  """

  usual: ClassVar[str] = ''

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
    with naming(f'config.{self.group}'):
      return self.bind(table, fallback)(**supplied)


@dataclasses.dataclass(frozen=True)
class TaskSettings(Choice):
  """What is trained."""

  usual: ClassVar[str] = 'denoising'


@dataclasses.dataclass(frozen=True)
class CodecSettings(Choice):
  """What stands between the data as stored and what is diffused."""

  usual: ClassVar[str] = 'pixels'


@dataclasses.dataclass(frozen=True)
class DatasetSettings(Choice):
  """Where the images come from."""

  batch_size: Count = setting(128, 'examples in a step, over all devices')
  flip: bool = setting(False, 'mirror each training image with probability one half')
  augment: Share = setting(
    0.0, 'probability of each geometric change, of which the network is told'
  )
  conditional: bool = setting(True, 'tell the network what is known of an image, such as its class')


@dataclasses.dataclass(frozen=True)
class ModelSettings(Choice):
  """The network."""


@dataclasses.dataclass(frozen=True)
class ScheduleSettings(Choice):
  """How much noise there is at each time."""

  zero_terminal_snr: bool = setting(False, "shift and scale a chain's alphas so that it ends at 0")
  continuous: bool = setting(False, 'read a chain in continuous time, log-SNR linear between')


@dataclasses.dataclass(frozen=True)
class ParameterizationSettings(Choice):
  """What the network predicts, and what it is told of the noise."""

  variance_head: str = setting('range', 'how a learned variance is read')


@dataclasses.dataclass(frozen=True)
class LossSettings(Choice):
  """What is minimized; a factor left unset is the loss's own."""

  weight: str | None = setting(None, 'weight of the squared eps error, as min_snr(gamma=5)')
  timestep_distribution: str | None = setting(None, 'how times are drawn')
  distance: str | None = setting(None, 'between output and target')
  noise_distribution: str | None = setting(None, 'how the noise is drawn, as offset(scale=0.1)')


@dataclasses.dataclass(frozen=True)
class OptimizerSettings(Choice):
  """What turns gradients into updates."""

  learning_rate: Annotated[float, Interval(gt=0, le=100)] = setting(
    2e-4, 'its peak, after the warm-up'
  )
  lr_schedule: str = setting('constant', 'its course after the warm-up')
  warmup_steps: Annotated[int, Interval(ge=0, lt=2**31)] = setting(0, 'steps of linear warm-up')
  clip_norm: Annotated[float, Interval(gt=0, le=1e9)] | None = setting(
    None, 'bound on the global gradient norm; unset: none'
  )


@dataclasses.dataclass(frozen=True)
class SamplerSettings(Choice):
  """How noise becomes samples."""

  grid: str = setting('trailing', 'spacing of the times that it visits')
  num_steps: Count = setting(50, 'times that it visits; heun and others evaluate the network twice')
  noise: str = setting('white', "where a stochastic one's noise comes from")
  guidance: Annotated[float, Interval(ge=0, le=1000)] = setting(
    1.0, 'scale of classifier-free guidance; 1: none'
  )
  rescale: Share = setting(0.0, "share in which guidance keeps the prediction's contrast")
  interval: tuple[float, float] | None = setting(
    None, 'log-SNRs between which to guide; unset: all'
  )
  threshold: str = setting('clip', 'how each prediction is kept within the bounds of the data')


@dataclasses.dataclass(frozen=True)
class EmaSettings:
  """The running average of the parameters."""

  decay: Annotated[float, Interval(ge=0, lt=1)] = setting(0.9999, 'weight of the past in a step')
  warmup: bool = setting(True, 'begin with a short memory: min(decay, (1 + n) / (10 + n))')


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
  """The loop."""

  num_steps: Steps = setting(100_000, 'steps in all, those before a resume included')
  deterministic: bool = setting(False, 'bit-identical repeats on a GPU, at some speed')
  init_from: Path | None = setting(None, 'workdir of a run whose parameters to begin with')
  max_skipped: Steps = setting(
    20, 'steps in a row with a loss or gradient that is not finite, after which it ends'
  )


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
  """Held-out figures."""

  every_steps: Steps = setting(1000, 'steps between held-out losses')
  batch_size: Count = setting(256, 'examples or samples at a time, over all devices')
  num_samples: Count = setting(1000, 'samples that experiments.sample draws')
  strata: Count = setting(8, 'times drawn for each example by the stratified bound')
  likelihoods: Annotated[tuple[str, ...], MinLen(1)] = setting(
    ('chain',), 'what bits/dim are measured by'
  )
  decoder: str = setting('discretized', 'from the first noise level to pixels')
  draws: Count = setting(100, "latents drawn for each example by an autoencoder's bounds")


@dataclasses.dataclass(frozen=True)
class ParallelSettings:
  """How the step runs on several devices."""

  mode: str = setting('pmap', 'way of doing it')
  slices: Count | None = setting(
    None, "slices that 'hsdp' makes of the devices; unset: TPU slices, or the machines of GPUs"
  )
  microbatches: Count = setting(
    1, 'parts that a device takes its examples in, one after another, to save memory'
  )
  steps_per_dispatch: Count = setting(
    1, 'steps that a device takes at one call, where nothing is due between; slow on CPUs'
  )


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """What is saved of a run."""

  every_steps: Steps = setting(1000, 'steps between checkpoints')
  keep: Count = setting(3, 'the newest so many stay')
  folder: Path | None = setting(
    None, "where, as gs://bucket/run; unset: checkpoints in the run's folder"
  )
  grace_seconds: Annotated[float, Interval(gt=0, le=1e6)] = setting(
    30.0, 'from a stop to a kill, as the cluster gives it; a save that takes longer is warned of'
  )


@dataclasses.dataclass(frozen=True)
class LoggingSettings:
  """What a run shows of itself."""

  every_steps: Steps = setting(50, 'steps between lines of metrics')
  preview_every_steps: Steps = setting(1000, 'steps between preview grids')
  price_per_chip_hour: Annotated[float, Interval(gt=0, le=1e6)] | None = setting(
    None, 'of a device, in any currency: the summary says what the run cost; unset: nothing'
  )


@dataclasses.dataclass(frozen=True)
class Config:
  """One experiment, checked."""

  task: TaskSettings
  dataset: DatasetSettings
  codec: CodecSettings
  model: ModelSettings
  schedule: ScheduleSettings
  parameterization: ParameterizationSettings
  loss: LossSettings
  optimizer: OptimizerSettings
  sampler: SamplerSettings
  ema: EmaSettings
  training: TrainingSettings
  evaluation: EvaluationSettings
  parallel: ParallelSettings
  checkpoint: CheckpointSettings
  logging: LoggingSettings
  seed: Annotated[int, Interval(ge=0, lt=2**32)] = setting(0, 'of every random number')


CLASSES: dict[str, type] = {k: v for k, v in get_type_hints(Config).items() if k != 'seed'}


def setting_fields(cls: type) -> dict[str, dataclasses.Field]:
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
  return converted(value, hint, where)


def converted(value: Any, hint: Any, where: str) -> Any:
  """`value` in the type of `hint` and within its bounds, or an InputError that names `where`."""
  try:
    value = fit(value, hint)
  except TypeError:
    raise InputError(f'{where}: {value!r} is not {show(hint)}') from None
  if wrong := complaint(value, hint):
    raise InputError(f'{where}: {wrong}')
  return value
