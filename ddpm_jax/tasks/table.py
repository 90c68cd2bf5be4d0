"""The tasks by name."""

from __future__ import annotations

from collections.abc import Callable

from ddpm_jax.config.settings import naming
from ddpm_jax.errors import InputError
from ddpm_jax.tasks.autoencoding import autoencoding
from ddpm_jax.tasks.denoising import denoising
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.parts import codec_of
from ddpm_jax.training.task import Frozen, Task

TASKS: dict[str, Callable[..., Task]] = {'denoising': denoising, 'autoencoding': autoencoding}

# The groups of a config that a task makes no use of, and that stay unset.
UNREAD = {'autoencoding': frozenset({'schedule', 'parameterization', 'sampler'})}


def make_task(experiment: Experiment, teacher: Frozen | None = None) -> Task:
  """The task that the experiment's config names.

  Args:
    experiment: from `build`.
    teacher: the parameters of another run, {'network', 'schedule'}, for a loss that learns from it.

  Raises:
    InputError: the experiment is one of another task.
  """
  with naming('config.task', otherwise='config.task.name'):
    task = experiment.config.task.build(TASKS, experiment=experiment, teacher=teacher)
  if not isinstance(task, Task):
    raise InputError(f"config.task.name: '{experiment.config.task.name}' does not return a Task")
  # What encodes and decodes for a task reads the codec's parameters there.
  return task._replace(frozen={**codec_of(experiment), **task.frozen})
