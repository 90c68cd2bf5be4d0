"""The one place where a config becomes objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ddpm_jax import data, models
from ddpm_jax.config import Config, find_entry, naming
from ddpm_jax.diffusion import PARAMETERIZATIONS, SCHEDULES, Parameterization, Schedule
from ddpm_jax.diffusion.parameterization import VARIANCE_HEADS, Network, check_invertible
from ddpm_jax.diffusion.schedules import (
  Discrete,
  interpolate,
  parameters,
  zero_terminal_snr,
)
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, for_purpose, step_key
from ddpm_jax.losses import (
  FACTORS,
  LOSSES,
  OF_TEACHERS,
  PRESETS,
  Loss,
  Problem,
  make_factors,
  start,
  trained_variance,
)
from ddpm_jax.losses.time_laws import mass_within, memory, reach, time_of
from ddpm_jax.samplers import SAMPLERS, SOLVERS, Sampler, Solver
from ddpm_jax.training import autoencoding, denoising, optimizers
from ddpm_jax.training.denoising import denoiser
from ddpm_jax.training.heldout import make_heldout
from ddpm_jax.training.parallel import Parallel
from ddpm_jax.training.state import TrainState, init_state
from ddpm_jax.training.step import Step, make_train_step


class Kind(NamedTuple):
  """What differs between kinds of model; the loop, the step and the run's folder are one.

  Attributes:
    name: a key of KINDS.
    losses: the names in LOSSES that train it.
    make_network: module -> what the loss calls.
    generate: (experiment, params, cond, keys) -> samples (B, H, W, C).
    evaluations: (experiment, picture=None) -> how often the network is evaluated for each sample;
      None where the samples themselves decide.
    describe: experiment -> how samples are drawn, in words.
    make_heldout: experiment -> (params -> scalars of held-out examples).
  """

  name: str
  losses: frozenset[str]
  make_network: Callable[[Any], Any]
  generate: Callable[..., Array]
  evaluations: Callable[..., Any]
  describe: Callable[..., str]
  make_heldout: Callable[[Any], Callable[[Any], dict[str, float]]]


KINDS = {
  'denoiser': Kind(
    'denoiser',
    frozenset(LOSSES) - autoencoding.LOSSES,
    models.make_network,
    denoising.generate,
    denoising.evaluations,
    denoising.describe,
    make_heldout,
  ),
  'autoencoder': Kind(
    'autoencoder',
    autoencoding.LOSSES,
    models.make_coder,
    autoencoding.generate,
    autoencoding.evaluations,
    autoencoding.describe,
    autoencoding.make_heldout,
  ),
}


@dataclasses.dataclass(frozen=True)
class Experiment:
  """What training, evaluation and notebooks need of a config.

  An autoencoder has no schedule, parameterization, sampler or path: they are None, and `times` is
  empty. Samples are drawn on the path at these times; see `denoising.drawn_on`.
  """

  config: Config
  kind: Kind
  dataset: data.Dataset
  schedule: Schedule
  parameterization: Parameterization
  module: nn.Module
  network: Network
  loss: Loss
  problem: Problem
  optimizer: optax.GradientTransformation
  learning_rate: optax.Schedule
  sampler: Any  # a Sampler or a Solver
  path: Any
  times: Array

  @property
  def decays(self) -> dict[str, float]:
    """The averages of the parameters: name -> decay."""
    return {str(self.config.ema.decay): self.config.ema.decay}


def build(config: Config, dataset: data.Dataset | None = None) -> Experiment:
  """Makes every object that a config names.

  Args:
    config: an experiment.
    dataset: where given, it stands for the config's own, which is not opened.

  Raises:
    InputError: naming the field, where an entry refuses its arguments or the data is not there.
  """
  dataset = dataset or config.dataset.build(data.DATASETS, data.source)
  data.check_examples(dataset)
  if not config.dataset.conditional:
    dataset = dataclasses.replace(dataset, num_classes=None)
  schedule = make_schedule(config)
  parameterization = make_parameterization(config)
  check_readable(parameterization, schedule)
  module = config.model.build(
    models.MODELS, num_classes=dataset.num_classes, out_channels=dataset.image_shape[-1]
  )
  kind = KINDS[getattr(module, 'kind', 'denoiser')]
  network = kind.make_network(module)
  check_loss(config, kind)
  check_variance(config, module)
  check_augmented(config, module)
  sampler: Any = config.sampler.build(SAMPLERS | SOLVERS)
  if config.sampler.name and not isinstance(sampler, (Sampler, Solver)):
    raise InputError(f"config.sampler.name: '{config.sampler.name}' does not return a Sampler")
  path, times = denoising.drawn_on(config, sampler, schedule)
  loss, wanted = config.loss, config.optimizer
  problem = Problem(
    network,
    schedule,
    parameterization,
    make_factors(loss.name, **given_factors(loss)),
    config.dataset.batch_size,
    num_levels=dataset.num_levels,
    self_condition=getattr(module, 'self_condition', False),
  )
  if schedule is not None:
    check_factors(config, problem)
  learning_rate = optimizers.learning_rate(
    wanted.lr_schedule, wanted.learning_rate, wanted.warmup_steps, config.training.num_steps
  )
  return Experiment(
    config=config,
    kind=kind,
    dataset=dataset,
    schedule=schedule,
    parameterization=parameterization,
    module=module,
    network=network,
    loss=loss.bind(LOSSES),
    problem=problem,
    optimizer=optimizers.clipped(
      wanted.build(optimizers.OPTIMIZERS, learning_rate=learning_rate), wanted.clip_norm
    ),
    learning_rate=learning_rate,
    sampler=sampler,
    path=path,
    times=times,
  )


# A law of log-SNR keeps to the schedule's range; with less of it there it is another law.
LEAST_MASS = 0.5
# What a schedule answers: see `diffusion.protocol.Schedule`.
ANSWERS = ('t_min', 't_max', 'alpha', 'sigma', 'log_snr', 'time', 'network_time')
CHANGES = {'zero_terminal_snr': zero_terminal_snr, 'continuous': interpolate}


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


def make_schedule(config: Config) -> Any:
  """The schedule that a config names, changed as it says; None where the model has none.

  Raises:
    InputError: a change is asked for that is one of discrete chains, or not possible.
  """
  wanted = config.schedule
  schedule = wanted.build(SCHEDULES)
  missing = [name for name in ANSWERS if schedule is not None and not hasattr(schedule, name)]
  if missing:
    raise InputError(f"config.schedule.name: '{wanted.name}' answers no {', '.join(missing)}")
  for name, change in CHANGES.items():
    if not getattr(wanted, name):
      continue
    if not isinstance(schedule, Discrete):
      raise InputError(f"config.schedule.{name}: '{wanted.name}' is not a discrete chain")
    with naming('config.schedule', otherwise=f'config.schedule.{name}'):
      schedule = change(schedule)
  return schedule


def make_parameterization(config: Config) -> Any:
  """The parameterization that a config names; None where the model has none."""
  made = config.parameterization.build(PARAMETERIZATIONS)
  head = VARIANCE_HEADS[config.parameterization.variance_head]
  return made and dataclasses.replace(made, head=head)


def check_readable(parameterization: Parameterization | None, schedule: Schedule | None) -> None:
  """Raises InputError where the output says nothing of x0 at the schedule's end."""
  if parameterization is None or schedule is None:
    return
  with naming('config.parameterization', otherwise='config.parameterization.name'):
    check_invertible(parameterization, schedule)


def check_loss(config: Config, kind: Kind) -> None:
  """Raises InputError where the loss is one of another kind of model, or lacks its teacher."""
  name = config.loss.name
  if name in LOSSES and name not in kind.losses:
    mend = ', '.join(sorted(kind.losses))
    raise InputError(f"config.loss.name: '{name}' trains no {kind.name}; choose one of {mend}")
  if name in OF_TEACHERS and config.training.init_from is None:
    raise InputError(
      f"config.training.init_from: unset; '{name}' learns from the run in that folder"
    )


def check_factors(config: Config, problem: Problem) -> None:
  """Raises InputError where a factor does not answer, at three times, as its table's entries do."""
  schedule, factors = problem.schedule, problem.factors
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


def batch_and_keys(experiment: Experiment) -> tuple[dict[str, Any], Keys]:
  """The shapes of what a loss is given in training."""
  size, shape = experiment.problem.batch_size, experiment.dataset.image_shape
  batch = {'image': jax.ShapeDtypeStruct((size, *shape), jnp.float32)}
  batch |= {key: jax.ShapeDtypeStruct((size,), jnp.int32) for key in ('label', 'index')}
  key = step_key(0, 0)
  return batch, Keys(key, example_keys(key, jnp.arange(size)))


def check_augmented(config: Config, module: nn.Module) -> None:
  """Raises InputError where images are augmented and the network is not told."""
  if config.dataset.augment and not getattr(module, 'augmented', False):
    raise InputError(
      'config.dataset.augment: samples would show it unless the network is told; '
      'set config.model.augmented'
    )


def init_params(experiment: Experiment) -> dict[str, Any]:
  """The parameters before training, from the config's seed: {'network', 'schedule', 'loss'}."""
  key = for_purpose(jax.random.key(experiment.config.seed), 'init')
  with naming('config.model'):
    network = models.init_network(experiment.module, key, experiment.dataset.image_shape)
  params = {'network': network, 'schedule': parameters(experiment.schedule)}
  return {**params, 'loss': loss_start(experiment, params)[0]}


def loss_start(experiment: Experiment, params: dict[str, Any]) -> tuple[Any, Any]:
  """The loss's own parameters and its state before the first step."""
  key = for_purpose(jax.random.key(experiment.config.seed), 'loss')
  return start(experiment.loss, experiment.problem, params, key)


def new_state(experiment: Experiment, params: dict[str, Any] | None = None) -> TrainState:
  """The state before the first step, from the parameters {'network', 'schedule'} where given."""
  params = init_params(experiment) if params is None else params
  own, loss_state = loss_start(experiment, params)
  averages = tuple(experiment.decays)
  return init_state({**params, 'loss': own}, experiment.optimizer, loss_state, averages)


def make_step(experiment: Experiment, parallel: Parallel) -> Step:
  """The experiment's training step, not yet compiled."""
  microbatches = experiment.config.parallel.microbatches
  gather = parallel.gather if microbatches == 1 else refuse_gather
  return make_train_step(
    dataclasses.replace(experiment.problem, gather=gather),
    experiment.loss,
    experiment.optimizer,
    decays=experiment.decays,
    ema_warmup=experiment.config.ema.warmup,
    seed=experiment.config.seed,
    num_levels=experiment.dataset.num_levels,
    flip=experiment.config.dataset.flip,
    augment=experiment.config.dataset.augment,
    mean=parallel.mean,
    microbatches=microbatches,
  )


def refuse_gather(values: Array) -> Array:
  """Stands for `Problem.gather` where the whole batch is never there at once."""
  del values
  raise InputError(
    'config.parallel.microbatches: this loss couples all examples of a batch, which come in parts; '
    'set it to 1'
  )


def generate(
  experiment: Experiment, params: Any, cond: dict[str, Array], keys: Array, **options: Any
) -> Any:
  """Samples as the config says; pure, for the caller to jit.

  Args:
    experiment: from `build`.
    params: of the network.
    cond: {'label': (B,)}, or {} for an unconditional network.
    keys: (B,); sample i depends on keys[i] and its label alone.
    **options: of a denoiser's samples: `picture`, a `denoising.Picture`, and `return_path`.

  Returns:
    (B, H, W, C), roughly in [-1, 1]; with return_path also the way there, (N + 1, B, H, W, C).
  """
  return experiment.kind.generate(experiment, params, cond, keys, **options)


__all__ = [
  'KINDS',
  'Experiment',
  'Kind',
  'build',
  'denoiser',
  'generate',
  'init_params',
  'make_step',
  'new_state',
]
