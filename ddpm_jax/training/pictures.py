"""The pictures of a run: a grid of samples now and then, the loss curve at the end."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure
from PIL import Image

from ddpm_jax import data
from ddpm_jax.keys import example_keys
from ddpm_jax.training import metrics
from ddpm_jax.training.denoising import bind_schedule
from ddpm_jax.training.experiment import Experiment, generate

COLUMNS, ROWS = 10, 4
SIDE = 64  # pixels: smaller images are enlarged to about this


def make_preview(experiment: Experiment) -> Callable[[Any], np.ndarray]:
  """Makes preview(params) -> a picture, uint8 (H, W, C).

  The same noise and labels each time: column by column the classes in turn.
  """
  count = COLUMNS * ROWS
  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(count))
  classes = experiment.dataset.num_classes
  cond = {} if classes is None else {'label': jnp.arange(count) % classes}

  @jax.jit
  def images(params: Any, cond: dict[str, Array], keys: Array) -> Array:
    bound = bind_schedule(experiment, params)
    return data.to_uint8(generate(bound, params['network'], cond, keys))

  return lambda params: grid(np.asarray(images(params, cond, keys)), COLUMNS)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
  """Images (N, H, W, C) in rows of `columns`, with borders of one pixel, enlarged where small."""
  times = max(1, SIDE // images.shape[1])
  framed = np.pad(images, ((0, -len(images) % columns), (0, 1), (0, 1), (0, 0)))
  return einops.repeat(framed, '(n m) h w c -> (n h a) (m w b) c', m=columns, a=times, b=times)


def write_png(path: pathlib.Path, pixels: np.ndarray) -> None:
  """Writes uint8 (H, W, C) with one channel or three."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(path)


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
  figure.savefig(workdir / 'loss.png', dpi=120)
  return workdir / 'loss.png'
