"""The disk: what is wrong with it is said before training where it can be, or else in one line."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from ddpm_jax.errors import Failed, InputError
from ddpm_jax.files import FULL, check_writable, unmade
from ddpm_jax.stores import is_store
from ddpm_jax.training import hosts


def check_disk(workdir: epath.Path, checkpoints: epath.Path, state: Any, keep: int) -> None:
  """Makes the folders, or raises InputError where one cannot be written or has too little space.

  Needed is what is still missing of `keep` checkpoints of the state (shapes are enough) and the one
  that is written while they are there. An object store is not asked for space.
  """
  with unmade(workdir, checkpoints):
    if hosts.is_first():
      check_writable(workdir, '--workdir')
    check_writable(checkpoints, 'config.checkpoint.folder')
    if not is_store(checkpoints):
      check_space(checkpoints, state, keep)


def check_space(checkpoints: epath.Path, state: Any, keep: int) -> None:
  """Raises InputError where the disk has too little space for what `check_disk` counts."""
  there = sum(path.name.isdigit() for path in checkpoints.iterdir())
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  needed = max(1, keep + 1 - there) * size
  free = shutil.disk_usage(checkpoints).free
  if free < needed:
    raise InputError(
      f'{checkpoints}: {free / 1e9:.2f} GB are free, and checkpoints need {needed / 1e9:.2f} GB; '
      'free some, or lower config.checkpoint.keep'
    )


@contextlib.contextmanager
def full_disk(workdir: str | os.PathLike[str]) -> Iterator[None]:
  """Raises Failed for what a full disk makes of a write, here or in a library."""
  try:
    yield
  except (OSError, ValueError) as error:
    if isinstance(error, InputError) or not FULL.search(str(error)):
      raise
    raise Failed(
      f'{workdir}: the disk is full or a quota reached; its checkpoints are whole: make room, and '
      'the same command goes on from the newest'
    ) from error
