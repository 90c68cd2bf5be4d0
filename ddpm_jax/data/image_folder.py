"""A folder of images; its sub-folders are the classes."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from annotated_types import Interval
from PIL import Image, ImageOps

from ddpm_jax.data.dataset import Dataset, Decoded, held_out
from ddpm_jax.errors import InputError

_SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')


def folder(path: str, image_size: Annotated[int, Interval(ge=1, le=16_384)]) -> Dataset:
  """Every image under `path` in RGB, cropped to its central square and resized.

  The first level of sub-folders, in alphabetical order, gives the classes 0, 1, …; images
  that lie in `path` itself have none. A fixed tenth is held out.

  Raises:
    InputError: no two images, images both in and beside sub-folders; on reading, an image
      that cannot be decoded.
  """
  root = pathlib.Path(path).expanduser()
  files = _images_under(root)
  names = [file.relative_to(root).parts[:-1][:1] for file in files]
  classes = sorted(set(names))
  if () in classes and len(classes) > 1:
    raise InputError(
      f"config.dataset.path: '{path}' holds images both in sub-folders and beside them: "
      'move them all into sub-folders (one a class), or none'
    )
  label = np.array([classes.index(name) for name in names])
  shape = (image_size, image_size, 3)

  def split(mine: np.ndarray) -> Decoded:
    def read(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
      return ((_decode(files[i], image_size), label[i]) for i in mine[rows])

    return Decoded(read, len(mine), shape)

  test = held_out(label, every=10)
  return Dataset(
    name=root.name,
    train=split(np.flatnonzero(~test)),
    test=split(np.flatnonzero(test)),
    image_shape=shape,
    num_levels=256,
    num_classes=None if () in classes else len(classes),
  )


def square(image: Image.Image, size: int) -> np.ndarray:
  """The central square, resized (antialiased bicubic): uint8 (size, size, channels)."""
  fitted = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
  return np.asarray(fitted).reshape(size, size, -1)


def _images_under(root: pathlib.Path) -> list[pathlib.Path]:
  if not root.is_dir():
    raise InputError(f"config.dataset.path: '{root}' is not a folder")
  files = sorted(
    file
    for file in root.rglob('*')
    if file.suffix.lower() in _SUFFIXES and not file.name.startswith('.')
  )
  if len(files) < 2:
    raise InputError(
      f"config.dataset.path: '{root}' needs at least two images ({', '.join(_SUFFIXES)}), "
      f'one to train on and one to hold out; it holds {len(files)}'
    )
  return files


def _decode(file: pathlib.Path, size: int) -> np.ndarray:
  try:
    with Image.open(file) as image:
      return square(ImageOps.exif_transpose(image).convert('RGB'), size)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise InputError(
      f"config.dataset.path: '{file}' cannot be read as an image ({error}): mend or remove it"
    ) from error
