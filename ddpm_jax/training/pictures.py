"""The pictures that a run makes: a grid of samples now and then, the loss curve at the end."""

from __future__ import annotations

from collections.abc import Sequence

import einops
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax import data
from ddpm_jax.data.pictures import read_picture as read_picture
from ddpm_jax.files import whole
from ddpm_jax.training import metrics

COLUMNS, ROWS = 10, 4
SIDE = 64  # pixels: smaller images are enlarged to about this
QUICKEST = 0.04  # seconds that a frame is shown: viewers take delays below 0.02 for 0.1


def grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images (N, H, W, C) in rows of `columns`, with borders of one pixel, enlarged where small.

  The result has the channels of `drawable`.
  """
  images, times = drawable(images), max(1, SIDE // images.shape[1])
  framed = np.pad(images, ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0)))
  return einops.repeat(framed, '(n m) h w c -> (n h a) (m w b) c', m=columns, a=times, b=times)


def drawable(pixels: np.ndarray) -> np.ndarray:
  """(…, H, W, C) for the eye: 1, 3 or 4 channels as they are, others in gray, side by side."""
  if pixels.shape[-1] in data.pictures.MODES:
    return pixels
  return einops.rearrange(pixels, '... h w c -> ... h (c w) 1')


def write_png(path: epath.Path, pixels: np.ndarray) -> None:
  """Writes uint8 (H, W, C); see `drawable` for channels that are no color."""
  with whole(path) as part:
    as_image(pixels).save(part)


def write_gif(path: epath.Path, frames: Sequence[np.ndarray], seconds: float = 4.0) -> None:
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
  pixels = drawable(pixels)
  return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def loss_curve(workdir: epath.Path) -> epath.Path:
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
