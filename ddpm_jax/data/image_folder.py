"""A folder of images; its sub-folders are the classes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator
from typing import Annotated

import numpy as np
from absl import logging
from annotated_types import Interval, MinLen

from ddpm_jax.data import pictures
from ddpm_jax.data.dataset import Dataset, Decoded, held_out, labeled
from ddpm_jax.data.fetched import on_this_host
from ddpm_jax.errors import InputError

LARGEST = 2**14
Side = Annotated[int, Interval(ge=1, le=LARGEST)]


def folder(path: Annotated[str, MinLen(1)], image_size: Side, background: str = 'white') -> Dataset:
  """Every image under `path` in RGB, cropped to its central square and resized.

  The first level of sub-folders, in alphabetical order, gives the classes 0, 1, …; images
  that lie in `path` itself have none. A fixed tenth is held out. Links are followed; what has a
  hidden name (.ipynb_checkpoints) is left out. `data.pictures` says how a file is read.

  Args:
    path: the folder.
    image_size: the height and width of the images that are made, in pixels.
    background: the color that transparent parts of an image show: a name or '#ffffff'.

  Raises:
    InputError: no two images, images both in and beside sub-folders, a sub-folder without any, a
      link to nothing; on reading, an image that cannot be decoded.
  """
  check_size(image_size)
  pictures.color(background)
  root = pathlib.Path(on_this_host(path, 'config.dataset.path')) if path else pathlib.Path()
  files = files_under(root, path)
  names = [file.relative_to(root).parts[:-1][:1] for file in files]
  classes = sorted(set(names))
  check_classes(root, classes)
  number = {name: index for index, name in enumerate(classes)}
  label = np.array([number[name] for name in names])
  shape = (image_size, image_size, 3)

  def split(mine: np.ndarray) -> Decoded:
    def read(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
      for i in mine[rows]:
        where = f"config.dataset.path: '{files[i]}'"
        yield pictures.square(pictures.read(files[i], 3, background, where), image_size), label[i]

    return Decoded(read, len(mine), shape, labels=label[mine])

  held = held_out(label, every=10)
  train, test = split(np.flatnonzero(~held)), split(np.flatnonzero(held))
  cond = {} if () in classes else labeled(len(classes), train, test)
  return Dataset(root.name, train, test, shape, 256, cond)


def check_size(image_size: int) -> None:
  """Refuses an image of no size, or of one that no memory holds."""
  if not 1 <= image_size <= LARGEST:
    raise InputError(f'config.dataset.image_size: {image_size} is not within 1 to {LARGEST}')


def files_under(root: pathlib.Path, path: str) -> list[pathlib.Path]:
  """The image files under a folder, in the order of their paths; says what others there are."""
  if not path or not os.path.isdir(root):
    raise InputError(f"config.dataset.path: '{path}' is not a folder")
  real = pathlib.Path(os.path.realpath(root))
  try:
    found = sorted(walk(os.fspath(root), tuple(map(os.fspath, real.parents))))
  except OSError as error:
    raise InputError(f"config.dataset.path: '{path}' cannot be searched ({error})") from error
  files = [file for file in found if is_image(file)]
  others = {file.suffix or file.name for file in found if not is_image(file)}
  if len(files) < 2:
    raise InputError(
      f"config.dataset.path: '{root}' needs at least two images ({', '.join(pictures.SUFFIXES)}), "
      f'one to train on and one to hold out; it holds {len(files)}'
    )
  if others:
    logging.warning(
      "config.dataset.path: '%s' also holds %d files that are left out (%s): images are %s",
      path,
      len(found) - len(files),
      ', '.join(sorted(others)[:5]),
      ', '.join(pictures.SUFFIXES),
    )
  return files


def is_image(path: pathlib.Path) -> bool:
  """Whether a file is called a picture that `data.pictures` reads."""
  return path.suffix.lower() in pictures.SUFFIXES


def walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[pathlib.Path]:
  """The files in a folder and below; a link to one of the folders `above` ends there."""
  real = os.path.realpath(folder)
  if real in above:
    return
  with os.scandir(folder) as entries:
    shown = [entry for entry in entries if not entry.name.startswith('.')]
  for entry in shown:
    if entry.is_dir():
      yield from walk(entry.path, (*above, real))
    elif entry.is_file():
      yield pathlib.Path(entry.path)
    elif entry.is_symlink():
      raise InputError(
        f"config.dataset.path: '{entry.path}' is a link to nothing: mend or remove it"
      )


def check_classes(root: pathlib.Path, classes: list[tuple[str, ...]]) -> None:
  """Refuses images both in sub-folders and beside them, and a class without any."""
  if () not in classes:
    shown = (entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != '.')
    empty = sorted(
      entry.name for entry in shown if (entry.name,) not in classes and not entry.samefile(root)
    )
    if empty:
      raise InputError(
        f"config.dataset.path: '{root / empty[0]}' is a class, as every sub-folder, and holds no "
        f'image ({", ".join(pictures.SUFFIXES)}): fill it, or remove it, and the classes after it '
        'move up'
      )
  elif len(classes) > 1:
    raise InputError(
      f"config.dataset.path: '{root}' holds images both in sub-folders and beside them: "
      'move them all into sub-folders (one a class), or none'
    )
