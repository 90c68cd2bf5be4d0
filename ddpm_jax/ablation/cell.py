"""One cell of a sweep: it is trained in a folder of its own, then measured."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import math
from collections.abc import Collection, Iterator
from typing import Any

from etils import epath

from ddpm_jax.ablation.metrics import measure, place
from ddpm_jax.ablation.plan import RESULT, Cell
from ddpm_jax.config import Config
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.available import LEFT_OUT
from ddpm_jax.evaluation.pace import Bare, block_length
from ddpm_jax.files import read_json, write_json
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.train import make_job, train


def run_cell(cell: Cell, seconds: float | None = None, plugins: Collection[str] = ()) -> None:
  """Trains the cell, or goes on with it, and writes its result, unless that is there.

  Where another process has the cell, it waits for that.

  Args:
    cell: of a plan.
    seconds: to train for, where they are the budget.
    plugins: as `train`.

  Raises:
    InputError, Interrupted: as `train`.
  """
  with alone(cell.folder):
    if cell.done:
      return
    config = cell.config if seconds is None else paced(cell, seconds)
    train(config, cell.folder, plugins)
    metrics = measure(config, cell.folder)
    reasons = metrics.pop(LEFT_OUT, {})
    result = {'steps': config.training.num_steps, 'metrics': metrics, LEFT_OUT: reasons}
    write_json(cell.folder / RESULT, result)


def read_result(cell: Cell) -> dict[str, Any] | None:
  """{'steps', 'metrics', 'left_out'}, or None where the cell is not done.

  A figure that could not be had is nan, so that no mean over seeds passes over it in silence.

  Raises:
    InputError: the file is torn, or holds something else.
  """
  if not cell.done:
    return None
  path = cell.folder / RESULT
  found = read_json(path)
  try:
    metrics = found['metrics'].items()
    values = {name: math.nan if value is None else float(value) for name, value in metrics}
    reasons = {str(name): str(why) for name, why in found.get(LEFT_OUT, {}).items()}
    sorted(values, key=place)  # fails for the name of no figure
    return {'steps': int(found['steps']), 'metrics': values, LEFT_OUT: reasons}
  except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
    raise InputError(
      f'{path}: holds no figures of a cell; remove it, and the same command measures the cell anew'
    ) from error


@contextlib.contextmanager
def alone(folder: epath.Path) -> Iterator[None]:
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
  found = read_json(path)
  steps = found.get('steps') if isinstance(found, dict) else None
  if not isinstance(steps, int) or steps < 1:
    raise InputError(f'{path}: holds no number of steps; remove it, and it is measured anew')
  return dataclasses.replace(
    cell.config, training=dataclasses.replace(cell.config.training, num_steps=steps)
  )


def step_seconds(config: Config, measured: float) -> float:
  """How long a compiled step takes, from about `measured` seconds of them."""
  bare = Bare(make_job(build(config)))
  bare(2)  # compiles
  steps = block_length(bare(2) / 2, measured)
  return bare(steps) / steps
