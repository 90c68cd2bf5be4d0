import json
import sys
import time

import numpy as np
import pytest

from ddpm_jax.data import load
from ddpm_jax.data.prepare import main, prepare
from ddpm_jax.data.prepared import data_dirs
from ddpm_jax.errors import InputError


def test_a_prepared_set_is_read_as_it_was_written(write_tfds, pictures):
  splits = {'train': pictures(23), 'test': pictures(5)}
  dataset = load('tiny', data_dir=str(write_tfds('tiny', (6, 6, 3), splits)))
  for split, (images, labels) in zip((dataset.train, dataset.test), splits.values(), strict=True):
    np.testing.assert_array_equal(split[:]['x'], images)
    np.testing.assert_array_equal(split[:]['cond']['label'], labels)
  assert (dataset.name, dataset.image_shape) == ('tiny', (6, 6, 3))
  assert (dataset.num_levels, dataset.cond['label'].num_classes) == (256, 10)


def test_without_a_test_split_a_tenth_of_train_is_held_out(write_tfds, pictures):
  images, labels = pictures(30, channels=1)
  dataset = load('tiny', data_dir=str(write_tfds('tiny', (6, 6, 1), {'train': (images, labels)})))
  both = np.concatenate([dataset.train[:]['x'], dataset.test[:]['x']])
  assert len(dataset.test) == 3
  assert sorted(a.tobytes() for a in both) == sorted(a.tobytes() for a in images)


def test_images_of_differing_size_need_image_size(write_tfds):
  images = [np.full((4 + i, 9, 1), 10 * i, np.uint8) for i in range(4)]
  data_dir = str(write_tfds('tiny', (None, None, 1), {'train': (images, np.arange(4))}))
  with pytest.raises(InputError, match=r"config.dataset.image_size: the images of 'tiny' differ"):
    load('tiny', data_dir=data_dir)
  dataset = load('tiny', data_dir=data_dir, image_size=4)
  assert dataset.image_shape == (4, 4, 1)
  for split in (dataset.train, dataset.test):
    for image, label in zip(split[:]['x'], split[:]['cond']['label'], strict=True):
      assert (image == 10 * label).all()


def test_the_environment_and_then_the_usual_folders(monkeypatch, write_tfds, pictures):
  data_dir = str(write_tfds('tiny', (6, 6, 3), {'train': pictures(20)}))
  monkeypatch.setenv('TFDS_DATA_DIR', data_dir)
  assert len(load('tiny').train) == 18
  assert data_dirs()[0] == data_dir
  assert data_dirs('/given') == ['/given']


def test_a_set_that_is_not_there_names_its_command_at_once(tmp_path):
  start = time.monotonic()
  with pytest.raises(InputError) as error:
    load('cifar10', data_dir=str(tmp_path))
  assert str(error.value) == (
    f"config.dataset.name: 'cifar10' is not prepared in {tmp_path}; "
    f'prepare it with: python -m ddpm_jax.data.prepare cifar10 --data_dir={tmp_path}'
  )
  assert time.monotonic() - start < 10


@pytest.mark.parametrize('name', ['cifar_10', 'cifa10:3.0.2', 'cifar1O/plain'])
def test_an_unknown_name_gets_the_nearest(tmp_path, name):
  with pytest.raises(InputError, match=f"config.dataset.name: '{name}' is not .*mean .*'cifar10'"):
    load(name, data_dir=str(tmp_path))


@pytest.mark.parametrize('name', ['a b?', '../x', 'zzzzzz'])
def test_what_is_no_name_at_all_gets_none(tmp_path, name):
  with pytest.raises(InputError, match=r'name of a TFDS set$'):
    load(name, data_dir=str(tmp_path))


def test_a_set_in_tensorflows_format_is_refused(write_tfds, pictures):
  data_dir = write_tfds('tiny', (6, 6, 3), {'train': pictures(3)}, file_format='tfrecord')
  with pytest.raises(InputError, match=r"'tiny' is prepared in .* only TensorFlow reads: remove"):
    load('tiny', data_dir=str(data_dir))


def test_a_set_without_a_train_split_is_refused(write_tfds, pictures):
  data_dir = write_tfds('tiny', (6, 6, 3), {'test': pictures(3)})
  with pytest.raises(InputError, match=r"'tiny' has no split 'train', only test"):
    load('tiny', data_dir=str(data_dir))


@pytest.mark.parametrize('name', ['tiny', 'Tiny', 'tiny:1.0.0', 'tiny:1.*.*'])
@pytest.mark.parametrize('key', ['pythonClassName', 'python_class_name', 'type'])
def test_a_set_whose_files_name_other_code_is_refused_and_does_not_run_it(
  write_tfds, pictures, monkeypatch, tmp_path, key, name
):
  data_dir = write_tfds('tiny', (6, 6, 3), {'train': pictures(3)})
  (tmp_path / 'payload.py').write_text(f'open({str(tmp_path / "IMPORTED")!r}, "w")')
  monkeypatch.syspath_prepend(tmp_path)
  path = data_dir / 'tiny' / '1.0.0' / 'features.json'
  tree = json.loads(path.read_text())
  image = tree['featuresDict']['features']['image']
  del image['pythonClassName']
  image[key] = 'payload.Image'
  if key == 'type':  # as TFDS used to write them
    tree = {key: 'payload.Image', 'content': {}}
  path.write_text(json.dumps(tree))
  with pytest.raises(
    InputError, match=r"'[tT]iny\S* has a feature of payload\.Image, which is not"
  ):
    load(name, data_dir=str(data_dir))
  assert not (tmp_path / 'IMPORTED').exists()


def test_preparing_without_tensorflow_says_what_to_install(monkeypatch, tmp_path, capsys):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)  # makes its import fail
  assert main(['cifar10', f'--data_dir={tmp_path}']) == 2
  assert 'needs tensorflow, which reading it does not: pip install' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_preparing_an_unknown_name_is_refused():
  with pytest.raises(InputError, match=r"did you mean 'mnist'"):
    prepare('mnis')
