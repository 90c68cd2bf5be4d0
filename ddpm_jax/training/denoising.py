"""How a network that removes noise is used: as a denoiser, and to draw samples."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jax import Array

from ddpm_jax import models
from ddpm_jax.config import Config
from ddpm_jax.diffusion.parameterization import Denoiser, make_denoiser
from ddpm_jax.diffusion.schedules import bind
from ddpm_jax.samplers import (
  classifier_free,
  clip_x0,
  num_evaluations,
  prior_sample,
  sample,
)

if TYPE_CHECKING:  # it imports this module
  from ddpm_jax.training.experiment import Experiment


def bind_schedule(experiment: Experiment, params: dict[str, Any]) -> Experiment:
  """The experiment with what params['schedule'] has learned of its schedule."""
  return dataclasses.replace(experiment, schedule=bind(experiment.schedule, params['schedule']))


def denoiser(experiment: Experiment, params: Any, cond: dict[str, Array]) -> Denoiser:
  """The network with these parameters (the branch 'network') as a denoiser."""
  return make_denoiser(
    experiment.network, params, experiment.schedule, experiment.parameterization, cond
  )


def generate(experiment: Experiment, params: Any, cond: dict[str, Array], keys: Array) -> Array:
  """Samples as the config says, guidance and clipping included: `experiment.generate`."""
  wanted = experiment.config.sampler
  guided = denoiser(experiment, params, cond)
  if cond and wanted.guidance != 1:
    null = models.null_cond(experiment.module, keys.shape[0])
    guided = classifier_free(
      lambda both: denoiser(experiment, params, both), cond, null, wanted.guidance
    )
  guided = clip_x0(guided) if wanted.clip else guided
  xT = prior_sample(experiment.schedule, experiment.times[0], keys, experiment.dataset.image_shape)
  return sample(experiment.sampler, guided, experiment.schedule, experiment.times, xT, keys)


def evaluations(experiment: Experiment) -> int:
  """How often the network is evaluated for each sample; guidance doubles it."""
  wanted = experiment.config.sampler
  guided = experiment.dataset.num_classes is not None and wanted.guidance != 1
  return num_evaluations(experiment.sampler, wanted.num_steps) * (2 if guided else 1)


def describe(config: Config) -> str:
  """As in '25 steps of ddim, guidance 1.5'."""
  wanted = config.sampler
  return f'{wanted.num_steps} steps of {wanted.name}, guidance {wanted.guidance:g}'
