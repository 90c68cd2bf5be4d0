"""Samples of a trained network, by one compiled program, and the file that they are kept in."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from ddpm_jax.data import to_uint8
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.batching import even_size, map_batches, replicate
from ddpm_jax.files import whole
from ddpm_jax.keys import example_keys
from ddpm_jax.stores import is_store, reaching
from ddpm_jax.training.denoising import Picture, warn_unstable
from ddpm_jax.training.experiment import Experiment, generate

# What samples there are: the stem of the file that they are kept in, and words for them.
KINDS = {
  'free': ('samples', 'free samples'),
  'image_to_image': ('image_to_image', 'samples begun with a picture'),
  'inpainting': ('inpainting', 'samples drawn around a picture'),
}


class Samples(NamedTuple):
  """Pictures and where they come from.

  Attributes:
    images: uint8 (N, H, W, C), 255 (x + 1) / 2 rounded.
    labels: int32 (N,), the classes asked for; None where there are no classes.
    record: 'step' of the checkpoint, 'seed', 'evaluations' of the network for each sample, the
      'sampler', its settings, and the 'kind', a key of KINDS; of those with a picture 'init_image'
      and 'mask', each its path and the hash of the file, 'strength' and 'resample'.
  """

  images: np.ndarray
  labels: np.ndarray | None
  record: dict[str, Any]

  @property
  def free(self) -> bool:
    """Whether they are of noise alone; files of earlier versions do not say, and count as free."""
    return self.record.get('kind', 'free') == 'free'

  def __str__(self) -> str:
    return f'{len(self.images)} {KINDS[self.record.get("kind", "free")][1]}'


def draw_samples(
  experiment: Experiment,
  params: Any,
  num: int,
  labels: np.ndarray | None,
  *,
  seed: int,
  batch_size: int,
  picture: Picture | None = None,
  advance: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
  """The samples number 0 … num - 1 of a seed: uint8 (num, H, W, C).

  Sample n depends on its label and its key, fold_in(key(seed), n), alone: neither the batch size
  nor the number of devices changes it, to rounding.

  Args:
    experiment: with the sampler's settings in its config.
    params: of the network.
    num: how many.
    labels: (num,), or None for an unconditional network.
    seed: of the noise.
    batch_size: samples at a time, over all devices.
    picture: what they begin with or are drawn around.
    advance: told how many more are done.
  """

  @jax.jit
  def draw(params: Any, key: Array, batch: dict[str, Array]) -> Array:
    keys = example_keys(key, batch['number'])
    cond = {name: column for name, column in batch.items() if name == 'label'}
    return to_uint8(generate(experiment, params, cond, keys, **options))

  warn_unstable(experiment, 1.0 if picture is None else picture.strength)
  options = {} if picture is None else {'picture': picture}
  columns = {'number': np.arange(num, dtype=np.int32)}
  if labels is not None:
    columns['label'] = labels
  size = even_size(num, batch_size)
  batches = (
    {name: column[start : start + size] for name, column in columns.items()}
    for start in range(0, num, size)
  )
  params, key = replicate((params, jax.random.key(seed)))
  return map_batches(functools.partial(draw, params, key), batches, size, advance)


def draw_path(
  experiment: Experiment, params: Any, labels: np.ndarray | None, num: int, **options: Any
) -> np.ndarray:
  """The way from noise to the samples number 0 … num - 1 of the config's seed: uint8 (N + 1, num,
  H, W, C), at each time and last the sample.
  """

  @jax.jit
  def draw(params: Any, cond: dict[str, Array], keys: Array) -> Array:
    return to_uint8(generate(experiment, params, cond, keys, return_path=True, **options)[1])

  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(num))
  cond = {} if labels is None else {'label': labels[:num]}
  return np.asarray(draw(params, cond, keys))


def save_samples(path: epath.Path, samples: Samples) -> None:
  """Writes an .npz as ADM's: arr_0 the images, arr_1 the labels if any; and the record, in JSON."""
  arrays = {'arr_0': samples.images}
  if samples.labels is not None:
    arrays['arr_1'] = samples.labels
  with whole(path) as part:
    np.savez(part, **arrays, record=json.dumps(samples.record))


def load_samples(path: epath.Path, workdir: epath.Path | None = None) -> Samples:
  """Reads what `save_samples` wrote; `workdir` is the run's, unset: the file's folder.

  Raises:
    InputError: it isn't there or cannot be read; the message has the command that makes it.
  """
  command = f'python -m experiments.sample --workdir={workdir or path.parent}'
  try:
    with np.load(opened(path), allow_pickle=False) as file:
      labels = file.get('arr_1', None)
      return checked(Samples(file['arr_0'], labels, json.loads(str(file['record']))))
  except FileNotFoundError:
    raise InputError(f'{path}: does not exist; draw samples by {command}') from None
  except (OSError, ValueError, KeyError, EOFError, RecursionError, zipfile.BadZipFile) as error:
    raise InputError(f'{path}: cannot be read ({error}); draw it anew by {command}') from error


def opened(path: epath.Path) -> epath.Path | io.BytesIO:
  """A file as NumPy reads it: one in a store all at once."""
  if not is_store(path):
    return path
  with reaching(path):
    return io.BytesIO(path.read_bytes())


def checked(samples: Samples) -> Samples:
  """The samples as read; raises ValueError where they are none, or have no record of theirs."""
  images, labels, record = samples
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise ValueError(f'arr_0 is {images.dtype} {images.shape}, not uint8 (N, H, W, C)')
  if labels is not None and (labels.dtype.kind not in 'iu' or labels.shape != (len(images),)):
    raise ValueError(f'arr_1 is {labels.dtype} {labels.shape}, not {len(images)} integers')
  kinds = {'step': int, 'seed': int, 'evaluations': int | None, 'sampler': dict}
  if not isinstance(record, dict) or record.get('kind', 'free') not in KINDS:
    raise ValueError('its record is of something else')
  for name, kind in kinds.items():
    if name not in record or not isinstance(record[name], kind):
      raise ValueError(f"its record has no '{name}'")
  # Earlier versions kept the sampler's own settings apart from the others.
  sampler = {**record['sampler'], **record['sampler'].get('arguments', {})}
  sampler = {name: value for name, value in sampler.items() if name not in ('arguments', 'group')}
  if not isinstance(sampler.get('guidance'), int | float):
    raise ValueError("its record has no 'guidance'")
  return samples._replace(record=record | {'sampler': sampler})
