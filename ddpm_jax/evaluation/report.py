"""What a run's samples and likelihood amount to: the figures, and the table that shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.markup import escape
from rich.table import Table

from ddpm_jax.codec import scale
from ddpm_jax.condition import class_name, classes_in
from ddpm_jax.data import Dataset
from ddpm_jax.data.dataset import Batch, Split
from ddpm_jax.evaluation.available import LEFT_OUT, Figures, Unavailable, collect
from ddpm_jax.evaluation.baselines import gaussian_bits, histogram_bits
from ddpm_jax.evaluation.batching import evenly
from ddpm_jax.evaluation.classifier import Classifier
from ddpm_jax.evaluation.diversity import nearest_ratio, spread_ratio
from ddpm_jax.evaluation.sampling import Samples

NUMBERS = 2**25  # of a split at a time, 256 MB in double precision
NONE = '–'
RATIOS = (
  ('spread_ratio', 'spread within a class', 'real: 1'),
  ('nearest_ratio', 'distance to nearest', 'training images: 1'),
)

NAMES = {name: words for name, words, _ in RATIOS} | {
  'read_as_asked': 'read as asked',
  'read_as_labeled': 'real images read as labeled',
  'gaussian': 'Gaussian',
  'histogram': 'histogram',
}

READ = 'read as asked: by a classifier that has seen the real training images alone'
RATIO = (
  "spread: a class's standard deviation, as a share of the real one's\n"
  'distance: from held-out images to the nearest sample, over that to the nearest training image'
)

SIMPLE = (
  'The simple loss gives little weight to low noise, where most of the bits are: what draws well\n'
  'can still need more bits than a histogram of each pixel.'
)


class Images(NamedTuple):
  """Images as floats in [-1, 1], (N, H, W, C), and their classes (N,); all zero without classes."""

  images: np.ndarray
  labels: np.ndarray


class Real(NamedTuple):
  """Real images of both splits.

  `classifier` has seen `train` alone; it is None where there are no classes, or where none can be
  had of them, and then `unread` says why.
  """

  train: Images
  test: Images
  classifier: Classifier | None
  unread: str = ''

  @property
  def labeled(self) -> bool:
    """Whether there are classes."""
    return self.classifier is not None or bool(self.unread)


def read_real(dataset: Dataset, limit: int = 10_000) -> Real:
  """At most `limit` images of each split, evenly spaced, and the classifier of those."""
  train, test = (images_of(dataset, split, limit) for split in (dataset.train, dataset.test))
  if class_name(dataset.cond) is None:
    return Real(train, test, None)
  try:
    return Real(train, test, Classifier(*train))
  except Unavailable as error:
    return Real(train, test, None, str(error))


def images_of(dataset: Dataset, split: Split, limit: int) -> Images:
  """At most `limit` images of a split, with their classes."""
  batch = some(split, limit, dataset)
  labels = classes_in(dataset.cond, batch['cond'])
  images = floats(batch['x'], dataset.num_levels)
  return Images(images, np.zeros(len(images), np.int32) if labels is None else labels)


def some(split: Split, limit: int, dataset: Dataset) -> Batch:
  """At most `limit` examples, evenly spaced, and at most NUMBERS pixels and channels of them."""
  most = max(1, min(limit, NUMBERS // math.prod(dataset.image_shape)))
  return evenly(dataset, split, most)


def real_figures(real: Real) -> Figures:
  """The classifier's accuracy on held-out images."""
  accuracy = {'read_as_labeled': lambda: read_as(real, *real.test)}
  return collect(accuracy) if real.labeled else {}


def read_as(real: Real, images: np.ndarray, labels: np.ndarray) -> Figures:
  """The share of images that the classifier reads as their labels."""
  if real.classifier is None:
    raise Unavailable(real.unread)
  return real.classifier.accuracy(images, labels)._asdict()


def sample_figures(samples: Samples, real: Real) -> Figures:
  """Share read as asked for and ratios of diversity, beside real images of the samples' classes."""
  images = floats(samples.images, 256)
  labels = np.zeros(len(images), np.int32) if samples.labels is None else samples.labels
  train, test = of_classes(real.train, labels), of_classes(real.test, labels)
  figures: dict[str, Callable[[], Any]] = {
    'spread_ratio': lambda: spread_ratio(images, labels, *train),
    'nearest_ratio': lambda: nearest_ratio(images, train.images, test.images),
  }
  if real.labeled:
    figures['read_as_asked'] = lambda: read_as(real, images, labels)
  return {'count': len(images), **samples.record, **collect(figures)}


def floats(image: np.ndarray, num_levels: int) -> np.ndarray:
  """Levels as floats in [-1, 1]."""
  return np.asarray(scale(jnp.asarray(image), num_levels))


def of_classes(real: Images, labels: np.ndarray) -> Images:
  """The images whose class is among the labels."""
  rows = np.isin(real.labels, labels)
  return Images(*(column[rows] for column in real))


def baseline_figures(dataset: Dataset, limit: int = 10_000) -> Figures:
  """Test bits/dim of the simple models, fitted to at most `limit` training images."""
  train, test = (some(split, limit, dataset)['x'] for split in (dataset.train, dataset.test))
  uniform = math.log2(dataset.num_levels)

  def bits(model: Any) -> float:
    if not len(test):
      raise Unavailable('there is no held-out image')
    mean = float(model(train, test, dataset.num_levels).mean())
    if mean > uniform - 1e-6:
      raise Unavailable(
        f'that of {len(train)} training images does not beat uniform levels, {uniform:.2f} bits/dim'
      )
    return mean

  return collect(
    {'gaussian': lambda: bits(gaussian_bits), 'histogram': lambda: bits(histogram_bits)}
  )


def make_table(title: str, figures: Figures) -> Table:
  """The end table; a figure that no group has is left out.

  Args:
    title: its first line.
    figures: 'samples', a list of `sample_figures`; 'real', `real_figures`; 'bits_per_dim', name ->
      mean, error and how, the headline first; 'baselines', `baseline_figures`.
  """
  groups = figures['samples']
  table = Table(title=escape(title), title_justify='left', box=box.SIMPLE_HEAD)
  table.add_column(f'{groups[0]["count"]} samples')
  for group in groups:
    guidance = group['sampler']['guidance']
    name = 'unguided' if guidance == 1 else f'guidance {guidance:g}'
    head = [name] if len(groups) > 1 or guidance != 1 else []
    table.add_column('\n'.join([*head, times(group['evaluations'])]), justify='right')
  table.add_column('beside')
  for row in (*sample_rows(figures), *bits_rows(figures)):
    table.add_row(*row)
  return table


def sample_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
  """Of each figure that some group of samples has: its name, every group's, a reference."""
  real = figures['real'].get('read_as_labeled')
  rows = [
    ('read_as_asked', 'read as asked', percent, f'real: {percent(real)}' if real else ''),
    *((key, name, lambda ratio: f'{ratio:.2f}', beside) for key, name, beside in RATIOS),
  ]
  for key, name, show, beside in rows:
    values = [group.get(key) for group in figures['samples']]
    if any(value is not None for value in values):
      yield name, *(NONE if value is None else show(value) for value in values), beside


def bits_rows(figures: Figures) -> Iterator[tuple[str, ...]]:
  """Of each likelihood its bits/dim, in the first group's column; beside the first, baselines."""
  base, blanks = figures['baselines'], [''] * (len(figures['samples']) - 1)
  known = [name for name in ('histogram', 'gaussian') if base.get(name) is not None]
  beside = '\n'.join(f'{NAMES[name]}: {base[name]:.2f}' for name in known)
  found = had(figures['bits_per_dim'])
  for name, bits in found.items():
    shown = f'{bits["mean"]:.3f} ± {bits["error"]:.3f}'
    yield f'bits/dim ≤, {name}', shown, *blanks, beside
    beside = ''
  if beside:
    yield 'bits/dim', NONE, *blanks, beside


def had(figures: Figures) -> Figures:
  """Those that could be had."""
  return {name: value for name, value in figures.items() if value is not None and name != LEFT_OUT}


def notes(figures: Figures) -> str:
  """What the table's figures are not clear without, and why others are not there."""
  rows = had(figures['bits_per_dim'])
  lines = [f'bits/dim of the test split, {name}: {bits["how"]}' for name, bits in rows.items()]
  lines = [*([READ] if had(figures['real']) else []), RATIO, *lines]
  histogram = figures['baselines'].get('histogram')
  beaten = rows and histogram is not None and next(iter(rows.values()))['mean'] > histogram
  if beaten and figures['loss'] == 'simple':
    lines.append(SIMPLE)
  return '\n'.join([*lines, *left_out(figures)])


def left_out(figures: Figures) -> list[str]:
  """A line for each figure that could not be had."""
  bits = figures['bits_per_dim'].get(LEFT_OUT, {})
  parts = [*figures['samples'], figures['real'], figures['baselines']]
  reasons = [item for part in parts for item in part.get(LEFT_OUT, {}).items()]
  named = [(NAMES[name], why) for name, why in reasons]
  named += [(f'bits/dim, {name}', why) for name, why in bits.items()]
  return [f'left out: {name}: {why}' for name, why in dict.fromkeys(named)]


def times(evaluations: int | None) -> str:
  """As in '50 evaluations'."""
  if evaluations is None:
    return 'adaptive steps'
  return f'{evaluations} evaluation{"s" if evaluations > 1 else ""}'


def percent(share: Figures) -> str:
  """97.4 ± 0.5 %."""
  return f'{100 * share["mean"]:.1f} ± {100 * share["error"]:.1f} %'
