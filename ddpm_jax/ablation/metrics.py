"""What is measured of every cell, whatever it was trained on: figures that compare.

All of them are of the averaged parameters, but for the gradient's, which is of the trained ones.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax import data
from ddpm_jax.config import Config
from ddpm_jax.config.settings import Choice
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.bits import BITS
from ddpm_jax.evaluation.distances import DISTANCES, Features
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.gradients import gradient_noise
from ddpm_jax.evaluation.likelihood import split_bits
from ddpm_jax.evaluation.noise_levels import make_bin_errors
from ddpm_jax.evaluation.sampling import draw_samples
from ddpm_jax.training import Experiment, build
from ddpm_jax.training.benchmark import batches
from ddpm_jax.training.checkpoint import Checkpoints, folder_of
from ddpm_jax.training.denoising import bind_schedule
from ddpm_jax.training.loop import begin
from ddpm_jax.training.parallel import PARALLEL, all_devices
from ddpm_jax.training.pictures import grid, write_png
from ddpm_jax.training.run import load_params

GRADIENTS = 64  # minibatches
GRID = pathlib.Path('samples', 'samples.png')


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


class Trained(NamedTuple):
  """A trained cell: its experiment, bound to the schedule that it learned; its averages."""

  experiment: Experiment
  params: Any
  workdir: pathlib.Path


def measure(config: Config, workdir: pathlib.Path) -> dict[str, float]:
  """Every figure of the run in a folder; also draws a grid of its samples there."""
  experiment = build(config)
  _, params = load_params(experiment, workdir)
  trained = Trained(bind_schedule(experiment, params), params['network'], workdir)
  found: dict[str, float] = {}
  for part in MEASURES:
    found |= part(trained)
  return found


def bits(trained: Trained) -> dict[str, float]:
  """The test split's bits/dim by each of the config's likelihoods."""
  experiment = trained.experiment
  config, test = experiment.config, experiment.dataset.test
  measures = BITS[experiment.kind.name](experiment)
  options = {'seed': config.seed, 'batch_size': config.evaluation.batch_size}
  return {
    f'bits_per_dim/{name}': split_bits(of_batch, trained.params, test, **options).mean
    for name, (of_batch, _) in measures.items()
  }


def samples(trained: Trained) -> dict[str, float]:
  """Distances of samples from the test split in a classifier's features; shares read as asked."""
  experiment = trained.experiment
  config = experiment.config
  num = config.evaluation.num_samples
  labels = experiment.dataset.balanced_labels(num)
  options = {'seed': config.seed, 'batch_size': config.evaluation.batch_size}
  images = draw_samples(experiment, trained.params, num, labels, **options)
  write_png(trained.workdir / GRID, grid(by_class(images, labels), COLUMNS))
  judge = judge_of(config.dataset)
  floats = report.floats(images, 256)
  found = {}
  if judge.features:
    x = judge.features(floats)
    found |= {name: distance(x, judge.truth) for name, distance in DISTANCES.items()}
  if judge.real.classifier and labels is not None:
    found['read_as_asked'] = judge.real.classifier.accuracy(floats, labels).mean
  return found


class Judge(NamedTuple):
  """Real images and what was learned from them; no features where there are no classes."""

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
  features = Features(real.train['image'], real.train['label'])
  return Judge(real, features, features(real.test['image']))


def gradient(trained: Trained) -> dict[str, float]:
  """The training loss's `gradient_noise`, from the next minibatches of the run."""
  experiment, stream = trained.experiment, batches(trained.experiment)
  parallel = PARALLEL[experiment.config.parallel.mode](all_devices())
  folder = folder_of(trained.workdir, experiment.config.checkpoint.folder)
  with Checkpoints(folder) as checkpoints:
    state, _ = begin(experiment, parallel, checkpoints, stream)
  seen = itertools.islice(stream, GRADIENTS)
  return {'gradient_variance': gradient_noise(experiment, parallel, state, seen)}


def levels(trained: Trained) -> dict[str, float]:
  """A denoiser's held-out error in bins of log-SNR."""
  if trained.experiment.kind.name != 'denoiser':
    return {}
  errors = make_bin_errors(trained.experiment)(trained.params)
  return {f'eps_mse/{low} to {high}': value for (low, high), value in errors.items()}


MEASURES: tuple[Callable[[Trained], dict[str, float]], ...] = (bits, samples, gradient, levels)
