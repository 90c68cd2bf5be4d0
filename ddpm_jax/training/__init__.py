"""Training: the step, the ways of running it on many devices, the loop, and a run's folder."""

from ddpm_jax.training.experiment import Experiment, build, generate
from ddpm_jax.training.loop import train
from ddpm_jax.training.optimizers import LR_SCHEDULES, OPTIMIZERS
from ddpm_jax.training.run import Run, load_run
from ddpm_jax.training.state import TrainState

__all__ = [
  'LR_SCHEDULES',
  'OPTIMIZERS',
  'Experiment',
  'Run',
  'TrainState',
  'build',
  'generate',
  'load_run',
  'train',
]
