"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Gives a path beside `path` to write to, and moves that file to `path` when the block ends well.

  Whoever reads `path` finds what was there before or all of what was written, even where the disk
  is full or the process is killed. Missing folders are made. The path given has the same name, so
  that a library which chooses a format by the suffix chooses the same one.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # A folder of its own: nothing that lists the parent by a pattern finds the unfinished file.
  with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=path.parent) as folder:
    part = pathlib.Path(folder) / path.name
    yield part
    os.replace(part, path)
