"""Data sets in a bucket: what is read there is what is read on a disk."""

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import load
from ddpm_jax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """Where this host keeps its copies."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache' / 'ddpm_jax' / 'data'


def put(store, folder, prefix):
  """Uploads all files below a folder."""
  for path in sorted(folder.rglob('*')):
    if path.is_file():
      store.put(f'{prefix}/{path.relative_to(folder).as_posix()}', path.read_bytes())


def read(store):
  """The objects whose content has been asked for."""
  return [line for line in store.asked if 'alt=media' in line]


def assert_same(one, other):
  facts = ((each.name, each.image_shape, each.cond) for each in (one, other))
  assert next(facts) == next(facts)
  for a, b in ((one.train, other.train), (one.test, other.test)):
    jax.tree.map(np.testing.assert_array_equal, a[:], b[:])


def test_arrays_are_copied_once_and_again_when_they_are_others(store, bucket, tmp_path, pictures):
  images, labels = pictures(12)
  path = tmp_path / 'set.npz'
  for order in (1, -1):
    np.savez(path, image=images[::order], label=labels)
    store.put(f'{bucket.removeprefix("gs://bucket/")}/set.npz', path.read_bytes())
    store.asked.clear()
    assert_same(load('arrays', path=f'{bucket}/set.npz'), load('arrays', path=str(path)))
    assert len(read(store)) == 1
    load('arrays', path=f'{bucket}/set.npz')
    assert len(read(store)) == 1


def test_a_folder_of_pictures_is_copied_with_its_classes(store, bucket, tmp_path, pictures):
  images, _ = pictures(24)
  for number, image in enumerate(images):
    path = tmp_path / 'set' / str(number % 3) / f'{number}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
  put(store, tmp_path / 'set', f'{bucket.removeprefix("gs://bucket/")}/set')
  store.put(f'{bucket.removeprefix("gs://bucket/")}/set/', b'')  # as consoles mark folders
  found = load('folder', path=f'{bucket}/set', image_size=4)
  assert_same(found, load('folder', path=str(tmp_path / 'set'), image_size=4))
  assert found.cond['label'].num_classes == 3


def test_a_prepared_set_is_copied(store, bucket, write_tfds, pictures):
  data_dir = write_tfds('tiny', (6, 6, 3), {'train': pictures(23), 'test': pictures(5)})
  put(store, data_dir, bucket.removeprefix('gs://bucket/'))
  assert_same(load('tiny', data_dir=bucket), load('tiny', data_dir=str(data_dir)))
  with pytest.raises(InputError) as caught:
    load('cifar10', data_dir=bucket)
  assert str(caught.value) == (
    f"config.dataset.name: 'cifar10' is not prepared in {bucket}; prepare it with: python -m "
    f'ddpm_jax.data.prepare cifar10, and copy its folder to {bucket}/cifar10'
  )


def test_what_cannot_be_copied_leaves_no_copy(store, bucket, cache):
  name = bucket.removeprefix('gs://bucket/')
  with pytest.raises(InputError, match=f"config.dataset.path: '{bucket}/a.npz' does not exist"):
    load('arrays', path=f'{bucket}/a.npz')
  store.put(f'{name}/../../a.npz', b'1')
  with pytest.raises(InputError, match=r"the object 'bucket/.*' has a name that is no file's"):
    load('folder', path=bucket, image_size=4)
  store.objects.pop(f'{name}/../../a.npz')
  store.put(f'{name}/a.npz', b'1')
  store.refuse = lambda method, name: 403 if name.endswith('a.npz') else None
  with pytest.raises(InputError, match=f"config.dataset.path: '{bucket}/a.npz' cannot be copied"):
    load('arrays', path=f'{bucket}/a.npz')
  assert not [path for path in cache.rglob('*') if path.name not in ('.lock',) and path.is_file()]
