import numpy as np
import pytest

from ddpm_jax.data import Arrays, Dataset, Decoded, check_examples, held_out
from ddpm_jax.errors import InputError

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


IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1)


def test_arrays_keep_numbers_as_they_are():
  split = Arrays(IMAGE.astype(float), np.array([2, 0, 1], np.uint64))
  np.testing.assert_array_equal(split[:]['image'], IMAGE)
  assert split[1:]['label'].tolist() == [0, 1]
  assert (split[:]['image'].dtype, split[:]['label'].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize(
  'image',
  [
    IMAGE / 255,
    IMAGE / 5 - 1,
    IMAGE + 300.0,
    IMAGE - 1.0,
    IMAGE * np.nan,
    IMAGE[..., 0],
    IMAGE[:, :0],
  ],
)
def test_images_that_would_change_are_refused(image):
  with pytest.raises(ValueError, match='image must be whole numbers 0 … 255 of shape'):
    Arrays(image, np.zeros(len(image), int))


@pytest.mark.parametrize(
  'label',
  [
    [0.1, 0.5, 0.9],
    [0.0, 1.0, 2.0],
    [0.0, 1.0, np.nan],
    [0, 1, 2**34],
    [0, 1, -1],
    [0, 1],
    [[0, 1], [1, 0], [0, 1]],
    [True, False, True],
    ['a', 'b', 'c'],
  ],
)
def test_labels_that_would_change_are_refused_with_what_to_do(label):
  with pytest.raises(ValueError, match=r'label must be 3 integers from 0.*np\.unique\(label'):
    Arrays(IMAGE, np.array(label))


def dataset(train, num_classes=3, **options):
  return Dataset('x', train, Arrays(IMAGE, [0, 1, 2][:3]), (2, 2, 1), 256, num_classes, **options)


def test_the_classes_are_those_with_a_training_example():
  assert dataset(Arrays(IMAGE, np.array([2, 0, 2]))).classes == (0, 2)
  unknown, _ = counting_split(9, memory=10**6)
  assert dataset(unknown).classes == (0, 1, 2)
  empty = Arrays(IMAGE[:0], np.zeros(0, int))
  assert dataset(empty).classes == (0, 1, 2)
  assert dataset(empty, classes=[1, 2]).classes == (1, 2)
  assert dataset(empty, num_classes=None).classes is None


def test_balanced_labels_are_the_classes_in_turn():
  split = dataset(Arrays(IMAGE, np.array([2, 0, 2])))
  assert split.balanced_labels(5).tolist() == [0, 2, 0, 2, 0]
  assert split.balanced_labels(1).tolist() == [0]
  assert dataset(Arrays(IMAGE, np.zeros(3, int)), num_classes=None).balanced_labels(5) is None


def test_a_label_beyond_the_classes_is_refused():
  with pytest.raises(ValueError, match=r'^label: 4 is not one of the 3 classes'):
    dataset(Arrays(IMAGE, np.array([0, 4, 1])))


class Own:
  """A split as one of one's own may be."""

  def __init__(self, image, label):
    self.image, self.label = image, label

  def __len__(self):
    return len(self.image)

  def __getitem__(self, rows):
    return {'image': self.image[rows], 'label': self.label[rows]}


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    (Own(IMAGE, np.eye(3)), r'labels must be one integer .* not float64 \(3,\)'),
    (Own(IMAGE, np.eye(3, dtype=int)), r'labels must be one integer .* not int64 \(3,\)'),
    (Own(IMAGE, np.linspace(0, 1, 3)), r'labels must be one integer .* not float64 \(\)'),
    (Own(IMAGE / 255, np.zeros(3, int)), r'images must be uint8 \(2, 2, 1\), not float64'),
    (Own(IMAGE[:, :1], np.zeros(3, int)), r'images must be uint8 .*, not uint8 \(1, 2, 1\)'),
  ],
)
def test_a_split_of_ones_own_is_looked_at(split, message):
  check_examples(dataset(Own(IMAGE, np.zeros(3, int))))
  with pytest.raises(InputError, match=rf'^config\.dataset: its {message}'):
    check_examples(dataset(split))
