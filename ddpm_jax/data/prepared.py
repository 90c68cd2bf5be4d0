"""Image sets that TensorFlow Datasets has prepared on disk, read without TensorFlow."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from annotated_types import Interval
from PIL import Image

from ddpm_jax.data.dataset import Dataset, Decoded, held_out
from ddpm_jax.data.image_folder import square
from ddpm_jax.errors import InputError

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by the number of channels


def tfds(
  name: str,
  data_dir: str | None = None,
  image_size: Annotated[int, Interval(ge=1, le=16_384)] | None = None,
) -> Dataset:
  """Any TFDS set with a uint8 feature `image`, and `label` where it has classes.

  The held-out set is its split `test`, else `validation`, else a fixed tenth of `train`.

  Args:
    name: TFDS's name, 'name[/config][:version]'; without a version, the newest on disk.
    data_dir: where it was prepared; unset, the folders of `data_dirs()`.
    image_size: crop to the central square and resize to this; unset, as they are.

  Raises:
    InputError: not a TFDS name; not prepared (the message has the command that prepares it);
      or not a set of images of one size.
  """
  builder = _find(name, data_dir)
  shape, num_classes = _features(builder, name, image_size)
  labeled = num_classes is not None

  def split(examples, mine: np.ndarray) -> Decoded:
    def read(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
      # One call for all rows: array_record reads them together, three times as fast.
      for example in examples.__getitems__(mine[rows].tolist()):
        image = _decode(example['image'], shape[-1], image_size)
        yield image, example['label'] if labeled else 0

    return Decoded(read, len(mine), shape)

  train, test = (split(*part) for part in _parts(builder, name))
  return Dataset(name, train, test, shape, num_levels=256, num_classes=num_classes)


def data_dirs(data_dir: str | None = None) -> list[str]:
  """Where prepared sets are looked for, in this order; they are prepared in the first.

  `data_dir` alone where given; else $TFDS_DATA_DIR, ~/.cache/ddpm_jax/tfds, ~/tensorflow_datasets.
  """
  usual = (os.environ.get('TFDS_DATA_DIR'), '~/.cache/ddpm_jax/tfds', '~/tensorflow_datasets')
  return [os.path.expanduser(path) for path in ([data_dir] if data_dir else usual) if path]


def check_name(name: str) -> None:
  """Raises InputError, with the nearest names, unless TFDS's catalog lists `name`."""
  import tensorflow_datasets

  known = tensorflow_datasets.list_builders(with_community_datasets=False)
  base = name.split(':')[0].split('/')[0]
  if base in known:
    return
  nearest = difflib.get_close_matches(base, [*known, 'digits', 'arrays', 'folder'], n=3)
  hint = f'; did you mean {" or ".join(map(repr, nearest))}?' if nearest else ''
  raise InputError(
    f"config.dataset.name: '{name}' is not digits, arrays, folder or the name of a TFDS set{hint}"
  )


def _find(name: str, data_dir: str | None):
  """The set's builder, made from its files: none of the set's own code is run."""
  import tensorflow_datasets

  for folder in data_dirs(data_dir):
    try:
      return tensorflow_datasets.core.read_only_builder.builder_from_files(name, data_dir=folder)
    except tensorflow_datasets.core.DatasetNotFoundError:
      continue
    except ValueError:
      break  # not even of the form of a name
  check_name(name)
  option = f' --data_dir={data_dir}' if data_dir else ''
  raise InputError(
    f"config.dataset.name: '{name}' is not prepared in {' or '.join(data_dirs(data_dir))}; "
    f'prepare it with: python -m ddpm_jax.data.prepare {name}{option}'
  )


def _features(builder, name: str, image_size: int | None):
  """The shape of the images, and the number of classes or None."""
  features = dict(builder.info.features.items())
  image = features.get('image')
  if (
    image is None
    or len(image.shape) != 3
    or image.np_dtype != np.uint8
    or image.shape[-1] not in _MODES
  ):
    raise InputError(f"config.dataset.name: '{name}' has no uint8 images under the name 'image'")
  height, width, channels = image.shape
  if image_size is None and None in (height, width):
    raise InputError(
      f"config.dataset.image_size: the images of '{name}' differ in size; "
      'set it, and they are cropped to a square and resized'
    )
  shape = (height, width, channels) if image_size is None else (image_size, image_size, channels)
  return shape, getattr(features.get('label'), 'num_classes', None)


def _parts(builder, name: str):
  """Two pairs (examples, rows): what to train on, and what is held out."""
  splits = builder.info.splits
  if 'train' not in splits:
    found = ', '.join(splits)
    raise InputError(f"config.dataset.name: '{name}' has no split 'train', only {found}")
  held = next((split for split in ('test', 'validation') if split in splits), None)
  examples = _examples(builder, name, 'train')
  if held is None:
    mask = held_out(np.zeros(len(examples)), every=10)
    return (examples, np.flatnonzero(~mask)), (examples, np.flatnonzero(mask))
  test = _examples(builder, name, held)
  return (examples, np.arange(len(examples))), (test, np.arange(len(test)))


def _examples(builder, name: str, split: str):
  """Random access to a split, its images still encoded."""
  from tensorflow_datasets import decode

  try:
    return builder.as_data_source(split, decoders={'image': decode.SkipDecoding()})
  except NotImplementedError:
    raise InputError(
      f"config.dataset.name: '{name}' is prepared in {builder.data_path} in a format that only "
      'TensorFlow reads: remove that folder and prepare it with: '
      f'python -m ddpm_jax.data.prepare {name}'
    ) from None


def _decode(encoded: bytes, channels: int, size: int | None) -> np.ndarray:
  with Image.open(io.BytesIO(encoded)) as file:
    image = file.convert(_MODES[channels])
  return np.atleast_3d(np.asarray(image)) if size is None else square(image, size)
