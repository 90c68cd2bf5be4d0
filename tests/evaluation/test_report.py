import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.sampling import Samples

RECORD = {'step': 5, 'seed': 0, 'evaluations': 50, 'sampler': {'guidance': 1.5}}


@pytest.fixture(scope='module')
def real(digits):
  return report.read_real(digits)


def as_samples(batch):
  images = np.rint(127.5 * (batch['image'] + 1)).astype(np.uint8)
  return Samples(images, batch['label'], RECORD)


def shown(figures):
  console = Console(file=io.StringIO(), width=80)
  console.print(report.make_table('title', figures))
  return console.file.getvalue()


def test_real_images_as_samples_get_the_real_figures(real):
  figures = report.sample_figures(as_samples(real.test), real)
  assert figures['read_as_asked'] == report.real_figures(real)['read_as_labeled']
  assert figures['spread_ratio'] == pytest.approx(1, abs=0.05)
  assert figures['nearest_ratio'] < 0.05, 'each held-out image is its own nearest, but for rounding'
  memorized = report.sample_figures(as_samples(real.train), real)
  assert memorized['nearest_ratio'] == pytest.approx(1, abs=0.01)


def test_samples_of_one_class_are_held_against_that_class(real):
  threes = {name: column[real.train['label'] == 3] for name, column in real.train.items()}
  figures = report.sample_figures(as_samples(threes), real)
  assert figures['spread_ratio'] == pytest.approx(1, abs=0.01)
  assert figures['nearest_ratio'] == pytest.approx(1, abs=0.01)


def test_samples_without_classes_are_held_against_all_images(digits):
  real = report.read_real(dataclasses.replace(digits, num_classes=None))
  everything = as_samples(real.train)._replace(labels=None)
  figures = report.sample_figures(everything, real)
  assert figures['spread_ratio'] == pytest.approx(1, abs=0.01)
  assert figures['nearest_ratio'] == pytest.approx(1, abs=0.01)
  assert 'read_as_asked' not in figures


@pytest.mark.parametrize('labeled', [True, False])
def test_table_leaves_out_classes_where_there_are_none(labeled):
  share = {'mean': 0.974, 'error': 0.005, 'count': 1000}
  group = {'count': 1000, **RECORD, 'spread_ratio': 0.875, 'nearest_ratio': 1.114}
  bits = {'mean': 3.0, 'error': 0.01, 'how': 'so'}
  figures = {
    'loss': 'simple',
    'samples': [group],
    'real': {},
    'bits_per_dim': {'chain': bits},
    'baselines': {'histogram': 2.4, 'gaussian': 2.2},
  }
  if labeled:
    group['read_as_asked'] = figures['real']['read_as_labeled'] = share
  text = shown(figures)
  assert ('97.4 ± 0.5 %' in text) == labeled
  assert all(number in text for number in ('0.88', '1.11', '3.000 ± 0.010', '2.40', '2.20'))
  assert report.SIMPLE in report.notes(figures)
  bits['mean'] = 2.3
  assert report.SIMPLE not in report.notes(figures)
