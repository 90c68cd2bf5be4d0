import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import DATASETS, load, source
from ddpm_jax.errors import InputError


def rows_of(*splits):
  return sorted(image.tobytes() for split in splits for image in split[:]['x'])


# The digits.


def test_digits_are_scikit_learns_divided_evenly_by_class():
  from sklearn.datasets import load_digits

  digits, truth = load('digits'), load_digits()
  images = truth.images.astype(np.uint8)
  assert rows_of(digits.train, digits.test) == sorted(image.tobytes() for image in images)
  assert (len(digits.train), len(digits.test)) == (1437, 360)
  assert digits.train[:]['x'].max() == digits.num_levels - 1
  assert digits.train[:1]['x'].shape[1:] == digits.image_shape == (8, 8, 1)
  train, test = (
    np.bincount(s[:]['cond']['label'], minlength=10) for s in (digits.train, digits.test)
  )
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
  assert (dataset.num_levels, dataset.cond['label'].num_classes) == (256, labels.max() + 1)


def test_arrays_with_a_test_set_of_their_own_and_no_labels(tmp_path, pictures):
  (train, _), (test, _) = pictures(20, channels=1), pictures(7, channels=1)
  np.savez(tmp_path / 'a.npz', image=train[..., 0], test_image=test[..., 0])
  dataset = load('arrays', path=str(tmp_path / 'a.npz'))
  np.testing.assert_array_equal(dataset.train[:]['x'], train)
  np.testing.assert_array_equal(dataset.test[:]['x'], test)
  assert dataset.cond == {}
  assert dataset.read(dataset.train, slice(None))['cond'] == {}


GOOD = np.zeros((4, 2, 2, 1), np.uint8)
LABEL = np.arange(4)
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
  'no channel': (dict(image=GOOD[..., :0]), 'image must be uint8 .* not uint8 .4, 2, 2, 0.'),
  'no height': (dict(image=GOOD[:, :0]), 'image must be uint8 .* not uint8 .4, 0, 2, 1.'),
  'one-hot': (dict(image=GOOD, label=np.eye(4)), 'label must be 4 integers .* not float64 .4, 4.'),
  'far labels': (
    dict(image=GOOD, label=np.arange(4) + 2**34),
    r'labels up to 17179869187, .* for 4 examples: number the classes from 0',
  ),
  'many classes': (
    dict(image=GOOD, label=np.arange(4) * 10**9),
    r'which are 3000000001 classes, for 4 examples',
  ),
  'far test labels': (
    dict(image=GOOD, label=LABEL, test_image=GOOD, test_label=LABEL.astype(np.uint64) + 2**40),
    r'which are 1099511627780 classes, for 8 examples',
  ),
  'test channels first': (
    dict(image=GOOD, test_image=np.zeros((4, 3, 8, 8), np.uint8)),
    r'test_image has shape \(4, 3, 8, 8\), channels first: transpose it',
  ),
  'half labeled, the other way': (
    dict(image=GOOD, test_image=GOOD, test_label=LABEL),
    "has 'test_label' but no 'label'",
  ),
  'test labels alone': (
    dict(image=GOOD, label=LABEL, test_label=LABEL),
    "has 'test_label' but no 'test_image'",
  ),
  'pickled': (dict(image=np.array([None, {}])), 'cannot be read as an .npz'),
}


@pytest.mark.parametrize(('content', 'message'), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_unusable_arrays_are_refused(tmp_path, content, message):
  path = tmp_path / 'bad.npz'
  np.savez(path, **content)
  with pytest.raises(InputError, match=f"^config.dataset.path: '{path}' .*{message}"):
    load('arrays', path=str(path), num_levels=17)


@pytest.mark.parametrize('extra', ['labels', 'arr_0'])
def test_arrays_that_are_not_read_are_named(tmp_path, extra, caplog):
  np.savez(tmp_path / 'a.npz', **{extra: 200 + GOOD, 'image': GOOD})
  dataset = load('arrays', path=str(tmp_path / 'a.npz'))
  assert not dataset.train[:]['x'].any()
  assert f'also holds {extra}, left out' in caplog.text


@pytest.mark.parametrize('content', [b'', b'PK not really', b'plain text'])
def test_a_file_that_is_not_npz_is_refused(tmp_path, content):
  path = tmp_path / 'bad.npz'
  path.write_bytes(content)
  with pytest.raises(InputError, match=r'cannot be read as an .npz file'):
    load('arrays', path=str(path))


@pytest.mark.parametrize(
  ('shape', 'first'),
  [
    ((10, 3, 32, 32), True),
    ((10, 1, 28, 28), True),
    ((10, 1, 8, 16), True),
    ((10, 4, 64, 48), True),
    ((10, 5, 64, 64), True),
    ((10, 32, 32, 3), False),
    ((10, 28, 28, 1), False),
    ((10, 1, 2, 1), False),
    ((10, 3, 64, 3), False),
    ((10, 4, 4, 4), False),
    ((10, 2, 2, 4), False),
    ((10, 8, 8, 5), False),
    ((10, 8, 8, 200), False),
    ((10, 64, 5, 64), False),
  ],
)
def test_channels_first_are_told_from_channels_last(tmp_path, shape, first):
  path = str(tmp_path / 'a.npz')
  np.savez(path, image=np.zeros(shape, np.uint8))
  if not first:
    assert load('arrays', path=path).image_shape == shape[1:]
    return
  with pytest.raises(InputError, match='channels first: transpose it to .N, H, W, C.; if it is'):
    load('arrays', path=path)


@pytest.mark.parametrize('num_levels', [-1, 0, 1, 257])
def test_so_many_levels_there_cannot_be(tmp_path, num_levels):
  np.savez(tmp_path / 'a.npz', image=GOOD)
  with pytest.raises(
    InputError, match=rf'^config\.dataset\.num_levels: {num_levels} is not within'
  ):
    load('arrays', path=str(tmp_path / 'a.npz'), num_levels=num_levels)


def test_classes_without_a_training_example_keep_their_number_and_are_not_drawn(tmp_path):
  label = np.repeat([0, 3, 5], 10)
  np.savez(tmp_path / 'a.npz', image=np.repeat(GOOD[:1], 30, axis=0), label=label)
  dataset = load('arrays', path=str(tmp_path / 'a.npz'))
  label = dataset.cond['label']
  assert (label.num_classes, label.classes) == (6, (0, 3, 5))


def test_one_array_in_a_file_is_images_without_labels(tmp_path, pictures):
  images, _ = pictures(20)
  np.save(tmp_path / 'a.npy', images)
  dataset = load('arrays', path=str(tmp_path / 'a.npy'))
  assert rows_of(dataset.train, dataset.test) == sorted(image.tobytes() for image in images)
  assert dataset.cond == {}
  np.save(tmp_path / 'a.npy', images / 255)
  with pytest.raises(InputError, match='image must be uint8'):
    load('arrays', path=str(tmp_path / 'a.npy'))


@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('save', [np.savez, np.savez_compressed, np.save])
def test_flipped_bytes_of_arrays_are_read_or_refused(tmp_path, pictures, save):
  images, labels = pictures(10)
  path, rng = tmp_path / ('a.npy' if save is np.save else 'a.npz'), np.random.default_rng(0)
  save(path, images) if save is np.save else save(path, image=images, label=labels)
  whole, refused = path.read_bytes(), 0
  for _ in range(400):
    content = bytearray(whole)
    # Half of them where the headers are.
    place = rng.integers(len(whole)) if rng.random() < 0.5 else rng.integers(-400, 200)
    content[place] ^= 1 << rng.integers(8)
    path.write_bytes(content)
    try:
      load('arrays', path=str(path))
    except InputError as error:
      refused += str(error).startswith('config.dataset.path: ') and '\n' not in str(error)
  assert refused > 30


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
  assert dataset.cond['label'].num_classes == 3
  for split in (dataset.train, dataset.test):
    for image, label in zip(split[:]['x'], split[:]['cond']['label'], strict=True):
      number = next(i for i in range(30) if np.array_equal(images[i], image))
      assert label == number % 3


def test_images_of_any_size_are_cropped_to_their_center_and_resized(tmp_path):
  ramp = np.broadcast_to(np.arange(0, 200, 10, dtype=np.uint8)[None, :, None], (8, 20, 3))
  save(tmp_path / 'a.png', ramp)
  save(tmp_path / 'b.png', ramp)
  save(tmp_path / 'c.png', ramp[..., 0])  # gray
  dataset = load('folder', path=str(tmp_path), image_size=4)
  assert dataset.image_shape == (4, 4, 3)
  assert dataset.cond == {}
  # Columns 6 … 13 two by two, and a symmetric filter leaves a ramp what it is.
  want = np.broadcast_to(np.array([65, 85, 105, 125])[:, None], (4, 4, 3))
  for split in (dataset.train, dataset.test):
    for image in split[:]['x']:
      np.testing.assert_array_equal(image, want)


def test_an_empty_folder_is_refused(tmp_path):
  with pytest.raises(InputError, match=r'config.dataset.path: .* at least two images .* holds 0'):
    load('folder', path=str(tmp_path), image_size=4)


@pytest.mark.parametrize('path', ['', '~nobody-of-that-name/x', 'a\0b', 'a' * 5000])
def test_what_is_no_path_is_no_folder(path):
  with pytest.raises(InputError, match=r'^config.dataset.path: .* is not a folder'):
    load('folder', path=path, image_size=4)


def test_a_missing_folder_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"config.dataset.path: '.*none' is not a folder"):
    load('folder', path=str(tmp_path / 'none'), image_size=4)


def test_images_beside_sub_folders_are_refused(tmp_path):
  image = np.zeros((4, 4, 3), np.uint8)
  save(tmp_path / 'a.png', image)
  save(tmp_path / 'cat' / 'b.png', image)
  with pytest.raises(InputError, match=r'both in sub-folders and beside them: move'):
    load('folder', path=str(tmp_path), image_size=4)


FOLDERS = {'a': 3, 'b': 2}


@pytest.fixture
def classes(tmp_path):
  """A folder of FOLDERS, so many images in each class, image i of class k all 50 k + i."""
  for number, (name, count) in enumerate(FOLDERS.items()):
    for i in range(count):
      save(tmp_path / 'set' / name / f'{i}.png', np.full((4, 4, 3), 50 * number + i, np.uint8))
  return tmp_path / 'set'


def found(root):
  """(label, level) of every image."""
  dataset = load('folder', path=str(root), image_size=4)
  batches = [split[:] for split in (dataset.train, dataset.test)]
  return sorted(
    (int(label), int(image.flat[0]))
    for batch in batches
    for image, label in zip(batch['x'], batch['cond']['label'], strict=True)
  )


ALL = [(0, 0), (0, 1), (0, 2), (1, 50), (1, 51)]


def test_links_are_followed_and_those_that_lead_back_end(classes, tmp_path):
  linked = tmp_path / 'linked'
  linked.mkdir()
  (linked / 'a').symlink_to(classes / 'a')
  save(linked / 'b' / 'more' / 'own.png', np.full((4, 4, 3), 50, np.uint8))
  (linked / 'b' / 'other.png').symlink_to(classes / 'b' / '1.png')
  assert found(linked) == ALL
  (linked / 'b' / 'up').symlink_to(linked)
  (linked / 'b' / 'more' / 'same').symlink_to(linked / 'b')
  (linked / 'itself').symlink_to(linked)
  (linked / 'b' / 'above').symlink_to(tmp_path)
  assert found(linked) == ALL


def test_hidden_names_are_left_out_at_any_depth(classes):
  image = np.full((4, 4, 3), 99, np.uint8)
  for hidden in ('.ipynb_checkpoints/x.png', 'a/.thumbs/x.png', 'a/.cache/deep/x.png', 'b/._0.png'):
    save(classes / hidden, image)
  (classes / 'a' / 'notes.txt').write_text('no image')
  (classes / 'a' / 'folder.png').mkdir()
  assert found(classes) == ALL


@pytest.mark.parametrize('name', ['c', 'a/x.png', 'a/deep'])
def test_a_link_to_nothing_is_refused(classes, name):
  (classes / name).symlink_to(classes / 'nothing')
  with pytest.raises(
    InputError, match=rf"^config\.dataset\.path: '.*/{name}' is a link to nothing"
  ):
    load('folder', path=str(classes), image_size=4)


def test_files_of_other_kinds_are_left_out_and_named(classes, caplog):
  assert found(classes) == ALL
  assert 'left out' not in caplog.text
  for name in ('a/0.heic', 'b/1.heic', 'README'):
    (classes / name).write_text('of another kind')
  assert found(classes) == ALL
  assert 'also holds 3 files that are left out (.heic, README)' in caplog.text


def test_a_class_without_an_image_is_refused(classes):
  (classes / 'ab' / 'deep').mkdir(parents=True)
  (classes / 'ab' / 'x.heic').write_text('of another kind')
  with pytest.raises(InputError, match=r"'.*/ab' is a class, .* holds no image .*: fill it, or"):
    load('folder', path=str(classes), image_size=4)


def test_without_classes_an_empty_folder_beside_the_images_is_none(classes):
  (classes / 'a' / 'empty').mkdir()
  assert load('folder', path=str(classes / 'a'), image_size=4).cond == {}


def test_a_folder_that_cannot_be_searched_is_named(classes, monkeypatch):
  listed = os.scandir

  def scandir(path):
    if str(path).endswith('/b'):
      raise PermissionError(13, 'Permission denied', path)
    return listed(path)

  monkeypatch.setattr('os.scandir', scandir)
  with pytest.raises(InputError, match=r'cannot be searched .*Permission denied.*/b'):
    load('folder', path=str(classes), image_size=4)


@pytest.mark.parametrize('size', [0, -1, 10**6])
@pytest.mark.parametrize('name', ['folder', 'cifar10'])
def test_an_image_of_no_size_is_refused(classes, name, size):
  arguments = {'path': str(classes)} if name == 'folder' else {}
  with pytest.raises(InputError, match=rf'^config\.dataset\.image_size: {size} is not within 1 to'):
    load(name, image_size=size, **arguments)


def test_a_background_is_that_of_transparent_images(classes):
  for file in classes.rglob('*.png'):
    Image.new('RGBA', (4, 4), (9, 9, 9, 0)).save(file)
  for background, level in (('white', 255), ('black', 0), ('#0c0c0c', 12)):
    dataset = load('folder', path=str(classes), image_size=4, background=background)
    assert np.unique(dataset.train[:]['x']).tolist() == [level]
  with pytest.raises(InputError, match=r"^config\.dataset\.background: 'wihte' is no color"):
    load('folder', path=str(classes), image_size=4, background='wihte')


@pytest.mark.parametrize('keep', [0, 40])
def test_an_unreadable_image_is_named_when_it_is_read(tmp_path, keep):
  image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
  for name in 'ab':
    save(tmp_path / f'{name}.png', image)
    content = (tmp_path / f'{name}.png').read_bytes()
    (tmp_path / f'{name}.png').write_bytes(content[:keep])
  dataset = load('folder', path=str(tmp_path), image_size=8)
  with pytest.raises(InputError, match=r"path: '.*\.png' cannot be read as a picture"):
    dataset.train[:]


# By name.


def test_the_arguments_of_a_source_are_its_signature():
  folder = {'path', 'image_size', 'background'}
  assert set(inspect.signature(source('folder')).parameters) == folder
  tfds = {'data_dir', 'image_size', 'background'}
  assert set(inspect.signature(source('cifar10')).parameters) == tfds
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
