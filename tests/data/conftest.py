"""A TFDS set as its builders leave it on disk, written here without TensorFlow."""

import io
import json
import pathlib

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2


def png(image):
  """The bytes of a PNG of (H, W, C); bytes stay as they are."""
  if isinstance(image, bytes):
    return image
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, 'png')
  return file.getvalue()


def _example(image, label):
  example = tf_example_pb2.Example()
  example.features.feature['image'].bytes_list.value.append(png(image))
  example.features.feature['label'].int64_list.value.append(label)
  return example.SerializeToString()


def _features(shape, num_classes):
  features = 'tensorflow_datasets.core.features.'
  image = {'shape': {'dimensions': [str(size or -1) for size in shape]}, 'dtype': 'uint8'}
  return {
    'pythonClassName': features + 'features_dict.FeaturesDict',
    'featuresDict': {
      'features': {
        'image': {
          'pythonClassName': features + 'image_feature.Image',
          'image': image,
        },
        'label': {
          'pythonClassName': features + 'class_label_feature.ClassLabel',
          'classLabel': {'numClasses': str(num_classes)},
        },
      }
    },
  }


def _info(name, splits, file_format):
  return {
    'name': name,
    'version': '1.0.0',
    'fileFormat': file_format,
    'splits': [
      {
        'name': split,
        'numBytes': '1',
        'shardLengths': [str(len(labels))],
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
      }
      for split, (_, labels) in splits.items()
    ],
  }


@pytest.fixture
def write_tfds(tmp_path):
  """write(name, shape, splits): {split: (images, labels)} as a prepared set; its data_dir."""

  def write(name, shape, splits, file_format='array_record') -> pathlib.Path:
    folder = tmp_path / 'tfds' / name / '1.0.0'
    folder.mkdir(parents=True)
    (folder / 'features.json').write_text(json.dumps(_features(shape, num_classes=10)))
    (folder / 'dataset_info.json').write_text(json.dumps(_info(name, splits, file_format)))
    for split, (images, labels) in splits.items():
      path = folder / f'{name}-{split}.{file_format}-00000-of-00001'
      writer = ArrayRecordWriter(str(path), 'group_size:1')
      for image, label in zip(images, labels, strict=True):
        writer.write(_example(image, int(label)))
      writer.close()
    return tmp_path / 'tfds'

  return write


@pytest.fixture
def pictures():
  """A function (count, size, channels) -> images, every one different, and labels."""

  def make(count, size=6, channels=3):
    rng = np.random.default_rng(count)
    images = rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    return images, rng.integers(0, 10, count)

  return make
