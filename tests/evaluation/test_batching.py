import jax
import numpy as np
import pytest

from ddpm_jax import data
from ddpm_jax.condition import labels
from ddpm_jax.evaluation.batching import even_size, evenly, map_batches


@pytest.mark.parametrize('total', [1, 7, 8, 360, 1000])
@pytest.mark.parametrize('batch_size', [8, 100, 256])
def test_batches_are_few_equal_and_fit_the_devices(total, batch_size):
  size = even_size(total, batch_size)
  devices = jax.device_count()
  batches = -(-total // batch_size)
  assert size % devices == 0
  assert batches * size >= total
  assert batches * (size - devices) < total, 'no smaller size would do'


def test_rows_come_back_in_order_without_the_padding():
  rows = np.arange(21.0)
  batches = ({'x': rows[start : start + 8]} for start in (0, 8, 16))
  seen, done = [], []

  def double(batch):
    seen.append(batch['x'])
    return 2 * batch['x']

  np.testing.assert_array_equal(map_batches(double, batches, 8, done.append), 2 * rows)
  assert done == [8, 8, 5]
  assert {x.shape for x in seen} == {(8,)}
  assert all(len(x.sharding.device_set) == jax.local_device_count() for x in seen)


def test_evenly_takes_every_part_of_a_split():
  label = np.repeat(np.arange(10), 7)
  split = data.Arrays(np.zeros((70, 1, 1, 1)), {'label': label})
  dataset = data.Dataset('few', split, split, (1, 1, 1), 2, labels(10))
  assert np.unique(evenly(dataset, split, 20)['cond']['label']).tolist() == [*range(10)]
  np.testing.assert_array_equal(evenly(dataset, split, 100)['cond']['label'], label)
