import inspect
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import DATASETS, load, source
from ddpm_jax.errors import InputError


def rows_of(*splits):
  return sorted(image.tobytes() for split in splits for image in split[:]['image'])


# The digits.


def test_digits_are_scikit_learns_divided_evenly_by_class():
  from sklearn.datasets import load_digits

  digits, truth = load('digits'), load_digits()
  images = truth.images.astype(np.uint8)
  assert rows_of(digits.train, digits.test) == sorted(image.tobytes() for image in images)
  assert (len(digits.train), len(digits.test)) == (1437, 360)
  assert digits.train[:]['image'].max() == digits.num_levels - 1
  assert digits.train[:1]['image'].shape[1:] == digits.image_shape == (8, 8, 1)
  train, test = (np.bincount(s[:]['label'], minlength=10) for s in (digits.train, digits.test))
  np.testing.assert_array_equal(train + test, np.bincount(truth.target))
  assert abs(test - (train + test) / 5).max() < 1


# Arrays.


@pytest.mark.parametrize('keys', [('image', 'label'), ('arr_0', 'arr_1')])
def test_arrays_hold_out_a_tenth(tmp_path, pictures, keys):
  images, labels = pictures(50)
  np.savez(tmp_path / 'a.npz', **dict(zip(keys, (images, labels), strict=True)))
  dataset = load('arrays', path=str(tmp_path / 'a.npz'))
  assert rows_of(dataset.train, dataset.test) == sorted(image.tobytes() for image in images)
  assert (len(dataset.train), len(dataset.test)) == (45, 5)
  assert (dataset.name, dataset.image_shape) == ('a', (6, 6, 3))
  assert (dataset.num_levels, dataset.num_classes) == (256, labels.max() + 1)


def test_arrays_with_a_test_set_of_their_own_and_no_labels(tmp_path, pictures):
  (train, _), (test, _) = pictures(20, channels=1), pictures(7, channels=1)
  np.savez(tmp_path / 'a.npz', image=train[..., 0], test_image=test[..., 0])
  dataset = load('arrays', path=str(tmp_path / 'a.npz'))
  np.testing.assert_array_equal(dataset.train[:]['image'], train)
  np.testing.assert_array_equal(dataset.test[:]['image'], test)
  assert dataset.num_classes is None
  assert not dataset.train[:]['label'].any()


GOOD = np.zeros((4, 2, 2, 1), np.uint8)
BAD_ARRAYS = {
  'float': (dict(image=GOOD / 2), 'image must be uint8 .* not float64'),
  'flat': (dict(image=GOOD[:, 0, 0]), 'image must be uint8 .* not uint8 .4, 1.'),
  'no image': (dict(picture=GOOD), "needs an array 'image' .* it holds picture"),
  'levels': (dict(image=GOOD + 200), 'has a value 200, but num_levels is 17'),
  'short labels': (dict(image=GOOD, label=np.zeros(3, int)), 'label must be 4 integers'),
  'float labels': (dict(image=GOOD, label=np.zeros(4)), 'label must be .* not float64'),
  'negative': (dict(image=GOOD, label=np.full(4, -1)), 'label must be 4 integers from 0'),
  'half labeled': (
    dict(image=GOOD, label=np.zeros(4, int), test_image=GOOD),
    "has 'label' but no 'test_label'",
  ),
  'shapes': (dict(image=GOOD, test_image=GOOD[:, :1]), 'test_image has shape'),
  'pickled': (dict(image=np.array([None, {}])), 'cannot be read as an .npz'),
}


@pytest.mark.parametrize(('content', 'message'), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_unusable_arrays_are_refused(tmp_path, content, message):
  path = tmp_path / 'bad.npz'
  np.savez(path, **content)
  with pytest.raises(InputError, match=f"^config.dataset.path: '{path}' .*{message}"):
    load('arrays', path=str(path), num_levels=17)


@pytest.mark.parametrize('content', [b'', b'PK not really', b'plain text'])
def test_a_file_that_is_not_npz_is_refused(tmp_path, content):
  path = tmp_path / 'bad.npz'
  path.write_bytes(content)
  with pytest.raises(InputError, match=r'cannot be read as an .npz file'):
    load('arrays', path=str(path))


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(InputError, match=r"config.dataset.path: '.*none.npz' does not exist"):
    load('arrays', path=str(tmp_path / 'none.npz'))


# A folder.


def save(path, image):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image).save(path)


def test_a_folder_has_its_sub_folders_as_classes(tmp_path, pictures):
  images, _ = pictures(30)
  for i, image in enumerate(images):
    save(tmp_path / ('cat', 'dog', 'emu')[i % 3] / 'more' / f'{i:02}.png', image)
  (tmp_path / 'cat' / 'notes.txt').write_text('not an image')
  dataset = load('folder', path=str(tmp_path), image_size=6)
  assert rows_of(dataset.train, dataset.test) == sorted(image.tobytes() for image in images)
  assert (len(dataset.train), len(dataset.test)) == (27, 3)
  assert dataset.num_classes == 3
  for split in (dataset.train, dataset.test):
    for image, label in zip(*split[:].values(), strict=True):
      number = next(i for i in range(30) if np.array_equal(images[i], image))
      assert label == number % 3


def test_images_of_any_size_are_cropped_to_their_center_and_resized(tmp_path):
  ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (8, 20, 3))
  save(tmp_path / 'a.png', ramp)
  save(tmp_path / 'b.png', ramp)
  save(tmp_path / 'c.png', ramp[..., 0])  # gray
  dataset = load('folder', path=str(tmp_path), image_size=4)
  assert dataset.image_shape == (4, 4, 3)
  assert dataset.num_classes is None
  # Columns 6 … 13 two by two, and a symmetric filter leaves a ramp what it is.
  want = np.broadcast_to(np.array([65, 85, 105, 125])[:, None], (4, 4, 3))
  for split in (dataset.train, dataset.test):
    for image in split[:]['image']:
      np.testing.assert_array_equal(image, want)


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'config.dataset.path: .* at least two images .* holds 0'):
    load('folder', path=str(tmp_path), image_size=4)


def test_a_missing_folder_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"config.dataset.path: '.*none' is not a folder"):
    load('folder', path=str(tmp_path / 'none'), image_size=4)


def test_images_beside_sub_folders_are_refused(tmp_path):
  image = np.zeros((4, 4, 3), np.uint8)
  save(tmp_path / 'a.png', image)
  save(tmp_path / 'cat' / 'b.png', image)
  with pytest.raises(InputError, match=r'both in sub-folders and beside them: move'):
    load('folder', path=str(tmp_path), image_size=4)


@pytest.mark.parametrize('keep', [0, 40])
def test_an_unreadable_image_is_named_when_it_is_read(tmp_path, keep):
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
  for name in 'ab':
    save(tmp_path / f'{name}.png', image)
    content = (tmp_path / f'{name}.png').read_bytes()
    (tmp_path / f'{name}.png').write_bytes(content[:keep])
  dataset = load('folder', path=str(tmp_path), image_size=8)
  with pytest.raises(InputError, match=r"path: '.*\.png' cannot be read as an image"):
    dataset.train[:]


# By name.


def test_the_arguments_of_a_source_are_its_signature():
  assert set(inspect.signature(source('folder')).parameters) == {'path', 'image_size'}
  assert set(inspect.signature(source('cifar10')).parameters) == {'data_dir', 'image_size'}
  assert set(DATASETS) == {'digits', 'mixture', 'arrays', 'folder'}


READ_EVERYTHING = """
import sys
from ddpm_jax.data import load, train_iterator
for name, arguments in (('digits', {}), ('tiny', {'data_dir': sys.argv[1]})):
  next(train_iterator(load(name, **arguments), 4, seed=0))
assert 'tensorflow_datasets' in sys.modules
assert 'tensorflow' not in sys.modules
"""


def test_tensorflow_is_never_imported(write_tfds, pictures):
  data_dir = write_tfds('tiny', (6, 6, 3), {'train': pictures(20), 'test': pictures(5)})
  subprocess.run([sys.executable, '-c', READ_EVERYTHING, str(data_dir)], check=True, timeout=60)
