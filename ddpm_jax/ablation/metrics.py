"""What is measured of every cell, whatever it was trained on: figures that compare.

All of them are of the averaged parameters, but for the gradient's, which is of the trained ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from ddpm_jax import data
from ddpm_jax.condition import classes_in
from ddpm_jax.config import Config
from ddpm_jax.config.settings import Choice
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.available import LEFT_OUT, Figures, Unavailable, collect, merge
from ddpm_jax.evaluation.distances import DISTANCES, Distance, Features
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.gradients import gradient_noise
from ddpm_jax.evaluation.noise_levels import make_bin_errors
from ddpm_jax.evaluation.sampling import draw_samples
from ddpm_jax.evaluation.split_bits import split_bits
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.run import Run, load_params, used
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training.checkpoint import Checkpoints, folder_of
from ddpm_jax.training.job import Job
from ddpm_jax.training.loop import read_stream
from ddpm_jax.training.pictures import grid, write_png
from ddpm_jax.training.start import begin
from ddpm_jax.training.task import Measure, NoMeasure

GRADIENTS = 64  # minibatches
GRID = 'samples/samples.png'


class Metric(NamedTuple):
  """How a figure is read.

  Attributes:
    title: in words.
    sign: -1 where less is better, 1 where more is.
    scale: what it is multiplied by to be shown.
  """

  title: str
  sign: int = -1
  scale: float = 1.0


METRICS = {
  'bits_per_dim': Metric('bits/dim'),
  'frechet': Metric('Fréchet distance'),
  'mmd': Metric('kernel distance'),
  'read_as_asked': Metric('read as asked, %', 1, 100.0),
  'gradient_variance': Metric('gradient variance'),
  'eps_mse': Metric('error of eps'),
}


def metric(name: str) -> Metric:
  """How the figure 'bits_per_dim/chain' or 'frechet' is read."""
  group, _, part = name.partition('/')
  found = METRICS[group]
  return found._replace(title=f'{found.title}, {part}') if part else found


def place(name: str) -> tuple[int, int]:
  """Where the figure stands among others: in the order of METRICS, bins from noise to data.

  Raises:
    ValueError: there is no such figure.
  """
  group, _, part = name.partition('/')
  return list(METRICS).index(group), int(part.split(' ')[0]) if group == 'eps_mse' else 0


class Trained(NamedTuple):
  """A trained cell: its job, with the data set's examples; its averages as a run."""

  job: Job
  run: Run
  workdir: epath.Path


def measure(config: Config, workdir: epath.Path) -> Figures:
  """Every figure of the run in a folder; also draws a grid of its samples there.

  One that cannot be had is None, and its reason is under LEFT_OUT.
  """
  experiment = build(config)
  job = make_job(experiment)
  step, params = load_params(job.task, config, workdir)
  run = Run(experiment, job.task, used(job.task, params), step, params, job.frozen)
  trained = Trained(job, run, workdir)
  return merge(*(part(trained) for part in MEASURES))


def bits(trained: Trained) -> Figures:
  """The test split's bits/dim by each of the config's likelihoods."""
  run, dataset = trained.run, trained.job.dataset
  options = {'seed': run.config.seed, 'batch_size': run.config.evaluation.batch_size}

  def mean(measure: Measure) -> float:
    found = split_bits(measure, run.trained, run.frozen, dataset, dataset.test, **options)
    return found.mean

  try:
    measures = run.use.bits()
  except NoMeasure as error:
    return {'bits_per_dim': None, LEFT_OUT: {'bits_per_dim': str(error)}}
  return collect(
    {f'bits_per_dim/{name}': functools.partial(mean, of) for name, of in measures.items()}
  )


def samples(trained: Trained) -> Figures:
  """Distances of samples from the test split in a classifier's features; shares read as asked."""
  run, dataset = trained.run, trained.job.dataset
  num = run.config.evaluation.num_samples
  cond = dataset.some_cond(num)
  options = {'seed': run.config.seed, 'batch_size': run.config.evaluation.batch_size}
  images, labels = draw_samples(run, num, cond, **options), classes_in(dataset.cond, cond)
  write_png(trained.workdir / GRID, grid(by_class(images, labels), COLUMNS))
  judge, floats = judge_of(run.config.dataset), report.floats(images, 256)
  if not judge.real.labeled:
    return {}

  def far(distance: Distance) -> float:
    if judge.features is None:
      raise Unavailable(judge.real.unread)
    return distance(judge.features(floats), judge.truth)

  found = {name: functools.partial(far, distance) for name, distance in DISTANCES.items()}
  if labels is not None:
    found['read_as_asked'] = lambda: report.read_as(judge.real, floats, labels)['mean']
  return collect(found)


class Judge(NamedTuple):
  """Real images and what was learned from them; no features where there is no classifier."""

  real: report.Real
  features: Features | None
  truth: np.ndarray


def judge_of(choice: Choice) -> Judge:
  """The judge of a data set, which is made once for all of a process's cells."""
  return make_judge(choice.name, tuple(sorted(choice.arguments.items())))


@functools.lru_cache(maxsize=1)
def make_judge(name: str, arguments: tuple[tuple[str, Any], ...]) -> Judge:
  """Trains it on the training split."""
  choice = Choice(name, dict(arguments), 'dataset')
  real = report.read_real(choice.build(data.DATASETS, data.source))
  if real.classifier is None:
    return Judge(real, None, np.zeros(0))
  features = Features(real.train.images, real.train.labels)
  return Judge(real, features, features(real.test.images))


def gradient(trained: Trained) -> Figures:
  """The training loss's `gradient_noise`, from the next minibatches of the run."""
  job, stream = trained.job, read_stream(trained.job)
  folder = folder_of(trained.workdir, job.config.checkpoint.folder)
  with Checkpoints(folder) as checkpoints:
    state, _ = begin(job, checkpoints, stream)
  seen = itertools.islice(stream, GRADIENTS)
  return collect({'gradient_variance': lambda: gradient_noise(job, state, seen)})


def levels(trained: Trained) -> Figures:
  """A denoiser's held-out error in bins of log-SNR."""
  run, dataset = trained.run, trained.job.dataset
  if run.use.denoiser is None or not len(dataset.test):
    return {}
  errors = make_bin_errors(run, dataset)()
  return collect(
    {f'eps_mse/{low} to {high}': lambda value=value: value for (low, high), value in errors.items()}
  )


MEASURES: tuple[Callable[[Trained], Figures], ...] = (bits, samples, gradient, levels)
