"""The one place where a config becomes objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ddpm_jax import data, models
from ddpm_jax.codec import CODECS, Codec
from ddpm_jax.config.entries import find_entry
from ddpm_jax.config.settings import Config, naming
from ddpm_jax.diffusion import PARAMETERIZATIONS, SCHEDULES, Parameterization, Schedule
from ddpm_jax.diffusion.parameterization import VARIANCE_HEADS, Network, check_invertible
from ddpm_jax.diffusion.schedules import Discrete, interpolate, zero_terminal_snr
from ddpm_jax.errors import InputError
from ddpm_jax.keys import for_purpose
from ddpm_jax.losses import (
  FACTORS,
  LOSSES,
  PRESETS,
  Factors,
  Loss,
  LossOutput,
  make_factors,
  trained_variance,
)
from ddpm_jax.losses.time_laws import mass_within, memory, reach, time_of
from ddpm_jax.samplers import SAMPLERS, SOLVERS, Sampler, Solver
from ddpm_jax.training import optimizers


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects that a config names: plain data, of which a task is made.

  What the config leaves unset, as an autoencoder's schedule, is None.

  Attributes:
    config: what it was built from.
    dataset: with the specification of its condition; {} where the config turns that off.
    codec: between the data as stored and what is diffused.
    schedule: the path that is trained on.
    parameterization: what the network predicts.
    module: the network.
    network: the module as a function (params, x, noise_label, cond, index, keys) -> output.
    loss: an entry of LOSSES, its arguments bound.
    factors: of a loss that is a product.
    optimizer: clipping included.
    learning_rate: step -> rate.
    sampler: by which samples are drawn.
  """

  config: Config
  dataset: data.Dataset
  codec: Codec
  schedule: Schedule | None
  parameterization: Parameterization | None
  module: nn.Module
  network: Network
  loss: Loss
  factors: Factors
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  sampler: Sampler | Solver | None

  @property
  def conditional(self) -> bool:
    """Whether the network is told anything of an example."""
    return bool(self.dataset.cond)

  def encode(self, frozen: Mapping[str, Any], x: Array, keys: Array) -> Array:
    """Examples x (B, …) as stored in the codec's numbers; keys (B,) are those of the examples."""
    return self.codec.encode(frozen['codec'], x, for_purpose(keys, 'codec'))

  def decode(self, frozen: Mapping[str, Any], z: Array) -> Array:
    """The codec's numbers (B, …) as pictures, uint8 (B, H, W, C)."""
    return self.codec.decode(frozen['codec'], z)


def build(config: Config, dataset: data.Dataset | None = None) -> Experiment:
  """Makes every object that a config names.

  Args:
    config: an experiment.
    dataset: where given, it stands for the config's own, which is not opened.

  Raises:
    InputError: naming the field, where an entry refuses its arguments or the data is not there.
  """
  dataset = make_dataset(config, dataset)
  supplied = {'shape': dataset.image_shape, 'num_levels': dataset.num_levels}
  codec = config.codec.build(CODECS, **supplied)
  schedule, parameterization, sampler = (
    getattr(config, group).build(table) for group, table in UNSUPPLIED.items()
  )
  schedule = changed(config.schedule, schedule)
  head = VARIANCE_HEADS[config.parameterization.variance_head]
  parameterization = parameterization and dataclasses.replace(parameterization, head=head)
  check_path(config, schedule, parameterization, sampler)
  module = config.model.build(models.MODELS, spec=dataset.cond, out_channels=codec.shape[-1])
  check_variance(config, module)
  check_augmented(config, module, codec)
  check_beside(config, dataset)
  factors = make_factors(config.loss.name, **given_factors(config.loss))
  if schedule is not None:
    check_factors(config, factors, schedule)
  wanted = config.optimizer
  learning_rate = optimizers.learning_rate(
    wanted.lr_schedule, wanted.learning_rate, wanted.warmup_steps, config.training.num_steps
  )
  return Experiment(
    config=config,
    dataset=dataset,
    codec=codec,
    schedule=schedule,
    parameterization=parameterization,
    module=module,
    network=models.make_network(module),
    loss=config.loss.bind(LOSSES) if config.loss.name else no_loss,
    factors=factors,
    optimizer=optimizers.clipped(
      wanted.build(optimizers.OPTIMIZERS, learning_rate=learning_rate), wanted.clip_norm
    ),
    learning_rate=learning_rate,
    sampler=sampler,
  )


def no_loss(*args: Any) -> LossOutput:
  """Stands for the loss of a task that has one of its own."""
  del args
  raise InputError('config.loss.name: unset, and the task asks for it; choose one of LOSSES')


# A law of log-SNR keeps to the schedule's range; with less of it there it is another law.
LEAST_MASS = 0.5
# What a schedule answers: see `diffusion.protocol.Schedule`.
ANSWERS = ('t_min', 't_max', 'alpha', 'sigma', 'log_snr', 'time', 'network_time')
# The groups whose entries need nothing but their settings.
UNSUPPLIED: dict[str, Any] = {
  'schedule': SCHEDULES,
  'parameterization': PARAMETERIZATIONS,
  'sampler': SAMPLERS | SOLVERS,
}
CHANGES = {'zero_terminal_snr': zero_terminal_snr, 'continuous': interpolate}


def make_dataset(config: Config, dataset: data.Dataset | None = None) -> data.Dataset:
  """The data set that a config names, or the one given in its place, once it is one."""
  dataset = dataset or config.dataset.build(data.DATASETS, data.source)
  data.check_examples(dataset)
  return dataset if config.dataset.conditional else dataclasses.replace(dataset, cond={})


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


def check_path(config: Config, schedule: Any, parameterization: Any, sampler: Any) -> None:
  """Raises InputError where an entry is no schedule or sampler, or x0 cannot be read there."""
  missing = [name for name in ANSWERS if schedule is not None and not hasattr(schedule, name)]
  if missing:
    raise InputError(
      f"config.schedule.name: '{config.schedule.name}' answers no {', '.join(missing)}"
    )
  if config.sampler.name and not isinstance(sampler, (Sampler, Solver)):
    raise InputError(f"config.sampler.name: '{config.sampler.name}' does not return a Sampler")
  if parameterization is not None and schedule is not None:
    with naming('config.parameterization', otherwise='config.parameterization.name'):
      check_invertible(parameterization, schedule)


def check_factors(config: Config, factors: Factors, schedule: Schedule) -> None:
  """Raises InputError where a factor does not answer, at three times, as its table's entries do."""
  keys = jax.random.key(0), jnp.arange(3)

  def weigh() -> Any:
    return [factors.weight(schedule, t) for t in time_of(schedule, jnp.array([0.05, 0.5, 0.95]))]

  def draw() -> Any:
    kept = memory(factors.time_law)
    state = kept.init(schedule) if kept else ()
    t, correction = factors.time_law(*keys, 3, schedule, state)
    return [*jax.vmap(schedule.sigma)(t), *correction]

  def measure() -> Any:
    return jnp.atleast_1d(factors.distance(jnp.linspace(-1, 1, 5))).tolist()

  for factor, probe in (('weight', weigh), ('time_law', draw), ('distance', measure)):
    given = getattr(config.loss, factor)
    where = f"config.loss.{factor}: '{given}'" if given else f'config.loss.name: its {factor}'
    try:
      values = np.asarray(probe())
    except Exception as error:
      raise InputError(f'{where} cannot be used: {error}') from error
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
      raise InputError(f'{where} gives {values}, which are not all finite, positive and scalar')
  mass = mass_within(factors.time_law, schedule)
  if mass < LEAST_MASS:
    low, high = (float(level) for level in reach(schedule))
    raise InputError(
      f'config.loss.time_law: only {mass:.1%} of its log-SNRs are within the '
      f"schedule's, {low:.1f} to {high:.1f}; move the law or widen the schedule"
    )


def check_variance(config: Config, module: nn.Module) -> None:
  """Raises InputError where loss or sampler want a variance that the network does not learn."""
  learns, loss = getattr(module, 'learn_variance', False), config.loss
  mend = 'set config.model.learn_variance'
  if config.sampler.arguments.get('variance') == 'fraction' and not learns:
    raise InputError(f"config.sampler.variance: 'fraction' is a learned variance; {mend}")
  if trained_variance(loss.name, loss.arguments) and not learns:
    raise InputError(f"config.loss.name: '{loss.name}' trains a learned variance; {mend}")


def check_augmented(config: Config, module: nn.Module, codec: Codec) -> None:
  """Raises InputError where images are augmented that are no pixels, or the network is not told."""
  if not config.dataset.augment:
    return
  if not getattr(module, 'augmented', False):
    raise InputError(
      'config.dataset.augment: samples would show it unless the network is told; '
      'set config.model.augmented'
    )
  if codec.bounds is None:
    raise InputError(
      f"config.dataset.augment: it moves pixels, and '{config.codec.name}' has none; set it to 0"
    )


def check_beside(config: Config, dataset: data.Dataset) -> None:
  """Raises InputError where images are moved, and those in their conditions are not."""
  sides = dataset.image_shape[:2]
  beside = [name for name, field in dataset.cond.items() if field.shape[:2] == sides]
  for setting in ('flip', 'augment'):
    if beside and getattr(config.dataset, setting):
      raise InputError(
        f"config.dataset.{setting}: it would move an image but not the '{beside[0]}' of the same "
        'size in its condition; leave it unset'
      )
