"""How a network that removes noise is used: as a denoiser, and to draw samples."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from ddpm_jax import models
from ddpm_jax.config import Config
from ddpm_jax.diffusion.parameterization import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedules import Discrete, bind, interpolate
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import (
  OF_LOG_SNR,
  THRESHOLDS,
  Sampler,
  classifier_free,
  keep_known,
  last_part,
  log_snr_interval,
  num_evaluations,
  prior_sample,
  repaint,
  sample,
  start_from,
  time_grid,
)

if TYPE_CHECKING:  # it imports this module
  from ddpm_jax.training.experiment import Experiment


def drawn_on(config: Config, sampler: Sampler | None, schedule: Any) -> tuple[Any, Array]:
  """What samples are drawn on, and the times that are visited there.

  It is the schedule; but a chain is read in continuous time for samplers that want times between
  those of the grid and for grids even in log-SNR, which crowd between its last few times.

  Raises:
    InputError: the chain has no such reading, the grid no such times, or the interval is empty.
  """
  wanted = config.sampler
  if sampler is None or schedule is None:
    return schedule, jnp.zeros(0)
  if wanted.interval:
    log_snr_interval(schedule, *wanted.interval)  # refuses an empty one before anything is trained
  between = sampler.between or wanted.grid in OF_LOG_SNR
  if between and isinstance(schedule, Discrete):
    try:
      schedule = interpolate(schedule)
    except ValueError as error:
      raise InputError(
        f"config.sampler: '{wanted.name}' over '{wanted.grid}' needs times between those of the "
        f'chain, but {error}'
      ) from error
  return schedule, time_grid(wanted.grid, schedule, wanted.num_steps)


def bind_schedule(experiment: Experiment, params: dict[str, Any]) -> Experiment:
  """The experiment with what params['schedule'], concrete, has learned of its schedule."""
  if not params['schedule']:
    return experiment
  schedule = bind(experiment.schedule, params['schedule'])
  path, times = drawn_on(experiment.config, experiment.sampler, schedule)
  return dataclasses.replace(experiment, schedule=schedule, path=path, times=times)


class Picture(NamedTuple):
  """A picture that samples begin with or are drawn around.

  Attributes:
    image: (H, W, C), in [-1, 1].
    mask: (H, W, 1), true where the picture is kept; None: all of it is only begun with.
    strength: in (0, 1], the share of the times that are sampled through; the less, the more is left
      of the picture.
    resample: with a mask, how often each step is taken, as by `repaint`.
  """

  image: Array
  mask: Array | None = None
  strength: float = 1.0
  resample: int = 1


def denoiser(experiment: Experiment, params: Any, cond: dict[str, Array]) -> Denoiser:
  """The network with these parameters (the branch 'network') as a denoiser."""
  return make_denoiser(
    experiment.network, params, experiment.schedule, experiment.parameterization, cond
  )


def generate(
  experiment: Experiment,
  params: Any,
  cond: dict[str, Array],
  keys: Array,
  picture: Picture | None = None,
  return_path: bool = False,
) -> Any:
  """Samples as the config says, guidance and thresholding included: `experiment.generate`."""
  path, times, sampler = experiment.path, experiment.times, experiment.sampler
  recall = experiment.problem.self_condition
  xT = prior_sample(path, times[0], keys, experiment.dataset.image_shape)
  if picture is not None:
    times = last_part(times, picture.strength)
    known = jnp.broadcast_to(picture.image, xT.shape)
    if picture.mask is None or picture.strength < 1:
      xT = start_from(path, known, times[0], keys)
    if picture.mask is not None:
      sampler = repaint(sampler, known, picture.mask[None], picture.resample)

  def denoised(x0: Array | None) -> Denoiser:
    told = cond if x0 is None else {**cond, 'x0': x0}
    found = guided(dataclasses.replace(experiment, schedule=path), params, told, keys.shape[0])
    if picture is None or picture.mask is None:
      return found
    return keep_known(found, known, picture.mask[None])

  noise = experiment.config.sampler.noise
  made = denoised if recall else denoised(None)
  return sample(sampler, made, path, times, xT, keys, noise, return_path, recall=recall)


def guided(experiment: Experiment, params: Any, cond: dict[str, Array], size: int) -> Denoiser:
  """The denoiser of `size` examples with guidance and thresholding, as the config says."""
  wanted = experiment.config.sampler
  found = denoiser(experiment, params, cond)
  if 'label' in cond and wanted.guidance != 1:
    null = {**cond, **models.null_cond(experiment.module, size)}
    interval = wanted.interval and log_snr_interval(experiment.schedule, *wanted.interval)
    found = classifier_free(
      lambda both: denoiser(experiment, params, both),
      cond,
      null,
      wanted.guidance,
      wanted.rescale,
      interval,
    )
  return THRESHOLDS[wanted.threshold](found)


def evaluations(experiment: Experiment, picture: Picture | None = None) -> int:
  """How often the network is evaluated for each sample; guidance doubles it, but in no interval."""
  wanted, num_times, repeats = experiment.config.sampler, experiment.times.shape[0], 1
  if picture is not None:
    num_times = last_part(experiment.times, picture.strength).shape[0]
    repeats = picture.resample if picture.mask is not None else 1
  guided = experiment.dataset.num_classes is not None and wanted.guidance not in (0, 1)
  once = num_evaluations(experiment.sampler, num_times)
  return (1 + repeats * (once - 1)) * (2 if guided else 1)


def describe(config: Config) -> str:
  """As in '25 steps of ddim, guidance 1.5'."""
  wanted = config.sampler
  return f'{wanted.num_steps} steps of {wanted.name}, guidance {wanted.guidance:g}'
