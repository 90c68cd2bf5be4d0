import dataclasses
import io

import numpy as np
import pytest
from rich.console import Console

from ddpm_jax.condition import labels
from ddpm_jax.data import Dataset
from ddpm_jax.data.dataset import Arrays
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.available import LEFT_OUT
from ddpm_jax.evaluation.sampling import Samples

RECORD = {'step': 5, 'seed': 0, 'evaluations': 50, 'sampler': {'guidance': 1.5}}


@pytest.fixture(scope='module')
def real(digits):
  return report.read_real(digits)


def as_samples(real):
  images = np.rint(127.5 * (real.images + 1)).astype(np.uint8)
  return Samples(images, real.labels, RECORD)


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
  threes = report.Images(*(column[real.train.labels == 3] for column in real.train))
  figures = report.sample_figures(as_samples(threes), real)
  assert figures['spread_ratio'] == pytest.approx(1, abs=0.01)
  assert figures['nearest_ratio'] == pytest.approx(1, abs=0.01)


def test_samples_without_classes_are_held_against_all_images(digits):
  real = report.read_real(dataclasses.replace(digits, cond={}))
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


NOISE = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), np.uint8)


def few(train, test, num_classes=2):
  """A data set of a few noisy images with these labels."""
  splits = (
    Arrays(NOISE[start : start + len(label)], {'label': np.array(label, int)})
    for start, label in ((0, train), (12, test))
  )
  return Dataset('few', *splits, (8, 8, 1), 256, labels(num_classes))


def reported(dataset, labels, bits=None):
  real = report.read_real(dataset)
  samples = Samples(NOISE[-len(labels) :], np.array(labels), RECORD)
  return {
    'loss': 'simple',
    'samples': [report.sample_figures(samples, real)],
    'real': report.real_figures(real),
    'bits_per_dim': bits or {'chain': None, LEFT_OUT: {'chain': 'the disk was full'}},
    'baselines': report.baseline_figures(dataset),
  }


# Data, the samples' classes; what is left out of the samples' figures, and of the others.
SHORT = {
  'one class': (few([0] * 9, [0, 0], 1), [0, 0], {'read_as_asked'}, {'read_as_labeled'}),
  'no held-out image of the class': (few([0, 0, 1, 1], [0]), [1, 1], {'nearest_ratio'}, set()),
  'one image of a class': (few([0, 0, 0, 1], [0, 1]), [1, 1], {'spread_ratio'}, set()),
  'one sample of a class': (few([0, 0, 1, 1], [0, 1]), [0, 1], {'spread_ratio'}, set()),
  'one sample': (few([0, 0, 1, 1], [0, 1]), [0], {'spread_ratio'}, set()),
  'one training image': (
    few([0], [0]),
    [0],
    {'spread_ratio', 'read_as_asked'},
    {'read_as_labeled'},
  ),
  'no held-out image': (
    few([0, 0, 1, 1], []),
    [0, 0],
    {'nearest_ratio'},
    {'read_as_labeled', 'histogram'},
  ),
}


@pytest.mark.parametrize('case', SHORT)
def test_what_cannot_be_had_is_left_out_with_its_reason(case):
  dataset, labels, of_samples, others = SHORT[case]
  figures = reported(dataset, labels)
  group, real, base = figures['samples'][0], figures['real'], figures['baselines']
  assert set(group.get(LEFT_OUT, {})) == of_samples
  assert {*real.get(LEFT_OUT, {}), *base[LEFT_OUT]} == others | {'gaussian'}
  assert all(group[name] is None for name in of_samples)
  text, notes = shown(figures), report.notes(figures)
  for name in of_samples | others:
    assert f'left out: {report.NAMES[name]}: ' in notes
  for name, words, _ in report.RATIOS:
    assert (words in text) == (name not in of_samples)
  assert 'left out: bits/dim, chain: the disk was full' in notes and 'nan' not in text + notes


def test_what_some_samples_lack_is_a_dash():
  figures = reported(few([0, 0, 1, 1], [0, 1]), [0, 0])
  other = reported(few([0, 0, 1, 1], [0, 1]), [0])
  figures['samples'] += other['samples']
  line = next(line for line in shown(figures).splitlines() if 'spread' in line)
  assert f'{figures["samples"][0]["spread_ratio"]:.2f}' in line and report.NONE in line


def test_large_images_are_taken_in_smaller_numbers(monkeypatch):
  monkeypatch.setattr(report, 'NUMBERS', 3 * 64)
  real = report.read_real(few([0, 0, 1, 1, 1, 1], [0, 1]))
  assert len(real.train.images) == 3 and len(real.test.images) == 2
  monkeypatch.setattr(report, 'NUMBERS', 1)
  assert len(report.read_real(few([0, 0, 1, 1], [0, 1])).train.images) == 1
