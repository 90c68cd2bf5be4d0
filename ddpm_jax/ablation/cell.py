"""One cell of a sweep: it is trained in a folder of its own, then measured."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from ddpm_jax.ablation.metrics import measure
from ddpm_jax.ablation.plan import RESULT, Cell, write_json
from ddpm_jax.config import Config
from ddpm_jax.training import build, train
from ddpm_jax.training.benchmark import Bare, block_length
from ddpm_jax.training.parallel import PARALLEL


def run_cell(cell: Cell, seconds: float | None = None) -> None:
  """Trains the cell, or goes on with it, and writes its result, unless that is there.

  Where another process has the cell, it waits for that.

  Args:
    cell: of a plan.
    seconds: to train for, where they are the budget.

  Raises:
    InputError, Interrupted: as `train`.
  """
  with alone(cell.folder):
    if cell.done:
      return
    config = cell.config if seconds is None else paced(cell, seconds)
    train(config, cell.folder)
    result = {'steps': config.training.num_steps, 'metrics': measure(config, cell.folder)}
    write_json(cell.folder / RESULT, result)


def read_result(cell: Cell) -> dict[str, Any] | None:
  """{'steps', 'metrics'}, or None where the cell is not done."""
  return json.loads((cell.folder / RESULT).read_text()) if cell.done else None


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
  """Waits for any other process in the folder; a process's end, however it comes, sets it free."""
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def paced(cell: Cell, seconds: float) -> Config:
  """The cell's config with as many steps as it takes in that time here and now.

  The number is found once, at the cell's own pace when it begins, and kept in pace.json: the
  learning rate's course needs to know it, and a run that is resumed keeps it.
  """
  path = cell.folder / 'pace.json'
  if not path.exists():
    write_json(
      path, {'steps': max(1, round(seconds / step_seconds(cell.config, min(3.0, seconds))))}
    )
  steps = json.loads(path.read_text())['steps']
  return dataclasses.replace(
    cell.config, training=dataclasses.replace(cell.config.training, num_steps=steps)
  )


def step_seconds(config: Config, measured: float) -> float:
  """How long a compiled step takes, from about `measured` seconds of them."""
  bare = Bare(build(config), PARALLEL[config.parallel.mode](jax.devices()))
  bare(2)  # compiles
  steps = block_length(bare(2) / 2, measured)
  return bare(steps) / steps
