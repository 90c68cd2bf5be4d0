"""CIFAR-10 as TFDS prepares it; `python -m ddpm_jax.data.prepare cifar10` puts it there."""

import numpy as np
import pytest

from ddpm_jax.data import batches, load, train_iterator

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def dataset():
  return load('cifar10')


def test_cifar10_is_the_published_set(dataset):
  assert (dataset.image_shape, dataset.num_levels) == ((32, 32, 3), 256)
  assert dataset.cond['label'].num_classes == 10
  assert (len(dataset.train), len(dataset.test)) == (50000, 10000)
  total, labels = np.zeros(3), []
  for batch in batches(dataset.train, 1000):
    total += batch['x'].mean(axis=(0, 1, 2)) / 50
    labels.append(batch['cond']['label'])
  np.testing.assert_allclose(total / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)  # widely quoted
  np.testing.assert_array_equal(np.bincount(np.concatenate(labels)), 5000)


def test_one_epoch_of_the_stream_is_the_training_set(dataset):
  stream = train_iterator(dataset, 500, seed=0)
  seen = np.concatenate([next(stream)['x'] for _ in range(100)])
  want = dataset.train[:]['x']
  assert sorted(map(bytes, seen)) == sorted(map(bytes, want))
