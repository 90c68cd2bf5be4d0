"""The data sets by name: two built in, NumPy arrays, a folder of images, any TFDS set."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import numpy as np
from absl import logging
from annotated_types import Interval, MinLen

from ddpm_jax.data.dataset import Arrays, Dataset, held_out, labeled
from ddpm_jax.data.fetched import on_this_host
from ddpm_jax.data.image_folder import folder
from ddpm_jax.data.plane import mixture
from ddpm_jax.data.prepared import tfds
from ddpm_jax.errors import InputError, one_line
from ddpm_jax.stores import path_of

# The arrays of an .npz file, and what NumPy calls the first two where nobody names them.
NAMES = ('image', 'label', 'test_image', 'test_label')
OTHER_NAMES = {'image': 'arr_0', 'label': 'arr_1'}


def digits() -> Dataset:
  """scikit-learn's 1,797 handwritten digits, 8x8 with 17 gray levels; a fixed fifth held out.

  Reference: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
  """
  from sklearn import datasets  # takes a second to import, and only this needs it

  image, label = map(np.asarray, datasets.load_digits(return_X_y=True))
  train, test = _divided(image.reshape(-1, 8, 8, 1).astype(np.uint8), label, every=5)
  return Dataset('digits', train, test, (8, 8, 1), 17, labeled(10, train, test))


def arrays(
  path: Annotated[str, MinLen(1)], num_levels: Annotated[int, Interval(ge=2, le=256)] = 256
) -> Dataset:
  """The arrays of an .npz file, or the images alone of an .npy file.

  Args:
    path: a file with `image`, uint8 (N, H, W, C) or (N, H, W) with values 0 … num_levels-1,
      and, where there are classes, `label`, integers (N,); or the same as `arr_0` and `arr_1`.
      `test_image` and `test_label` are the held-out set; without them it is a fixed tenth.
    num_levels: the number of levels that a value can take.

  Raises:
    InputError: the file cannot be read, or what it holds is not the above.
  """
  if not 2 <= num_levels <= 256:
    raise InputError(f'config.dataset.num_levels: {num_levels} is not within 2 to 256')
  content = _load(path)
  given = [prefix for prefix in ('', 'test_') if prefix + 'image' in content]
  parts = [(_image(content, p, path, num_levels), _label(content, p, path)) for p in given]
  shape, *test_shape = (image.shape[1:] for image, _ in parts)
  if test_shape not in ([], [shape]):
    raise _wrong(path, f'test_image has shape {parts[1][0].shape}, image {parts[0][0].shape}')
  if 'test_label' in content and not test_shape:
    raise _wrong(path, "has 'test_label' but no 'test_image'")
  num_classes = None
  if 'label' in content:
    num_classes = _num_classes([label for _, label in parts], path)
  if test_shape:
    train, test = (Arrays(image, {'label': label}) for image, label in parts)
  else:
    train, test = _divided(*parts[0], every=10)
  cond = {} if num_classes is None else labeled(num_classes, train, test)
  return Dataset(path_of(path, 'config.dataset.path').stem, train, test, shape, num_levels, cond)


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
  train, held = (Arrays(image[rows], {'label': label[rows]}) for rows in (~test, test))
  return train, held


def _load(path: str) -> dict[str, np.ndarray]:
  try:
    file = np.load(on_this_host(path, 'config.dataset.path'), allow_pickle=False)
    if isinstance(file, np.ndarray):
      return {'image': file}
    with file:
      content = {key: file[key] for key in file.files}
  except InputError:
    raise
  except FileNotFoundError:
    raise _wrong(path, 'does not exist') from None
  except Exception as error:  # zip, zlib and NumPy raise whatever damaged bytes lead them to
    raise _wrong(path, f'cannot be read as an .npz file ({one_line(error)})') from error
  for name, other in OTHER_NAMES.items():
    if name not in content and other in content:
      content[name] = content.pop(other)
  if 'image' not in content:
    raise _wrong(path, f"needs an array 'image' (or 'arr_0'); it holds {', '.join(content)}")
  if unread := [name for name in content if name not in NAMES]:
    logging.warning(
      "config.dataset.path: '%s' also holds %s, left out; the arrays that are read are %s",
      path,
      ', '.join(unread),
      ', '.join(NAMES),
    )
  return content


def _image(
  content: Mapping[str, np.ndarray], prefix: str, path: str, num_levels: int
) -> np.ndarray:
  """The images, (N, H, W, C), once they are what `arrays` asks for."""
  image, what = content[prefix + 'image'], prefix + 'image'
  if image.dtype != np.uint8 or image.ndim not in (3, 4) or len(image) < 2 or not image.size:
    found = f'{image.dtype} {image.shape}'
    raise _wrong(path, f'{what} must be uint8 (N, H, W, C) with N at least 2, not {found}')
  image = image if image.ndim == 4 else image[..., None]
  if channels_first(image.shape[1:]):
    raise _wrong(
      path,
      f'{what} has shape {image.shape}, channels first: transpose it to (N, H, W, C); if it is '
      f'{image.shape[1]} high with {image.shape[3]} channels, exchange height and width',
    )
  if image.max() >= num_levels:
    raise _wrong(path, f'{what} has a value {image.max()}, but num_levels is {num_levels}')
  return image


def _label(content: Mapping[str, np.ndarray], prefix: str, path: str) -> np.ndarray:
  """The labels, (N,), once they are what `arrays` asks for; zeros where there are none."""
  count, what = len(content[prefix + 'image']), prefix + 'label'
  if ('label' in content) != (what in content):
    there, missing = ('label', what) if 'label' in content else (what, 'label')
    raise _wrong(path, f"has '{there}' but no '{missing}'")
  if what not in content:
    return np.zeros(count, np.int32)
  label = content[what]
  if label.dtype.kind not in 'iu' or label.shape != (count,) or label.min() < 0:
    found = f'{label.dtype} {label.shape}'
    raise _wrong(path, f'{what} must be {count} integers from 0, not {found}')
  return label


def _num_classes(labels: Sequence[np.ndarray], path: str) -> int:
  """One above the highest label: no more than there are examples."""
  count, examples = 1 + max(int(label.max()) for label in labels), sum(map(len, labels))
  if count > examples:
    raise _wrong(
      path,
      f'has labels up to {count - 1}, which are {count} classes, for {examples} examples: number '
      'the classes from 0, as np.unique(label, return_inverse=True)[1] does',
    )
  return count


def channels_first(shape: tuple[int, ...]) -> bool:
  """Whether (a, b, c) is rather (C, H, W): few by many by many, or fewer by a square."""
  first, second, last = shape
  return last > 4 and (first <= 4 or (first < last and second == last))


def _wrong(path: str, what: str) -> InputError:
  return InputError(f"config.dataset.path: '{path}' {what}")
