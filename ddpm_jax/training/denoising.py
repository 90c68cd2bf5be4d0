"""How a network that removes noise is used: as a denoiser, and to draw samples."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax import Array

from ddpm_jax import models
from ddpm_jax.config import Config, naming
from ddpm_jax.diffusion.parameterization import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedules import Discrete, bind, interpolate
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import (
  OF_LOG_SNR,
  THRESHOLDS,
  Sampler,
  Solver,
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
from ddpm_jax.samplers.stability import complaint

if TYPE_CHECKING:  # it imports this module
  from ddpm_jax.training.experiment import Experiment


def drawn_on(config: Config, sampler: Sampler | Solver | None, schedule: Any) -> tuple[Any, Array]:
  """What samples are drawn on, and the times that are visited there.

  It is the schedule; but a chain is read in continuous time for samplers that want times between
  those of the grid and for grids even in log-SNR, which crowd between its last few times. A solver
  visits times of its own between the two that it is given here, the path's ends.

  Raises:
    InputError: the chain has no such reading, the grid no such times, or the interval is empty.
  """
  wanted = config.sampler
  if sampler is None or schedule is None:
    return schedule, jnp.zeros(0)
  if wanted.interval:
    with naming('config.sampler'):  # refuses an empty one before anything is trained
      log_snr_interval(schedule, *wanted.interval)
  between = sampler.between or wanted.grid in OF_LOG_SNR
  if between and isinstance(schedule, Discrete):
    try:
      schedule = interpolate(schedule)
    except ValueError as error:
      raise InputError(
        f"config.sampler: '{wanted.name}' over '{wanted.grid}' needs times between those of the "
        f'chain, but {error}'
      ) from error
  if isinstance(sampler, Solver):
    return schedule, jnp.array([schedule.t_max, schedule.t_min])
  with naming('config.sampler'):
    return schedule, time_grid(wanted.grid, schedule, wanted.num_steps)


def warn_unstable(experiment: Experiment, strength: float = 1.0) -> None:
  """Logs a line where the config's sampler blows data up over its times, and what does not."""
  config, sampler = experiment.config, experiment.sampler
  if not isinstance(sampler, Sampler):
    return
  wanted = config.sampler

  def places(grid: str, num_steps: int) -> tuple[Any, Array]:
    other = dataclasses.replace(wanted, grid=grid, num_steps=num_steps)
    return drawn_on(dataclasses.replace(config, sampler=other), sampler, experiment.schedule)

  times = last_part(experiment.times, strength)
  line = complaint(sampler, experiment.path, times, places, wanted.grid if strength == 1 else None)
  if line:
    logging.warning("config.sampler: '%s' over '%s': %s", wanted.name, wanted.grid, line)


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
  """The network with these parameters (the branch 'network') as a denoiser.

  Raises:
    InputError: for labels that are none of the network's; see `models.checked_cond`.
  """
  told = models.checked_cond(experiment.module, cond)
  return make_denoiser(
    experiment.network, params, experiment.schedule, experiment.parameterization, told
  )


def drawing(
  experiment: Experiment,
  params: Any,
  cond: dict[str, Array],
  keys: Array,
  picture: Picture | None = None,
) -> dict[str, Any]:
  """The arguments of `sample` that the config asks for."""
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

  return {
    'sampler': sampler,
    'denoiser': denoised if recall else denoised(None),
    'schedule': path,
    'times': times,
    'xT': xT,
    'keys': keys,
    'noise': experiment.config.sampler.noise,
    'recall': recall,
  }


def generate(
  experiment: Experiment,
  params: Any,
  cond: dict[str, Array],
  keys: Array,
  picture: Picture | None = None,
  return_path: bool = False,
) -> Any:
  """Samples as the config says, guidance and thresholding included: `experiment.generate`.

  Raises:
    InputError: for a picture or a path of a solver, which has no times to begin at or to show.
  """
  if isinstance(experiment.sampler, Solver):
    if picture is not None or return_path:
      name = experiment.config.sampler.name
      raise InputError(
        f"config.sampler.name: '{name}' has no times of its grid to show or begin at"
      )
    return solved(experiment, params, cond, keys)
  arguments = drawing(experiment, params, cond, keys, picture)
  return sample(**arguments, return_path=return_path)


def solved(experiment: Experiment, params: Any, cond: dict[str, Array], keys: Array) -> Array:
  """Samples by a solver: each example is a solve of its own, under its own condition."""
  path, (t, s) = experiment.path, experiment.times
  experiment = dataclasses.replace(experiment, schedule=path)

  def example(xT: Array, cond: dict[str, Array]) -> Array:
    alone = jax.tree.map(lambda leaf: leaf[None], cond)
    denoised = guided(experiment, params, alone, 1)
    return denoised(experiment.sampler(path, denoised, xT[None], t, s), s).x0[0]

  return jax.vmap(example)(prior_sample(path, t, keys, experiment.dataset.image_shape), cond)


def guided(experiment: Experiment, params: Any, cond: dict[str, Array], size: int) -> Denoiser:
  """The denoiser of `size` examples with guidance and thresholding, as the config says."""
  wanted = experiment.config.sampler
  found = denoiser(experiment, params, cond)
  if 'label' in cond and wanted.guidance != 1:
    check_guidance(experiment)
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


def check_guidance(experiment: Experiment) -> None:
  """Raises InputError where guidance would follow a null label that is never trained."""
  dropped = getattr(experiment.module, 'label_dropout', None)
  if is_guided(experiment) and dropped == 0:
    raise InputError(
      f'config.sampler.guidance: {experiment.config.sampler.guidance:g} follows the null label, '
      'which is never trained with config.model.label_dropout=0; train with some, or guide by 1'
    )


def evaluations(experiment: Experiment, picture: Picture | None = None) -> int | None:
  """How often the network is evaluated for each sample; guidance doubles it, but in no interval.

  None for a solver, whose tolerance decides.
  """
  if isinstance(experiment.sampler, Solver):
    return None
  num_times, repeats = experiment.times.shape[0], 1
  if picture is not None:
    num_times = last_part(experiment.times, picture.strength).shape[0]
    repeats = picture.resample if picture.mask is not None else 1
  once = num_evaluations(experiment.sampler, num_times)
  both = experiment.config.sampler.guidance != 0 and is_guided(experiment)
  return (1 + repeats * (once - 1)) * (2 if both else 1)


def is_guided(experiment: Experiment) -> bool:
  """Whether there are classes, and a scale other than 1."""
  return experiment.dataset.num_classes is not None and experiment.config.sampler.guidance != 1


def describe(experiment: Experiment) -> str:
  """As in '25 steps of ddim, guidance 1.5'."""
  wanted = experiment.config.sampler
  steps = '' if isinstance(experiment.sampler, Solver) else f'{wanted.num_steps} steps of '
  how = f'{steps}{wanted.name}'
  return f'{how}, guidance {wanted.guidance:g}' if is_guided(experiment) else how
