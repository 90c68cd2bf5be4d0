import dataclasses
import itertools
import json

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ddpm_jax.condition import labels
from ddpm_jax.data import Arrays, Dataset, Decoded, batches, train_iterator
from ddpm_jax.errors import InputError

N = 37


def numbered(length=N):
  """A data set whose example i has pixels i and label i."""
  number = np.arange(length)
  split = Arrays(number.reshape(-1, 1, 1, 1), {'label': number})
  return Dataset('numbered', split, split, (1, 1, 1), 256, labels(length))


def take(iterator, count):
  return list(itertools.islice(iterator, count))


def stream(iterator, count):
  return np.concatenate([batch['cond']['label'] for batch in take(iterator, count)])


def assert_same(got, want):
  for a, b in zip(got, want, strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('batch_size', [8, N, 100])
def test_every_example_once_an_epoch(batch_size):
  epochs = 5
  found = stream(train_iterator(numbered(), batch_size, seed=0), epochs * N // batch_size + 1)
  orders = found[: epochs * N].reshape(epochs, N)
  np.testing.assert_array_equal(np.sort(orders, axis=1), np.broadcast_to(np.arange(N), (epochs, N)))
  assert len({tuple(order) for order in orders}) == epochs


@pytest.mark.parametrize('label', [-1, 5])
def test_a_label_that_is_no_class_is_refused_when_it_is_read(label):
  image = np.zeros((1, 1, 1, 1), np.uint8)
  split = Decoded(lambda rows: ((image[0], label) for _ in rows), N, (1, 1, 1))
  dataset = Dataset('numbered', split, split, (1, 1, 1), 256, labels(5))
  with pytest.raises(InputError, match=rf'^config\.dataset: .* label {label}, .* of the 5 classes'):
    next(train_iterator(dataset, 8, seed=0))


def test_the_order_differs_by_seed_and_by_nothing_else():
  orders = [stream(train_iterator(numbered(), N, seed), 1) for seed in (0, 1, 0)]
  assert not np.array_equal(orders[0], orders[1])
  np.testing.assert_array_equal(orders[0], orders[2])


def test_the_order_is_well_mixed():
  places = np.array([stream(train_iterator(numbered(), N, seed), 1) for seed in range(400)])
  # Each of 400 orders puts example k at a uniform place: mean 18, sd sqrt((37² - 1)/12).
  error = ((N**2 - 1) / 12 / 400) ** 0.5
  assert abs(places.mean(axis=0) - (N - 1) / 2).max() < 4.5 * error


def test_batch_k_holds_positions_k_b_onward():
  for k, batch in enumerate(take(train_iterator(numbered(), 8, seed=3), 12)):
    np.testing.assert_array_equal(batch['index'], 8 * k + np.arange(8))
    np.testing.assert_array_equal(batch['x'][:, 0, 0, 0], batch['cond']['label'])
  assert batch['x'].dtype == np.uint8
  assert batch['cond']['label'].dtype == np.int32


@pytest.mark.parametrize('process_count', [1, 2, 4])
def test_processes_share_one_stream(process_count):
  whole = take(train_iterator(numbered(), 8, seed=5), 15)
  parts = [
    take(train_iterator(numbered(), 8, 5, process, process_count), 15)
    for process in range(process_count)
  ]
  joined = [
    jax.tree.map(lambda *columns: np.concatenate(columns), *step)
    for step in zip(*parts, strict=True)
  ]
  assert_same(joined, whole)


@pytest.mark.parametrize('position', [0, 1, 4, 5, 23])
def test_resumes_exactly_from_json_on_another_topology(position):
  whole = take(train_iterator(numbered(), 8, seed=2), position + 6)
  first = train_iterator(numbered(), 8, 2, process_index=1, process_count=2)
  take(first, position)
  state = json.loads(json.dumps(first.get_state()))
  second = train_iterator(numbered(), 8, seed=2)
  take(second, 3)
  second.set_state(state)
  assert_same(take(second, 6), whole[position:])
  assert state == {'next_index': position}


def test_orbax_saves_and_restores_the_position(tmp_path):
  iterator = train_iterator(numbered(), 8, seed=2)
  take(iterator, 7)
  with ocp.CheckpointManager(tmp_path) as manager:
    manager.save(7, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(iterator)))
    manager.wait_until_finished()
    fresh = train_iterator(numbered(), 8, seed=2)
    manager.restore(7, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
  assert_same(take(fresh, 5), take(iterator, 5))


def test_a_batch_that_cannot_be_divided_is_refused():
  with pytest.raises(InputError, match=r'config.dataset.batch_size: 7 .* 2 processes.* is 8$'):
    train_iterator(numbered(), 7, seed=0, process_count=2)


def test_an_error_while_reading_ahead_reaches_the_loop_as_it_is():
  def read(rows):
    raise InputError('this file cannot be read')

  split = Decoded(read, N, (1, 1, 1))
  dataset = Dataset('broken', split, split, (1, 1, 1), 256)
  with pytest.raises(InputError, match=r'^this file cannot be read'):
    next(train_iterator(dataset, 4, seed=0))


def test_batches_cover_a_split_once_in_order():
  got = list(batches(numbered(), numbered().test, 10))
  assert [len(batch['index']) for batch in got] == [10, 10, 10, 7]
  for numbers in ([batch['index'] for batch in got], [batch['cond']['label'] for batch in got]):
    np.testing.assert_array_equal(np.concatenate(numbers), np.arange(N))


def test_a_batch_has_the_entries_of_the_specification_alone():
  plain = dataclasses.replace(numbered(), cond={})
  batch = next(train_iterator(plain, 8, seed=0))
  assert batch['cond'] == {} and batch.keys() == {'x', 'cond', 'index'}
