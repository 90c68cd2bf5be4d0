"""The task of a network that removes noise."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data, models
from ddpm_jax.condition import Cond
from ddpm_jax.config.settings import naming
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import bind
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, for_purpose
from ddpm_jax.losses import LOSSES, OF_AUTOENCODERS, OF_TEACHERS, LossContext, LossOutput
from ddpm_jax.samplers.thresholding import check_threshold
from ddpm_jax.tasks import drawing, likelihoods
from ddpm_jax.tasks.drawing import Route, recalls, route_of
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.heldout import eps_errors, evenly_spaced, levels
from ddpm_jax.tasks.parts import Preview, begin, encoded, later, make_preview
from ddpm_jax.training.task import Batch, Frozen, Task, Use


def denoising(experiment: Experiment, teacher: Frozen | None = None) -> Task:
  """Training a network to remove noise, by an entry of LOSSES.

  Its params are {'network', 'schedule', 'loss'}: the network's, what a schedule learns, and what
  the loss trains beside them.

  Args:
    experiment: with a schedule, a parameterization and a sampler.
    teacher: of a loss that learns from another run: {'network', 'schedule'}.

  Raises:
    InputError: something of that is missing or does not fit.
  """
  check(experiment)
  context, frozen = make_context(experiment), {}
  if experiment.config.loss.name in OF_TEACHERS and teacher is not None:
    frozen['teacher'] = Frozen(teacher.source, lambda: teacher.load()['network'], together=True)
  return Task(
    init=functools.partial(begin, experiment, context, models.init_network),
    loss=functools.partial(loss, experiment, context),
    optimizer=experiment.optimizer,
    learning_rate=experiment.learning_rate,
    frozen=frozen,
    heldout=later(lambda: make_heldout(experiment)),
    preview=later(lambda: preview_of(experiment)),
    use=make_use(experiment),
  )


def check(experiment: Experiment) -> None:
  """Raises InputError where the experiment is one of another task."""
  config, module = experiment.config, experiment.module
  if hasattr(module, 'encode') and hasattr(module, 'decode'):
    raise InputError(
      f"config.model.name: '{config.model.name}' removes no noise; set "
      'config.task.name=autoencoding, or take another network'
    )
  if config.loss.name in OF_AUTOENCODERS:
    mend = ', '.join(sorted(LOSSES.keys() - OF_AUTOENCODERS))
    raise InputError(
      f"config.loss.name: '{config.loss.name}' trains no denoiser; choose one of {mend}"
    )
  if config.loss.name in OF_TEACHERS and config.training.init_from is None:
    raise InputError(
      f"config.training.init_from: unset; '{config.loss.name}' learns from the run in that folder"
    )
  with naming('config'):
    if config.loss.name in ('hybrid', 'variational'):
      experiment.codec.levels('the bound')
  with naming('config.sampler'):
    check_threshold(config.sampler.threshold, experiment.codec.bounds)
  route_of(experiment)


def make_context(experiment: Experiment) -> LossContext:
  """What the loss is given beside parameters and data."""
  schedule: Any = experiment.schedule
  parameterization: Any = experiment.parameterization
  return LossContext(
    experiment.network,
    schedule,
    parameterization,
    experiment.factors,
    experiment.config.dataset.batch_size,
    codec=experiment.codec,
    recall=models.tell_estimate if recalls(experiment) else None,
  )


def loss(
  experiment: Experiment,
  context: LossContext,
  params: dict[str, Any],
  state: Any,
  frozen: dict[str, Any],
  batch: Batch,
  keys: Keys,
  gather: Callable[[Array], Array],
) -> LossOutput:
  """The config's loss of a batch as it is stored."""
  schedule = bind(context.schedule, params['schedule'])
  bound = dataclasses.replace(context, schedule=schedule, frozen=frozen, gather=gather)
  return experiment.loss(bound, params, state, prepare(experiment, frozen, batch, keys), keys)


def prepare(experiment: Experiment, frozen: dict[str, Any], batch: Batch, keys: Keys) -> Batch:
  """The batch encoded, its images flipped and augmented as the config says."""
  batch, probability = encoded(experiment, frozen, batch, keys), experiment.config.dataset.augment
  if not probability:
    return batch
  change = jax.vmap(data.augment, (0, 0, None))
  x, changes = change(batch['x'], for_purpose(keys.examples, 'augment'), probability)
  return {**batch, 'x': x, 'cond': models.tell_augmentation(batch['cond'], changes)}


def bound(experiment: Experiment, params: dict[str, Any]) -> Experiment:
  """The experiment with what params['schedule'], concrete, has learned of its schedule."""
  if not params['schedule']:
    return experiment
  schedule: Any = experiment.schedule
  return dataclasses.replace(experiment, schedule=bind(schedule, params['schedule']))


def make_use(experiment: Experiment) -> Use:
  """Sampling and likelihoods, on the schedule that the experiment has."""
  route = route_of(experiment)

  def generate(params: Any, frozen: Any, cond: Cond, keys: Array, **options: Any) -> Any:
    del frozen
    return drawing.generate(experiment, params['network'], route, cond, keys, **options)

  def denoiser(params: Any, cond: Cond, schedule: Any = None) -> Denoiser:
    return drawing.denoiser(experiment, params['network'], cond, schedule)

  return Use(
    bind=lambda params: make_use(bound(experiment, params)),
    generate=generate,
    evaluations=functools.partial(drawing.evaluations, experiment),
    describe=functools.partial(drawing.describe, experiment),
    bits=functools.partial(likelihoods.measures, experiment),
    denoiser=denoiser,
  )


def preview_of(experiment: Experiment) -> Preview:
  """Samples on the path as it is learned so far: other times at each preview, but one program."""

  def generate(params: Any, frozen: Any, cond: Cond, keys: Array, route: Route) -> Array:
    del frozen
    return drawing.generate(experiment, params['network'], route, cond, keys)

  return make_preview(
    experiment, generate, lambda params: {'route': route_of(bound(experiment, params))}
  )


def make_heldout(experiment: Experiment) -> Callable[[Any, Any], dict[str, float]]:
  """Makes heldout(params, frozen) -> scalars.

  'heldout/eps_mse' is the mean over the levels, 'heldout/eps_mse/log_snr_X' that of the level at
  log-SNR X. The examples are `evaluation.batch_size` of the test split, evenly spaced in it.
  """
  schedule: Any = experiment.schedule
  log_snrs = levels(schedule)
  names = [f'heldout/eps_mse/log_snr_{log_snr:.1f}' for log_snr in log_snrs]
  batch = evenly_spaced(experiment)
  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(len(batch['x'])))

  @jax.jit
  def errors(params: Any, frozen: Any, batch: Batch, keys: Array) -> Array:
    x0 = experiment.encode(frozen, batch['x'], keys)
    path = bind(schedule, params['schedule'])
    times = jax.vmap(path.time)(jnp.asarray(log_snrs))
    judged = drawing.denoiser(experiment, params['network'], batch['cond'], path)
    return eps_errors(path, judged, x0, times, keys)

  def heldout(params: Any, frozen: Any) -> dict[str, float]:
    values = np.asarray(errors(params, frozen, batch, keys), np.float64)
    found = dict(zip(names, values.tolist(), strict=True))
    return {'heldout/eps_mse': float(values.mean()), **found}

  return heldout
