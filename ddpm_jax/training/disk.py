"""The disk: what is wrong with it is said before training where it can be, or else in one line."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

import jax
from etils import epath

from ddpm_jax.errors import Failed, InputError
from ddpm_jax.training import hosts
from ddpm_jax.training.experiment import Experiment, new_state

# As the system says it; the libraries that write checkpoints pass on its words alone.
FULL = re.compile('|'.join(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))))


def check_disk(workdir: pathlib.Path, checkpoints: epath.Path, experiment: Experiment) -> None:
  """Makes the folders, and raises InputError where one cannot be written or has too little space.

  Needed is what is still missing of `checkpoint.keep` checkpoints and the one that is written
  while they are there. An object store is not asked.
  """
  if hosts.is_first():
    check_writable(workdir, '--workdir')
  if '://' in str(checkpoints):
    return
  check_writable(pathlib.Path(checkpoints), 'config.checkpoint.folder')
  there = sum(path.name.isdigit() for path in checkpoints.iterdir())
  state = jax.eval_shape(lambda: new_state(experiment))
  size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
  needed = max(1, experiment.config.checkpoint.keep + 1 - there) * size
  free = shutil.disk_usage(checkpoints).free
  if free < needed:
    raise InputError(
      f'{checkpoints}: {free / 1e9:.2f} GB are free, and checkpoints need {needed / 1e9:.2f} GB; '
      'free some, or lower config.checkpoint.keep'
    )


def check_writable(folder: pathlib.Path, field: str) -> None:
  """Makes a folder; raises InputError naming the field where it cannot be written."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
      pass
  except OSError as error:
    raise InputError(f'{field}: {folder} cannot be written ({error.strerror})') from error


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
