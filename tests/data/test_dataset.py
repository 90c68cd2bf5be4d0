import numpy as np
import pytest

from ddpm_jax.condition import Field, class_field
from ddpm_jax.data import Arrays, Dataset, Decoded, check_examples, held_out, labeled
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
    np.testing.assert_array_equal(batch['x'], want.reshape(-1, 1, 1, 1) * np.ones(SHAPE))
    np.testing.assert_array_equal(batch['cond']['label'], want % 3)
  assert batch['x'].dtype == np.uint8
  assert batch['cond']['label'].dtype == np.int32


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
  split = Arrays(IMAGE.astype(float), {'label': np.array([2, 0, 1], np.uint64)})
  np.testing.assert_array_equal(split[:]['x'], IMAGE)
  assert split[1:]['cond']['label'].tolist() == [0, 1]
  assert (split[:]['x'].dtype, split[:]['cond']['label'].dtype) == (np.uint8, np.int32)


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
  with pytest.raises(ValueError, match='x must be whole numbers 0 … 255 of shape'):
    Arrays(image, {'label': np.zeros(len(image), int)})


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
    Arrays(IMAGE, {'label': np.array(label)})


def test_every_entry_has_a_value_for_each_example():
  vectors = np.arange(6.0).reshape(3, 2)
  split = Arrays(IMAGE, {'vector': vectors})
  np.testing.assert_array_equal(split[[2, 0]]['cond']['vector'], vectors[[2, 0]])
  with pytest.raises(ValueError, match='^vector must be one value for each of the 3 examples'):
    Arrays(IMAGE, {'vector': vectors[:2]})


def labels_of(*classes):
  """A split of three images with these labels."""
  return Arrays(IMAGE, {'label': np.array(classes)})


def dataset(train, num_classes=3):
  test = labels_of(0, 1, 2)
  cond = {} if num_classes is None else labeled(num_classes, train, test)
  return Dataset('x', train, test, (2, 2, 1), 256, cond)


def test_the_classes_are_those_with_a_training_example():
  assert dataset(labels_of(2, 0, 2)).cond['label'].classes == (0, 2)
  unknown, _ = counting_split(9, memory=10**6)
  assert dataset(unknown).cond['label'].classes == (0, 1, 2)
  empty = Arrays(IMAGE[:0], {'label': np.zeros(0, int)})
  assert dataset(empty).cond['label'].classes == (0, 1, 2)
  assert dataset(empty, num_classes=None).cond == {}


def test_samples_are_of_the_classes_in_turn():
  split = dataset(labels_of(2, 0, 2))
  assert split.some_cond(5)['label'].tolist() == [0, 2, 0, 2, 0]
  assert split.some_cond(1)['label'].tolist() == [0]
  assert dataset(labels_of(0, 0, 0), num_classes=None).some_cond(5) == {}


def test_where_an_entry_is_no_class_samples_are_of_held_out_examples_in_turn():
  vectors = np.arange(6.0).reshape(3, 2)
  split = Arrays(IMAGE, {'label': np.array([2, 0, 1]), 'vector': vectors, 'other': vectors})
  spec = {'vector': Field((2,)), 'label': class_field(3)}
  found = Dataset('x', split, split, (2, 2, 1), 256, spec).some_cond(4)
  assert found['label'].tolist() == [2, 0, 1, 2] and found.keys() == spec.keys()
  np.testing.assert_array_equal(found['vector'], vectors[[0, 1, 2, 0]])
  none = Arrays(IMAGE[:0], {'label': np.zeros(0, int), 'vector': vectors[:0]})
  with pytest.raises(InputError, match='^cond: samples take vector, label from examples of'):
    Dataset('x', none, none, (2, 2, 1), 256, spec).some_cond(4)


def test_a_label_beyond_the_classes_is_refused():
  with pytest.raises(ValueError, match=r'^label: 4 is not one of the 3 classes'):
    dataset(labels_of(0, 4, 1))


class Own:
  """A split as one of one's own may be."""

  def __init__(self, image, label):
    self.image, self.label = image, label

  def __len__(self):
    return len(self.image)

  def __getitem__(self, rows):
    return {'x': self.image[rows], 'cond': {'label': self.label[rows]}}


@pytest.mark.parametrize(
  ('split', 'message'),
  [
    (Own(IMAGE, np.eye(3)), r'label must be one integer .* not float64 \(3,\)'),
    (Own(IMAGE, np.eye(3, dtype=int)), r'label must be one integer .* not int64 \(3,\)'),
    (Own(IMAGE, np.linspace(0, 1, 3)), r'label must be one integer .* not float64 \(\)'),
    (Own(IMAGE / 255, np.zeros(3, int)), r'images must be uint8 \(2, 2, 1\), not float64'),
    (Own(IMAGE[:, :1], np.zeros(3, int)), r'images must be uint8 .*, not uint8 \(1, 2, 1\)'),
  ],
)
def test_a_split_of_ones_own_is_looked_at(split, message):
  check_examples(dataset(Own(IMAGE, np.zeros(3, int))))
  with pytest.raises(InputError, match=rf'^config\.dataset: its {message}'):
    check_examples(dataset(split))


def test_an_entry_is_what_its_field_says():
  split = Arrays(IMAGE, {'vector': np.arange(6.0).reshape(3, 2)})

  def looked_at(**spec):
    check_examples(Dataset('x', split, split, (2, 2, 1), 256, spec))

  looked_at(vector=Field((2,)))
  with pytest.raises(InputError, match=r'its vector must be float32 \(3,\), not float64 \(2,\)'):
    looked_at(vector=Field((3,)))
  with pytest.raises(InputError, match="have no 'text' in their condition, only vector"):
    looked_at(text=Field((2,)))
