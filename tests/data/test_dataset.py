import numpy as np
import pytest

from ddpm_jax.data import Decoded, held_out

SHAPE = (2, 2, 1)


def counting_split(length, memory):
  """A split whose example i is all i, and the list of what has been decoded."""
  decoded = []

  def read(rows):
    decoded.extend(rows)
    return ((np.full(SHAPE, i, np.uint8), i % 3) for i in rows)

  return Decoded(read, length, SHAPE, memory), decoded


@pytest.mark.parametrize('memory', [0, 10**6])
@pytest.mark.parametrize('rows', [slice(2, 7), slice(None), np.array([5, 1, 5, -1]), slice(3, 3)])
def test_decoded_gives_the_examples_asked_for(memory, rows):
  split, _ = counting_split(9, memory)
  want = np.arange(9)[rows]
  for _ in range(2):  # from the files, then from memory
    batch = split[rows]
    np.testing.assert_array_equal(batch['image'], want.reshape(-1, 1, 1, 1) * np.ones(SHAPE))
    np.testing.assert_array_equal(batch['label'], want % 3)
  assert batch['image'].dtype == np.uint8
  assert batch['label'].dtype == np.int32


def test_a_split_that_fits_is_decoded_once_and_only_where_read():
  split, decoded = counting_split(9, memory=9 * 4)
  for rows in ([1, 2], [2, 3], [3, 1]):
    split[np.array(rows)]
  assert sorted(decoded) == [1, 2, 3]


def test_a_split_that_does_not_fit_is_not_kept():
  split, decoded = counting_split(9, memory=9 * 4 - 1)
  split[:2]
  split[:2]
  assert decoded == [0, 1, 0, 1]


def test_rows_out_of_range_are_refused():
  split, _ = counting_split(9, memory=10**6)
  with pytest.raises(IndexError):
    split[np.array([9])]


def test_held_out_takes_the_share_of_every_class():
  label = np.random.default_rng(0).integers(0, 7, 1000)
  marked = held_out(label, every=5)
  assert marked.sum() == 200
  for k in range(7):
    assert abs(marked[label == k].sum() - (label == k).sum() / 5) < 1
