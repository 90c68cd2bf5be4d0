"""How samples are drawn from a network that removes noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from jax import Array

from ddpm_jax import models
from ddpm_jax.condition import Cond
from ddpm_jax.config.settings import Config, naming
from ddpm_jax.diffusion.parameterization import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedules import Discrete, interpolate
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
from ddpm_jax.samplers.guidance import equals
from ddpm_jax.samplers.stability import complaint
from ddpm_jax.tasks.experiment import Experiment


class Route(NamedTuple):
  """What samples are drawn on, and the times (N,) that are visited there."""

  path: Any
  times: Array


class Picture(NamedTuple):
  """A picture that samples begin with or are drawn around.

  Attributes:
    image: of the codec's shape, encoded.
    mask: as the image, its last axis 1, true where the picture is kept; None: all of it is only
      begun with.
    strength: in (0, 1], the share of the times that are sampled through; the less, the more is left
      of the picture.
    resample: with a mask, how often each step is taken, as by `repaint`.
  """

  image: Array
  mask: Array | None = None
  strength: float = 1.0
  resample: int = 1


class Guidance(NamedTuple):
  """Away from what, and how far; see `classifier_free`.

  Attributes:
    null: a condition for each sample, or a tuple of them; None: the network's own null.
    scale: one, or a tuple with one for each null; None: the config's.
  """

  null: Any = None
  scale: Any = None


def drawn_on(config: Config, sampler: Any, schedule: Any) -> Route:
  """What samples are drawn on, and the times that are visited there.

  It is the schedule; but a chain is read in continuous time for samplers that want times between
  those of the grid and for grids even in log-SNR, which crowd between its last few times. A solver
  visits times of its own between the two that it is given here, the path's ends.

  Raises:
    InputError: the chain has no such reading, the grid no such times, or the interval is empty.
  """
  wanted = config.sampler
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
    return Route(schedule, jnp.array([schedule.t_max, schedule.t_min]))
  with naming('config.sampler'):
    return Route(schedule, time_grid(wanted.grid, schedule, wanted.num_steps))


def route_of(experiment: Experiment) -> Route:
  """What the experiment's samples are drawn on; see `drawn_on`."""
  return drawn_on(experiment.config, experiment.sampler, experiment.schedule)


def warn_unstable(experiment: Experiment, strength: float = 1.0) -> None:
  """Logs a line where the config's sampler blows data up over its times, and what does not."""
  config, sampler = experiment.config, experiment.sampler
  if not isinstance(sampler, Sampler) or experiment.schedule is None:
    return
  wanted = config.sampler

  def places(grid: str, num_steps: int) -> Route:
    other = dataclasses.replace(wanted, grid=grid, num_steps=num_steps)
    return drawn_on(dataclasses.replace(config, sampler=other), sampler, experiment.schedule)

  path, times = route_of(experiment)
  grid = wanted.grid if strength == 1 else None
  line = complaint(sampler, path, last_part(times, strength), places, grid)
  if line:
    logging.warning("config.sampler: '%s' over '%s': %s", wanted.name, wanted.grid, line)


def denoiser(experiment: Experiment, params: Any, cond: Cond, path: Any = None) -> Denoiser:
  """The network with these parameters (the branch 'network') as a denoiser.

  Args:
    experiment: of the network.
    params: the network's.
    cond: what it is told.
    path: what it is read on; None: the schedule that it was trained on.

  Raises:
    InputError: for a condition that is none of the network's; see `condition.checked`.
  """
  told = models.checked_cond(experiment.module, cond)
  schedule: Any = experiment.schedule if path is None else path
  parameterization: Any = experiment.parameterization
  return make_denoiser(experiment.network, params, schedule, parameterization, told)


def drawing(
  experiment: Experiment,
  params: Any,
  route: Route,
  cond: Cond,
  keys: Array,
  picture: Picture | None = None,
  guidance: Guidance | None = None,
) -> dict[str, Any]:
  """The arguments of `sample` that the config asks for."""
  path, times = route
  sampler: Any = experiment.sampler
  xT = prior_sample(path, times[0], keys, experiment.codec.shape)
  if picture is not None:
    times = last_part(times, picture.strength)
    known = jnp.broadcast_to(picture.image, xT.shape)
    if picture.mask is None or picture.strength < 1:
      xT = start_from(path, known, times[0], keys)
    if picture.mask is not None:
      sampler = repaint(sampler, known, picture.mask[None], picture.resample)

  def denoised(tell: Tell) -> Denoiser:
    found = guided(experiment, params, path, cond, keys.shape[0], guidance, tell)
    if picture is None or picture.mask is None:
      return found
    return keep_known(found, known, picture.mask[None])

  recall = recalls(experiment)
  return {
    'sampler': sampler,
    'denoiser': (lambda x0: denoised(estimate(experiment, x0))) if recall else denoised(nothing),
    'schedule': path,
    'times': times,
    'xT': xT,
    'keys': keys,
    'noise': experiment.config.sampler.noise,
    'recall': recall,
  }


Tell = Callable[[Cond], Cond]


def nothing(cond: Cond) -> Cond:
  """Tells the network nothing but its condition."""
  return cond


def estimate(experiment: Experiment, x0: Array) -> Tell:
  """Tells a network its own last estimate of x0 (B, …)."""
  clipped = experiment.codec.clip(x0)
  return lambda cond: models.tell_estimate(cond, clipped)


def recalls(experiment: Experiment) -> bool:
  """Whether the network sees its own last estimate of x0."""
  return getattr(experiment.module, 'self_condition', False)


def generate(
  experiment: Experiment,
  params: Any,
  route: Route,
  cond: Cond,
  keys: Array,
  picture: Picture | None = None,
  return_path: bool = False,
  guidance: Guidance | None = None,
) -> Any:
  """Samples as the config says, guidance and thresholding included; pure, for the caller to jit.

  Args:
    experiment: of a network that removes noise.
    params: the network's.
    route: from `drawn_on`.
    cond: what samples are conditioned on, (B, …); {} for an unconditional network.
    keys: (B,); sample i depends on keys[i] and its condition alone.
    picture: what they begin with or are drawn around.
    return_path: whether to return the way there too.
    guidance: in place of the config's.

  Returns:
    (B, *codec.shape); with return_path also the way there, (N + 1, B, …).

  Raises:
    InputError: for a picture or a path of a solver, which has no times to begin at or to show.
  """
  if isinstance(experiment.sampler, Solver):
    if picture is not None or return_path:
      name = experiment.config.sampler.name
      raise InputError(
        f"config.sampler.name: '{name}' has no times of its grid to show or begin at"
      )
    return solved(experiment, params, route, cond, keys, guidance)
  arguments = drawing(experiment, params, route, cond, keys, picture, guidance)
  return sample(**arguments, return_path=return_path)


def solved(
  experiment: Experiment,
  params: Any,
  route: Route,
  cond: Cond,
  keys: Array,
  guidance: Guidance | None,
) -> Array:
  """Samples by a solver: each example is a solve of its own, under its own condition."""
  path, (t, s) = route
  null, scale = guidance or Guidance()
  solver: Any = experiment.sampler

  def example(xT: Array, told: tuple[Cond, Any]) -> Array:
    cond, null = jax.tree.map(lambda leaf: leaf[None], told)
    denoised = guided(experiment, params, path, cond, 1, Guidance(null, scale))
    return denoised(solver(path, denoised, xT[None], t, s), s).x0[0]

  return jax.vmap(example)(prior_sample(path, t, keys, experiment.codec.shape), (cond, null))


def guided(
  experiment: Experiment,
  params: Any,
  path: Any,
  cond: Cond,
  size: int,
  guidance: Guidance | None = None,
  tell: Tell = nothing,
) -> Denoiser:
  """The denoiser of `size` examples with guidance and thresholding, as the config says."""
  wanted = experiment.config.sampler
  null, scale = guidance or Guidance()
  scale = wanted.guidance if scale is None else scale
  if experiment.conditional and not equals(scale, 1):
    if null is None:
      check_guidance(experiment, scale)
      null = models.null_cond(experiment.module, size)
    found = classifier_free(
      lambda every: denoiser(experiment, params, every, path),
      tell(cond),
      tuple(map(tell, null)) if isinstance(null, tuple) else tell(null),
      scale,
      wanted.rescale,
      wanted.interval and log_snr_interval(path, *wanted.interval),
    )
  else:
    found = denoiser(experiment, params, tell(cond), path)
  with naming('config.sampler'):
    return THRESHOLDS[wanted.threshold](found, experiment.codec.bounds)


def check_guidance(experiment: Experiment, scale: Any = None) -> None:
  """Raises InputError where guidance would follow a null that is never trained.

  Args:
    experiment: of the network.
    scale: in place of the config's.
  """
  rate = models.never_null(experiment.module)
  scale = experiment.config.sampler.guidance if scale is None else scale
  if experiment.conditional and not equals(scale, 1) and rate:
    raise InputError(
      f'config.sampler.guidance: {scale} follows the null, which is never trained with '
      f'config.model.{rate}=0; train with some, or guide by 1'
    )


def evaluations(
  experiment: Experiment, picture: Picture | None = None, guidance: Guidance | None = None
) -> int | None:
  """How often the network is evaluated for each sample; guidance doubles it, but in no interval.

  None for a solver, whose tolerance decides.
  """
  if isinstance(experiment.sampler, Solver):
    return None
  sampler: Any = experiment.sampler
  times = route_of(experiment).times
  repeats = 1
  if picture is not None:
    times = last_part(times, picture.strength)
    repeats = picture.resample if picture.mask is not None else 1
  once = num_evaluations(sampler, times.shape[0])
  return (1 + repeats * (once - 1)) * denoisers(experiment, guidance)


def denoisers(experiment: Experiment, guidance: Guidance | None = None) -> int:
  """How many denoisers guidance evaluates at a time, as `classifier_free` does."""
  wanted = experiment.config.sampler
  scale = wanted.guidance if guidance is None or guidance.scale is None else guidance.scale
  scales = scale if isinstance(scale, tuple) else (scale,)
  if not experiment.conditional or all(equals(each, 1) for each in scales):
    return 1
  plain = all(equals(each, 0) for each in scales) and not wanted.rescale and not wanted.interval
  return 1 if plain else 1 + len(scales)


def is_guided(experiment: Experiment) -> bool:
  """Whether there is a condition, and a scale other than 1."""
  return experiment.conditional and experiment.config.sampler.guidance != 1


def describe(experiment: Experiment) -> str:
  """How samples are drawn, in words, as in '25 steps of ddim, guidance 1.5'."""
  wanted = experiment.config.sampler
  steps = '' if isinstance(experiment.sampler, Solver) else f'{wanted.num_steps} steps of '
  how = f'{steps}{wanted.name}'
  return f'{how}, guidance {wanted.guidance:g}' if is_guided(experiment) else how
