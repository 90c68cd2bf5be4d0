"""Which samples to show, and where in a grid."""

from __future__ import annotations

import numpy as np

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
