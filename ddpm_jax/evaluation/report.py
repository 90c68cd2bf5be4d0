"""What a run's samples and likelihood amount to: the figures, and the table that shows them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

from ddpm_jax.data import Dataset, scale
from ddpm_jax.data.dataset import Batch
from ddpm_jax.evaluation.baselines import gaussian_bits, histogram_bits
from ddpm_jax.evaluation.batching import evenly
from ddpm_jax.evaluation.classifier import Classifier
from ddpm_jax.evaluation.diversity import nearest_ratio, spread_ratio
from ddpm_jax.evaluation.sampling import Samples

Figures = dict[str, Any]

RATIOS = (
  ('spread_ratio', 'spread within a class', 'real: 1'),
  ('nearest_ratio', 'distance to nearest', 'training images: 1'),
)

READ = 'read as asked: by a classifier that has seen the real training images alone'
RATIO = (
  "spread: a class's standard deviation, as a share of the real one's\n"
  'distance: from held-out images to the nearest sample, over that to the nearest training image'
)

SIMPLE = (
  'The simple loss gives little weight to low noise, where most of the bits are: what draws well\n'
  'can still need more bits than a histogram of each pixel.'
)


class Real(NamedTuple):
  """Real images: `train` and `test` hold floats 'image' in [-1, 1] and 'label'.

  `classifier` has seen `train` alone; it is None where there are no classes.
  """

  train: Batch
  test: Batch
  classifier: Classifier | None


def read_real(dataset: Dataset, limit: int = 10_000) -> Real:
  """At most `limit` images of each split, evenly spaced, and the classifier of those."""
  splits = (evenly(split, limit) for split in (dataset.train, dataset.test))
  train, test = ({**split, 'image': floats(split['image'], dataset.num_levels)} for split in splits)
  labeled = dataset.num_classes is not None
  if not labeled:  # as the samples are then: all of one class
    train, test = ({**split, 'label': np.zeros_like(split['label'])} for split in (train, test))
  return Real(train, test, Classifier(train['image'], train['label']) if labeled else None)


def real_figures(real: Real) -> Figures:
  """The classifier's accuracy on held-out images."""
  if real.classifier is None:
    return {}
  accuracy = real.classifier.accuracy(real.test['image'], real.test['label'])
  return {'read_as_labeled': accuracy._asdict()}


def sample_figures(samples: Samples, real: Real) -> Figures:
  """Share read as asked for and ratios of diversity, beside real images of the samples' classes."""
  images = floats(samples.images, 256)
  labels = np.zeros(len(images), np.int32) if samples.labels is None else samples.labels
  train, test = of_classes(real.train, labels), of_classes(real.test, labels)
  figures = {
    'count': len(images),
    **samples.record,
    'spread_ratio': spread_ratio(images, labels, train['image'], train['label']),
    'nearest_ratio': nearest_ratio(images, train['image'], test['image']),
  }
  if real.classifier:
    figures['read_as_asked'] = real.classifier.accuracy(images, labels)._asdict()
  return figures


def floats(image: np.ndarray, num_levels: int) -> np.ndarray:
  """Levels as floats in [-1, 1]."""
  return np.asarray(scale(jnp.asarray(image), num_levels))


def of_classes(batch: Batch, labels: np.ndarray) -> Batch:
  """The examples whose class is among the labels."""
  rows = np.isin(batch['label'], labels)
  return {name: column[rows] for name, column in batch.items()}


def baseline_figures(dataset: Dataset, limit: int = 10_000) -> Figures:
  """Test bits/dim of the simple models, fitted to at most `limit` training images."""
  train, test = evenly(dataset.train, limit)['image'], evenly(dataset.test, limit)['image']
  models = {'gaussian': gaussian_bits, 'histogram': histogram_bits}
  return {
    name: float(model(train, test, dataset.num_levels).mean()) for name, model in models.items()
  }


def make_table(title: str, figures: Figures) -> Table:
  """The end table.

  Args:
    title: its first line.
    figures: 'samples', a list of `sample_figures`; 'real', `real_figures`; 'bits_per_dim', name ->
      mean, error and how, the headline first; 'baselines', `baseline_figures`.
  """
  groups, base = figures['samples'], figures['baselines']
  table = Table(title=title, title_justify='left', box=box.SIMPLE_HEAD)
  table.add_column(f'{groups[0]["count"]} samples')
  for group in groups:
    guidance = group['sampler']['guidance']
    name = 'unguided' if guidance == 1 else f'guidance {guidance:g}'
    head = [name] if len(groups) > 1 or guidance != 1 else []
    table.add_column('\n'.join([*head, times(group['evaluations'])]), justify='right')
  table.add_column('beside')
  if 'read_as_labeled' in figures['real']:
    shares = [percent(group['read_as_asked']) for group in groups]
    real = percent(figures['real']['read_as_labeled'])
    table.add_row('read as asked', *shares, f'real: {real}')
  for key, name, reference in RATIOS:
    table.add_row(name, *(f'{group[key]:.2f}' for group in groups), reference)
  beside = [f'histogram: {base["histogram"]:.2f}', f'Gaussian: {base["gaussian"]:.2f}']
  for name, bits in figures['bits_per_dim'].items():
    place = f'bits/dim ≤, {name}'
    blanks = [''] * (len(groups) - 1)
    table.add_row(place, f'{bits["mean"]:.3f} ± {bits["error"]:.3f}', *blanks, '\n'.join(beside))
    beside = []
  return table


def notes(figures: Figures) -> str:
  """What the table's figures are not clear without."""
  rows = figures['bits_per_dim']
  lines = [f'bits/dim of the test split, {name}: {bits["how"]}' for name, bits in rows.items()]
  lines = [*([READ] if figures['real'] else []), RATIO, *lines]
  beaten = next(iter(rows.values()))['mean'] > figures['baselines']['histogram']
  return '\n'.join([*lines, SIMPLE] if beaten and figures['loss'] == 'simple' else lines)


def times(evaluations: int | None) -> str:
  """As in '50 evaluations'."""
  if evaluations is None:
    return 'adaptive steps'
  return f'{evaluations} evaluation{"s" if evaluations > 1 else ""}'


def percent(share: Figures) -> str:
  """97.4 ± 0.5 %."""
  return f'{100 * share["mean"]:.1f} ± {100 * share["error"]:.1f} %'
