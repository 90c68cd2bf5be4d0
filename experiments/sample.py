"""Draws samples of a trained run, with its averaged parameters.

  python -m experiments.sample --workdir=runs/digits --guidance=2 --steps=25

The run's own sampler settings hold where no flag says otherwise. Writes samples.npz (arr_0 the
uint8 images, arr_1 the labels) and samples/samples.png. Sample n depends on the seed, n and its
class alone.
"""

import dataclasses
import pathlib
import time
from typing import Any

import numpy as np
from absl import flags

from ddpm_jax.config import Config
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.sampling import (
  Samples,
  balanced_labels,
  draw_samples,
  evaluations,
  save_samples,
)
from ddpm_jax.training import Run, backend, build, load_run
from ddpm_jax.training.pictures import grid, write_png
from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
NUM = flags.DEFINE_integer('num', None, 'How many samples.', lower_bound=1)
STEPS = flags.DEFINE_integer('steps', None, 'Steps of the sampler.', lower_bound=1)
SAMPLER = flags.DEFINE_string('sampler', None, 'Its name.')
GRID = flags.DEFINE_string('grid', None, 'Law of the times that it visits.')
GUIDANCE = flags.DEFINE_float('guidance', None, 'Scale of guidance; 1: none.', lower_bound=0.0)
LABEL = flags.DEFINE_integer('label', None, 'One class for all; unset: all in turn.', lower_bound=0)
SEED = flags.DEFINE_integer('seed', None, 'Of the noise.', lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer('batch_size', None, 'Samples at a time.', lower_bound=1)


def main() -> None:
  """The command."""
  start = time.monotonic()
  backend.prepare()
  workdir = pathlib.Path(WORKDIR.value)
  run = load_run(workdir)
  config = overridden(run)
  experiment = build(config, run.experiment.dataset)
  num = config.evaluation.num_samples
  labels = chosen_labels(run, num)
  with progress('samples', num) as advance:
    images = draw_samples(
      experiment,
      run.params,
      num,
      labels,
      seed=config.seed,
      batch_size=config.evaluation.batch_size,
      advance=advance,
    )
  record = {
    'step': run.step,
    'seed': config.seed,
    'evaluations': evaluations(experiment),
    'sampler': dataclasses.asdict(config.sampler),
  }
  save_samples(workdir / 'samples.npz', Samples(images, labels, record))
  write_png(workdir / 'samples' / 'samples.png', grid(by_class(images, labels), COLUMNS))
  print(
    f'{num} samples, {experiment.kind.describe(config)}: evaluations of the network for each: '
    f'{record["evaluations"]}, in {time.monotonic() - start:.0f} s\n'
    f'{workdir / "samples.npz"}\n{workdir / "samples" / "samples.png"}'
  )


def overridden(run: Run) -> Config:
  """The run's config with what was typed; without classes there is nothing to guide to."""
  config, sampler = run.config, run.config.sampler
  if SAMPLER.value is not None and SAMPLER.value != sampler.name:
    sampler = dataclasses.replace(sampler, name=SAMPLER.value, arguments={})
  sampler = replaced(sampler, num_steps=STEPS, grid=GRID, guidance=GUIDANCE)
  if run.experiment.dataset.num_classes is None:
    sampler = dataclasses.replace(sampler, guidance=1.0)
  evaluation = replaced(config.evaluation, num_samples=NUM, batch_size=BATCH_SIZE)
  return replaced(dataclasses.replace(config, sampler=sampler, evaluation=evaluation), seed=SEED)


def replaced(settings: Any, **typed: flags.FlagHolder) -> Any:
  """The settings with those flags that were given."""
  given = {name: flag.value for name, flag in typed.items() if flag.value is not None}
  return dataclasses.replace(settings, **given)


def chosen_labels(run: Run, num: int) -> np.ndarray | None:
  """The classes to ask for."""
  classes = run.experiment.dataset.num_classes
  if LABEL.value is None:
    return balanced_labels(num, classes)
  if classes is None or LABEL.value >= classes:
    mend = 'leave it out' if classes is None else f'give 0 to {classes - 1}'
    raise InputError(f'--label: {LABEL.value} is not one of the {classes or 0} classes; {mend}')
  return np.full(num, LABEL.value, np.int32)


if __name__ == '__main__':
  cli.run(main)
