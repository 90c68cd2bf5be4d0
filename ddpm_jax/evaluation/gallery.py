"""Which samples to show, and where in a grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.data.dataset import Batch
from ddpm_jax.keys import example_keys
from ddpm_jax.tasks.run import Run

ROWS = 10
COLUMNS = 10


def by_class(images: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
  """The images of a grid with COLUMNS columns, row after row.

  With labels a row is one of the first ROWS classes that have images enough to fill it; without, or
  where no class has, images come in order.
  """
  classes = [] if labels is None else np.unique(labels)
  rows = [images[labels == label][:COLUMNS] for label in classes]
  rows = [row for row in rows if len(row) == COLUMNS][:ROWS]
  return np.concatenate(rows) if rows else images[: ROWS * COLUMNS]


def pairs(run: Run, batch: Batch, columns: int) -> np.ndarray:
  """Rows of images, each above the row of their reconstructions: uint8 (2 N, H, W, C).

  Args:
    run: of a task that reconstructs.
    batch: N examples, a multiple of `columns`.
    columns: of the grid to be.
  """
  x, reconstruct = jnp.asarray(batch['x']), run.use.reconstruct
  if reconstruct is None:
    raise ValueError('the task reconstructs nothing')
  keys = example_keys(jax.random.key(run.config.seed), jnp.arange(len(x)))
  encoded = run.experiment.encode(run.frozen, x, keys)
  again = reconstruct(run.trained, run.frozen, x, batch['cond'])
  both = np.stack([np.asarray(run.experiment.decode(run.frozen, z)) for z in (encoded, again)])
  rows = both.reshape(2, -1, columns, *both.shape[2:]).swapaxes(0, 1)
  return rows.reshape(-1, *both.shape[2:])
