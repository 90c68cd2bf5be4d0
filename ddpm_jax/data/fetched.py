"""Data in an object store: a copy on this host's disk, made before training begins.

array_record, NumPy and Pillow read files of a disk alone, and pictures by the thousand come faster
from one. So the hosts of a pod need no step of preparation of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import filelock
import fsspec
from absl import logging
from etils import epath

from ddpm_jax.errors import InputError, one_line
from ddpm_jax.stores import is_store, path_of, reaching

TOGETHER = 100  # objects that are asked for at once
SAID = 10.0  # seconds between two lines on how far it is


def on_this_host(path: str | os.PathLike[str], field: str) -> epath.Path:
  """The file or folder that was named in `field`, or the copy of one in a store.

  It is made once for all processes of the host, and again once the objects are others, in
  $XDG_CACHE_HOME/ddpm_jax/data (by default in ~/.cache).

  Raises:
    InputError: nothing serves the path, it is not there, or it cannot be copied.
  """
  source = path_of(path, field)
  if not is_store(source):
    return source
  try:
    with reaching(source):
      listed = objects(source)
      if not listed:
        raise InputError(f"{field}: '{source}' does not exist")
      return copied(source, listed, field)
  except OSError as error:
    raise InputError(f"{field}: '{source}' cannot be copied ({one_line(error)})") from error


def objects(source: epath.Path) -> dict[str, Mapping[str, Any]]:
  """An object, or those in a folder and below: name -> what the store says of it."""
  found = fsspec.filesystem('gcs').find(os.fspath(source), detail=True)
  return {name: facts for name, facts in found.items() if not name.endswith('/')}


def copied(source: epath.Path, listed: Mapping[str, Mapping[str, Any]], field: str) -> epath.Path:
  """The copy, which is made where there is none of these very objects."""
  facts = [[name, listed[name].get('size'), listed[name].get('etag')] for name in sorted(listed)]
  digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  folder = pathlib.Path(home, 'ddpm_jax', 'data', digest)
  folder.mkdir(parents=True, exist_ok=True)
  target = folder / source.name
  with filelock.FileLock(folder / '.lock'):
    if not target.exists():
      with tempfile.TemporaryDirectory(prefix='.unfinished-', dir=folder) as part:
        fetch(source, listed, pathlib.Path(part, source.name), field)
        os.replace(pathlib.Path(part, source.name), target)
  return path_of(target, field)


def fetch(
  source: epath.Path, listed: Mapping[str, Mapping[str, Any]], target: pathlib.Path, field: str
) -> None:
  """Copies the objects, and tells how far it is."""
  files = fsspec.filesystem('gcs')
  names, prefix = sorted(listed), os.fspath(source).partition('://')[2]
  size = sum(int(facts.get('size') or 0) for facts in listed.values())
  logging.warning('%s: copying %d files, %.2f GB, to %s', source, len(names), size / 1e9, target)
  begun = said = time.monotonic()
  for start in range(0, len(names), TOGETHER):
    part = names[start : start + TOGETHER]
    files.get(part, [os.fspath(file_of(name, prefix, target, field)) for name in part])
    if time.monotonic() - said > SAID:
      said = time.monotonic()
      logging.warning('%s: %d of %d files copied', source, start + len(part), len(names))
  logging.warning('%s: copied in %.0f s', source, time.monotonic() - begun)


def file_of(name: str, prefix: str, target: pathlib.Path, field: str) -> pathlib.Path:
  """Where an object's copy goes; its folder is made."""
  below = name.removeprefix(prefix).lstrip('/')
  if '..' in below.split('/'):
    raise InputError(f"{field}: the object '{name}' has a name that is no file's")
  file = target / below if below else target
  file.parent.mkdir(parents=True, exist_ok=True)
  return file
