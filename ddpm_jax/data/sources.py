"""The data sets by name: two built in, NumPy arrays, a folder of images, any TFDS set."""

from __future__ import annotations

import functools
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Annotated

import numpy as np
from annotated_types import Interval

from ddpm_jax.data.dataset import Arrays, Dataset, held_out
from ddpm_jax.data.image_folder import folder
from ddpm_jax.data.mixture import mixture
from ddpm_jax.data.prepared import tfds
from ddpm_jax.errors import InputError


def digits() -> Dataset:
  """scikit-learn's 1,797 handwritten digits, 8x8 with 17 gray levels; a fixed fifth held out.

  Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
  """
  from sklearn import datasets  # takes a second to import, and only this needs it

  image, label = map(np.asarray, datasets.load_digits(return_X_y=True))
  train, test = _divided(image.reshape(-1, 8, 8, 1), label, every=5)
  return Dataset('digits', train, test, image_shape=(8, 8, 1), num_levels=17, num_classes=10)


def arrays(path: str, num_levels: Annotated[int, Interval(ge=2, le=256)] = 256) -> Dataset:
  """The arrays of an .npz file.

  Args:
    path: a file with `image`, uint8 (N, H, W, C) or (N, H, W) with values 0 … num_levels-1,
      and, where there are classes, `label`, integers (N,); or the same as `arr_0` and `arr_1`.
      `test_image` and `test_label` are the held-out set; without them it is a fixed tenth.
    num_levels: the number of levels that a value can take.

  Raises:
    InputError: the file cannot be read, or what it holds is not the above.
  """
  content = _load_npz(path)
  labeled = 'label' in content
  image, label = _checked(content, '', path, num_levels, labeled)
  train, test = _divided(image, label, every=10)
  classes = label
  if 'test_image' in content:
    test_image, test_label = _checked(content, 'test_', path, num_levels, labeled)
    if test_image.shape[1:] != image.shape[1:]:
      raise _wrong(path, f'test_image has shape {test_image.shape}, image {image.shape}')
    train, test = Arrays(image, label), Arrays(test_image, test_label)
    classes = np.concatenate([label, test_label])
  num_classes = int(classes.max()) + 1 if labeled else None
  return Dataset(pathlib.Path(path).stem, train, test, image.shape[1:], num_levels, num_classes)


DATASETS: Mapping[str, Callable[..., Dataset]] = {
  'digits': digits,
  'mixture': mixture,
  'arrays': arrays,
  'folder': folder,
}


def source(name: str) -> Callable[..., Dataset]:
  """The function behind a data set's name: a row of DATASETS, or else TFDS's set of that name."""
  return DATASETS.get(name) or functools.partial(tfds, name)


def load(name: str, **arguments) -> Dataset:
  """Loads a data set.

  Args:
    name: one of DATASETS; any other name is TFDS's, such as 'cifar10' or 'celeb_a:2.1.0'.
    **arguments: the keyword arguments of `source(name)`.

  Raises:
    InputError: the data is not there or not usable; the message says how to mend it.
  """
  return source(name)(**arguments)


def _divided(image: np.ndarray, label: np.ndarray, every: int) -> tuple[Arrays, Arrays]:
  test = held_out(label, every)
  return Arrays(image[~test], label[~test]), Arrays(image[test], label[test])


def _load_npz(path: str) -> dict[str, np.ndarray]:
  names = {'arr_0': 'image', 'arr_1': 'label'}
  try:
    with np.load(pathlib.Path(path).expanduser(), allow_pickle=False) as file:
      content = {names.get(key, key): file[key] for key in file.files}
  except FileNotFoundError:
    raise _wrong(path, 'does not exist') from None
  except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
    raise _wrong(path, f'cannot be read as an .npz file ({error})') from error
  if 'image' not in content:
    raise _wrong(path, f"needs an array 'image' (or 'arr_0'); it holds {', '.join(content)}")
  return content


def _checked(
  content: Mapping[str, np.ndarray], prefix: str, path: str, num_levels: int, labeled: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Image (N, H, W, C) and label (N,) once they are what `arrays` asks for."""
  image = content[prefix + 'image']
  if image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) < 2:
    found = f'{image.dtype} {image.shape}'
    raise _wrong(path, f'{prefix}image must be uint8 (N, H, W, C) with N at least 2, not {found}')
  if image.max(initial=0) >= num_levels:
    raise _wrong(path, f'{prefix}image has a value {image.max()}, but num_levels is {num_levels}')
  if ('label' in content) != (prefix + 'label' in content):
    raise _wrong(path, f"has 'label' but no '{prefix}label'")
  label = content[prefix + 'label'] if labeled else np.zeros(len(image), np.int32)
  integers = np.issubdtype(label.dtype, np.integer)
  if not integers or label.shape != image.shape[:1] or label.min() < 0:
    found = f'{label.dtype} {label.shape}'
    raise _wrong(path, f'{prefix}label must be {len(image)} integers from 0, not {found}')
  return (image if image.ndim == 4 else image[..., None]), label


def _wrong(path: str, what: str) -> InputError:
  return InputError(f"config.dataset.path: '{path}' {what}")
