"""Files that are there whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import pathlib
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from ddpm_jax.errors import InputError
from ddpm_jax.stores import is_store, path_of, reaching, upload

ROOM = 'make room, and give the same command again'
PLACE = 'name a folder that can be written'
REACH = 'see that the bucket is there and yours to write, and give the same command again'
# What a disk answers that takes no more, and what then helps.
REFUSALS = {
  errno.ENOSPC: ROOM,
  errno.EDQUOT: ROOM,
  errno.EFBIG: ROOM,
  errno.EROFS: PLACE,
  errno.EACCES: PLACE,
  errno.EPERM: PLACE,
  errno.EREMOTEIO: REACH,
}
# As the system says it; the libraries that write checkpoints pass on its words alone.
FULL = re.compile('|'.join(os.strerror(code) for code, mend in REFUSALS.items() if mend == ROOM))


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a path on a disk to write to, and moves that file to `path` when the block ends well.

  Whoever reads `path` finds what was there before or all of what was written, even where the disk
  is full or the process is killed. Missing folders are made. The path given has the same name, so
  that a library which chooses a format by the suffix chooses the same one. To an object store the
  file is uploaded.

  Raises:
    OSError: the file cannot be written; its `filename` is `path`.
  """
  path = path_of(path, 'path')
  try:
    if not is_store(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: nothing that lists the parent by a pattern finds the unfinished file.
    beside = None if is_store(path) else path.parent
    with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=beside) as folder:
      part = pathlib.Path(folder) / path.name
      yield part
      move(part, path)
  except OSError as error:
    if error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def move(part: pathlib.Path, path: epath.Path) -> None:
  """Moves a whole file to its place, which has it all at once."""
  if not is_store(path):
    os.replace(part, path)
    return
  upload(path, part.read_bytes())


def refusal(error: OSError) -> str | None:
  """One line that says what a disk refused and the mend; None where it is another error."""
  mend = REFUSALS.get(error.errno or 0)
  return f'{error.filename or "a file"}: {error.strerror}; {mend}' if mend else None


def check_writable(folder: epath.Path, field: str, name: str = '') -> None:
  """Makes a folder; raises InputError naming the field where it, or a file so named, cannot be."""
  try:
    if is_store(folder):
      try_store(folder)
      return
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
      os.stat(folder / name)  # the system tells of a name that is too long
    with tempfile.TemporaryFile(dir=folder) as file:
      file.write(bytes(4096))  # a full disk still makes an empty file
      file.flush()
  except OSError as error:
    raise InputError(f'{field}: {folder} cannot be written ({error.strerror})') from error


@contextlib.contextmanager
def unmade(*folders: epath.Path) -> Iterator[None]:
  """Where the block raises an InputError, removes those of the folders that it has made."""
  missing = [
    part
    for folder in folders
    if not is_store(folder)
    for part in (folder, *folder.parents)
    if not part.exists()
  ]
  try:
    yield
  except InputError:
    for part in sorted(missing, reverse=True):  # what is inside comes first
      with contextlib.suppress(OSError):
        os.rmdir(part)  # epath's own raises ValueError for one that is not empty
    raise


def try_store(folder: epath.Path) -> None:
  """Writes and deletes an object."""
  mark = folder / f'.writable-{uuid.uuid4().hex}'
  upload(mark, b'')
  with reaching(mark):
    mark.unlink()


def write_json(path: str | os.PathLike[str], tree: Any) -> None:
  """Writes figures as JSON, whole or not at all.

  A number that is not finite is null: the format has no word for it.
  """
  with whole(path) as part:
    part.write_text(json.dumps(finite(tree), indent=2, allow_nan=False) + '\n')


def finite(tree: Any) -> Any:
  """A tree of dicts and lists with None for every number that is not finite."""
  if isinstance(tree, Mapping):
    return {key: finite(value) for key, value in tree.items()}
  if isinstance(tree, (list, tuple)):
    return [finite(value) for value in tree]
  return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def read_json(path: epath.Path) -> Any:
  """What a file of JSON holds.

  Raises:
    InputError: it is not there, or is torn; the message names it.
  """
  try:
    with reaching(path):
      return json.loads(path.read_bytes())
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(f'{path}: cannot be read ({error})') from error
