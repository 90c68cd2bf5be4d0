"""Image sets that TensorFlow Datasets has prepared on disk, read without TensorFlow."""

from __future__ import annotations

import difflib
import io
import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax.data import pictures
from ddpm_jax.data.dataset import Dataset, Decoded, held_out, labeled
from ddpm_jax.data.fetched import on_this_host
from ddpm_jax.data.image_folder import Side, check_size
from ddpm_jax.errors import InputError
from ddpm_jax.stores import is_store, path_of

# Under which a features.json names Python classes.
_CLASSES = ('type', 'pythonClassName', 'python_class_name')


def tfds(
  name: str,
  data_dir: str | None = None,
  image_size: Side | None = None,
  background: str = 'white',
) -> Dataset:
  """Any TFDS set with a uint8 feature `image`, and `label` where it has classes.

  The held-out set is its split `test`, else `validation`, else a fixed tenth of `train`.

  Args:
    name: TFDS's name, 'name[/config][:version]'; without a version, the newest on disk.
    data_dir: where it was prepared; unset, the folders of `data_dirs()`.
    image_size: crop to the central square and resize to this; unset, as they are.
    background: the color that transparent parts of an image show: a name or '#ffffff'.

  Raises:
    InputError: not a TFDS name; not prepared (the message has the command that prepares it);
      or not a set of images of one size.
  """
  if image_size is not None:
    check_size(image_size)
  pictures.color(background)
  builder = _find(name, data_dir)
  shape, num_classes = _features(builder, name, image_size)
  has_labels = num_classes is not None

  def split(examples, mine: np.ndarray) -> Decoded:
    def read(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
      # One call for all rows: array_record reads them together, three times as fast.
      for example in examples.__getitems__(mine[rows].tolist()):
        file, where = io.BytesIO(example['image']), f"config.dataset.name: an image of '{name}'"
        image = pictures.read(file, shape[-1], background, where)
        yield pictures.square(image, image_size), example['label'] if has_labels else 0

    return Decoded(read, len(mine), shape)

  train, test = (split(*part) for part in _parts(builder, name))
  cond = {} if num_classes is None else labeled(num_classes, train, test)
  return Dataset(name, train, test, shape, 256, cond)


def data_dirs(data_dir: str | None = None) -> list[str]:
  """Where prepared sets are looked for, in this order; they are prepared in the first.

  `data_dir` alone where given; else $TFDS_DATA_DIR, ~/.cache/ddpm_jax/tfds, ~/tensorflow_datasets.
  """
  usual = (os.environ.get('TFDS_DATA_DIR'), '~/.cache/ddpm_jax/tfds', '~/tensorflow_datasets')
  given = [data_dir] if data_dir else usual
  return [os.fspath(path_of(path, 'config.dataset.data_dir')) for path in given if path]


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

  core = tensorflow_datasets.core
  for folder in data_dirs(data_dir):
    try:
      # builder_from_files in two halves: what is found is checked before it is read.
      with core.utils.error_utils.record_error_context():
        found = core.read_only_builder._find_builder_dir(name, data_dir=folder)
    except ValueError:
      break  # not even of the form of a name
    if found is not None:
      found = on_this_host(found, 'config.dataset.data_dir')
      _check_classes(found / 'features.json', name)
      return core.read_only_builder.builder_from_directory(found)
  check_name(name)
  remote = next((folder for folder in data_dirs(data_dir) if is_store(folder)), None)
  option = f' --data_dir={data_dir}' if data_dir and not remote else ''
  last = f', and copy its folder to {remote}/{name.split(":")[0]}' if remote else ''
  raise InputError(
    f"config.dataset.name: '{name}' is not prepared in {' or '.join(data_dirs(data_dir))}; "
    f'prepare it with: python -m ddpm_jax.data.prepare {name}{option}{last}'
  )


def _check_classes(path: epath.Path, name: str) -> None:
  """Raises InputError where a set has features that are not TFDS's own.

  TFDS would import the modules that its files name for them, whoever wrote those.
  """
  for cls in _classes(_content(path)):
    if not cls.startswith('tensorflow_datasets.'):
      raise InputError(
        f"config.dataset.name: '{name}' has a feature of {cls}, which is not TFDS's own ({path})"
      )


def _content(path: epath.Path) -> Any:
  """What a file of JSON holds; None where it cannot be read, of which TFDS itself complains."""
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return None


def _classes(tree: Any) -> Iterator[str]:
  """The Python classes in a features.json."""
  if isinstance(tree, dict):
    yield from (tree[key] for key in _CLASSES if isinstance(tree.get(key), str))
  if isinstance(tree, (dict, list)):
    for child in tree.values() if isinstance(tree, dict) else tree:
      yield from _classes(child)


def _features(builder, name: str, image_size: int | None):
  """The shape of the images, and the number of classes or None."""
  features = dict(builder.info.features.items())
  image = features.get('image')
  if (
    image is None
    or len(image.shape) != 3
    or image.np_dtype != np.uint8
    or image.shape[-1] not in pictures.MODES
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
