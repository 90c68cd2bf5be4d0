"""A bar for work that takes a while."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ddpm_jax.training.hosts import is_first


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
  """Shows a bar of `total` items, on the first host; yields advance(items), which may go beyond."""
  columns = (TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn())
  with Progress(*columns, TimeRemainingColumn(), disable=not is_first()) as bar:
    task = bar.add_task(description, total=total)
    done = 0

    def advance(items: int) -> None:
      nonlocal done
      done += items
      bar.update(task, completed=done, total=max(total, done))

    yield advance
