"""The pictures of a run: a grid of samples now and then, the loss curve at the end."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax import data
from ddpm_jax.errors import InputError
from ddpm_jax.files import whole
from ddpm_jax.keys import example_keys
from ddpm_jax.training import metrics
from ddpm_jax.training.denoising import bind_schedule
from ddpm_jax.training.experiment import Experiment, generate

COLUMNS, ROWS = 10, 4
SIDE = 64  # pixels: smaller images are enlarged to about this
QUICKEST = 0.04  # seconds that a frame is shown: viewers take delays below 0.02 for 0.1


def make_preview(experiment: Experiment) -> Callable[[Any], np.ndarray]:
  """Makes preview(params) -> a picture, uint8 (H, W, C).

  The same noise and labels each time: column by column the classes in turn.
  """
  count = COLUMNS * ROWS
  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(count))
  classes = experiment.dataset.num_classes
  cond = {} if classes is None else {'label': jnp.arange(count) % classes}

  @jax.jit
  def images(params: Any, path: Any, times: Array, cond: dict[str, Array], keys: Array) -> Array:
    bound = dataclasses.replace(experiment, path=path, times=times)
    return data.to_uint8(generate(bound, params, cond, keys))

  def preview(params: Any) -> np.ndarray:
    bound = bind_schedule(experiment, params)
    return grid(np.asarray(images(params['network'], bound.path, bound.times, cond, keys)), COLUMNS)

  return preview


def grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images (N, H, W, C) in rows of `columns`, with borders of one pixel, enlarged where small."""
  times = max(1, SIDE // images.shape[1])
  framed = np.pad(images, ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0)))
  return einops.repeat(framed, '(n m) h w c -> (n h a) (m w b) c', m=columns, a=times, b=times)


def write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
  """Writes uint8 (H, W, C) with one channel or three."""
  with whole(path) as part:
    as_image(pixels).save(part)


def write_gif(path: pathlib.Path, frames: Sequence[np.ndarray], seconds: float = 4.0) -> None:
  """Writes uint8 frames (H, W, C) that take so long in all, and stay two seconds at the last.

  Where there are more than can be shown in that time, evenly spaced ones stand for all.
  """
  most = max(2, round(seconds / QUICKEST))
  chosen = np.linspace(0, len(frames) - 1, min(len(frames), most)).round().astype(int)
  first, *rest = (as_image(frames[number]) for number in chosen)
  delay = 10 * round(100 * seconds / len(chosen))  # ms: the format counts hundredths of a second
  durations = [delay] * (len(chosen) - 1) + [2000]
  with whole(path) as part:
    first.save(part, save_all=True, append_images=rest, duration=durations, loop=0)


def as_image(pixels: np.ndarray) -> Image.Image:
  """Pillow's image of uint8 (H, W, C)."""
  return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def read_picture(path: str, shape: tuple[int, int, int], field: str) -> np.ndarray:
  """A file's pixels, uint8 (H, W, C) in the color mode of C channels.

  Raises:
    InputError: it cannot be read or is of another size; the message names the field.
  """
  mode = {1: 'L', 3: 'RGB', 4: 'RGBA'}[shape[-1]]
  try:
    with Image.open(path) as image:
      pixels = np.asarray(image.convert(mode)).reshape(image.height, image.width, shape[-1])
  except (OSError, ValueError) as error:
    raise InputError(f'{field}: {path} cannot be read as a picture ({error})') from error
  if pixels.shape != shape:
    size = 'x'.join(map(str, pixels.shape[:2]))
    raise InputError(f'{field}: {path} has {size} pixels; the samples have {shape[0]}x{shape[1]}')
  return pixels


def loss_curve(workdir: pathlib.Path) -> pathlib.Path:
  """Draws the losses in metrics.jsonl to loss.png; returns its path."""
  rows = metrics.read(workdir / 'metrics.jsonl')
  figure = Figure(figsize=(6, 4), layout='constrained')
  axes = figure.subplots()
  for name, label in {
    'loss': 'training',
    'heldout/eps_mse': 'held out, averaged parameters, even in log-SNR',
    'heldout/loss': 'held out, averaged parameters',
  }.items():
    points = [(row['step'], row[name]) for row in rows if name in row]
    if points:
      axes.plot(*zip(*points, strict=True), label=label)
  axes.set(xlabel='step', ylabel='loss', yscale='log')
  axes.legend()
  with whole(workdir / 'loss.png') as part:
    figure.savefig(part, dpi=120)
  return workdir / 'loss.png'
