"""Samples of a trained network, by one compiled program, and the file that they are kept in."""

from __future__ import annotations

import functools
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from ddpm_jax.condition import Cond, Spec, class_name
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.batching import even_size, map_batches, replicate
from ddpm_jax.files import whole
from ddpm_jax.keys import example_keys
from ddpm_jax.stores import is_store, reaching
from ddpm_jax.tasks.drawing import Guidance, Picture, warn_unstable
from ddpm_jax.tasks.run import Run

# What NumPy raises for a file that is no archive of arrays, or a torn one.
UNREADABLE = (
  OSError,
  ValueError,
  KeyError,
  EOFError,
  RecursionError,
  zipfile.BadZipFile,
  zlib.error,
)
COND = 'cond_'  # before the name of an entry of the condition, in a file

# What samples there are: the stem of the file that they are kept in, and words for them.
KINDS = {
  'free': ('samples', 'free samples'),
  'image_to_image': ('image_to_image', 'samples begun with a picture'),
  'inpainting': ('inpainting', 'samples drawn around a picture'),
}


class Samples(NamedTuple):
  """Pictures and where they come from.

  Attributes:
    images: uint8 (N, H, W, C); of pixels, 255 (x + 1) / 2 rounded.
    labels: int32 (N,), the classes asked for; None where there are no classes.
    cond: the other entries of the condition that was asked for, name -> (N, …).
    record: 'step' of the checkpoint, 'seed', 'evaluations' of the network for each sample, the
      'sampler', its settings, and the 'kind', a key of KINDS; of those with a picture 'init_image'
      and 'mask', each its path and the hash of the file, 'strength' and 'resample'.
  """

  images: np.ndarray
  labels: np.ndarray | None
  record: dict[str, Any]
  cond: Mapping[str, np.ndarray] = MappingProxyType({})

  @property
  def free(self) -> bool:
    """Whether they are of noise alone; files of earlier versions do not say, and count as free."""
    return self.record.get('kind', 'free') == 'free'

  def __str__(self) -> str:
    return f'{len(self.images)} {KINDS[self.record.get("kind", "free")][1]}'


def draw_samples(
  run: Run,
  num: int,
  cond: Cond,
  *,
  seed: int,
  batch_size: int,
  picture: Picture | None = None,
  guidance: Guidance | None = None,
  advance: Callable[[int], Any] = lambda rows: None,
) -> np.ndarray:
  """The samples number 0 … num - 1 of a seed as pictures: uint8 (num, H, W, C).

  Sample n depends on its condition and its key, fold_in(key(seed), n), alone: neither the batch
  size nor the number of devices changes it, to rounding.

  Args:
    run: with the sampler's settings in its config.
    num: how many.
    cond: of each, (num, …); {} for an unconditional network.
    seed: of the noise.
    batch_size: samples at a time, over all devices.
    picture: what they begin with or are drawn around.
    guidance: in place of the config's, its nulls of each sample, (num, …).
    advance: told how many more are done.
  """

  @jax.jit
  def draw(params: Any, frozen: Any, key: Array, batch: dict[str, Any]) -> Array:
    keys = example_keys(key, batch['number'])
    led = {} if guidance is None else {'guidance': guidance._replace(null=batch['null'])}
    samples = run.use.generate(params, frozen, batch['cond'], keys, **options, **led)
    return run.experiment.decode(frozen, samples)

  warn_unstable(run.experiment, 1.0 if picture is None else picture.strength)
  options = {} if picture is None else {'picture': picture}
  null = None if guidance is None else guidance.null
  every = {'number': np.arange(num, dtype=np.int32), 'cond': cond, 'null': null}
  size = even_size(num, batch_size)
  batches = (
    jax.tree.map(lambda column, start=start: column[start : start + size], every)
    for start in range(0, num, size)
  )
  params, frozen, key = replicate((run.trained, run.frozen, jax.random.key(seed)))
  return map_batches(functools.partial(draw, params, frozen, key), batches, size, advance)


def draw_path(run: Run, cond: Cond, num: int, **options: Any) -> np.ndarray:
  """The way from noise to the samples number 0 … num - 1 of the config's seed, as pictures: uint8
  (N + 1, num, H, W, C), at each time and last the sample.
  """

  @jax.jit
  def draw(params: Any, frozen: Any, cond: Cond, keys: Array) -> Array:
    _, path = run.use.generate(params, frozen, cond, keys, return_path=True, **options)
    return jax.lax.map(lambda z: run.experiment.decode(frozen, z), path)

  keys = example_keys(jax.random.key(run.config.seed), jnp.arange(num))
  some = jax.tree.map(lambda column: column[:num], cond)
  return np.asarray(draw(run.trained, run.frozen, some, keys))


def samples_of(
  images: np.ndarray, cond: Mapping[str, np.ndarray], spec: Spec, record: dict[str, Any]
) -> Samples:
  """Samples with the condition that was asked for, whose one class, if any, is their label."""
  name = class_name(spec)
  others = {key: np.asarray(values) for key, values in cond.items() if key != name}
  labels = None if name is None else np.asarray(cond[name], np.int32)
  return Samples(images, labels, record, others)


def cond_of(samples: Samples, spec: Spec) -> dict[str, np.ndarray]:
  """The whole condition that samples were drawn under."""
  name, labels = class_name(spec), samples.labels
  label = {} if name is None or labels is None else {name: labels}
  return {**samples.cond, **label}


def save_samples(path: epath.Path, samples: Samples) -> None:
  """Writes an .npz as ADM's: arr_0 the images, arr_1 the labels if any, and the record, in JSON.

  Each other entry of the condition is cond_NAME, (N, …).
  """
  arrays: dict[str, Any] = {'arr_0': samples.images}
  if samples.labels is not None:
    arrays['arr_1'] = samples.labels
  arrays |= {f'{COND}{name}': values for name, values in samples.cond.items()}
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
      cond = {key.removeprefix(COND): file[key] for key in file.files if key.startswith(COND)}
      return checked(Samples(file['arr_0'], labels, json.loads(str(file['record'])), cond))
  except FileNotFoundError:
    raise InputError(f'{path}: does not exist; draw samples by {command}') from None
  except UNREADABLE as error:
    raise InputError(f'{path}: cannot be read ({error}); draw it anew by {command}') from error


def opened(path: epath.Path) -> epath.Path | io.BytesIO:
  """A file as NumPy reads it: one in a store all at once."""
  if not is_store(path):
    return path
  with reaching(path):
    return io.BytesIO(path.read_bytes())


def checked(samples: Samples) -> Samples:
  """The samples as read; raises ValueError where they are none, or have no record of theirs."""
  images, labels, record, cond = samples
  if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
    raise ValueError(f'arr_0 is {images.dtype} {images.shape}, not uint8 (N, H, W, C)')
  if labels is not None and (labels.dtype.kind not in 'iu' or labels.shape != (len(images),)):
    raise ValueError(f'arr_1 is {labels.dtype} {labels.shape}, not {len(images)} integers')
  for name, values in cond.items():
    if values.shape[:1] != (len(images),):
      raise ValueError(
        f'{COND}{name} has shape {values.shape}, and there are {len(images)} samples'
      )
  kinds = {'step': int, 'seed': int, 'evaluations': int | None, 'sampler': dict}
  # Compared one by one: what a file has there may have no hash.
  if not isinstance(record, dict) or record.get('kind', 'free') not in tuple(KINDS):
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
