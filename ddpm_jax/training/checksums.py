"""Checksums of a checkpoint's files: made before it has its name, compared when it is read.

One flipped bit in an array changes a number, and no library says so. So each item of a checkpoint
(`state`, `record`) has a file beside its own that holds the checksum of each of them. It is
written before Orbax gives the checkpoint its name: a process killed before that leaves a folder
that is no checkpoint, with or without it.
"""

from __future__ import annotations

import concurrent.futures
import functools
import json
from collections.abc import Iterable
from typing import Any

import jax
import orbax.checkpoint as ocp
import xxhash
from etils import epath

MANIFEST = 'checksums.json'
ITEMS = ('state', 'record')
# What Orbax adds to an item after the checksums are made; nothing is read from it.
LATER = 'commit_success.txt'


class StateHandler(ocp.StandardCheckpointHandler):
  """Orbax's, with checksums: each host makes those of the arrays that it has written."""

  async def async_save(self, directory: epath.Path, *args: Any, **kwargs: Any) -> list[Any]:
    futures = await super().async_save(directory, *args, **kwargs) or []
    if jax.process_count() == 1:
      return futures  # `finalize` makes all of them
    return [ocp.future.ChainedFuture(futures, functools.partial(write_own, directory))]

  def finalize(self, directory: epath.Path) -> None:
    """Comes once all hosts have written, and on the first alone."""
    super().finalize(directory)
    write_manifest(directory)


class RecordHandler(ocp.JsonCheckpointHandler):
  """Orbax's, with checksums."""

  def finalize(self, directory: epath.Path) -> None:
    super().finalize(directory)
    write_manifest(directory)


def handlers() -> ocp.CheckpointHandlerRegistry:
  """What writes the items `state` and `record` with their checksums."""
  registry = ocp.DefaultCheckpointHandlerRegistry()
  for item, handler, arguments in (
    ('state', StateHandler(), (ocp.args.StandardSave, ocp.args.StandardRestore)),
    ('record', RecordHandler(), (ocp.args.JsonSave, ocp.args.JsonRestore)),
  ):
    for argument in arguments:
      registry.add(item, argument, handler)
  return registry


def write_own(directory: epath.Path) -> None:
  """Writes the checksums of what Orbax has this host alone write."""
  number = jax.process_index()
  own = [name for name in names(directory) if name.startswith(f'ocdbt.process_{number}/')]
  (directory / f'{MANIFEST}.{number}').write_text(json.dumps(checksums(directory, own)))


def write_manifest(directory: epath.Path) -> None:
  """Joins what the hosts have written, and adds the checksums of the files that they left."""
  found: dict[str, str] = {}
  for part in [path for path in directory.iterdir() if path.name.startswith(f'{MANIFEST}.')]:
    found |= json.loads(part.read_text())
    part.unlink()
  found |= checksums(directory, [name for name in names(directory) if name not in found])
  (directory / MANIFEST).write_text(json.dumps(found, indent=0, sort_keys=True))


def has_checksums(checkpoint: epath.Path) -> bool:
  """Whether a checkpoint was written with checksums."""
  return (checkpoint / 'state' / MANIFEST).exists()


def damage(checkpoint: epath.Path, share: slice = slice(None)) -> str | None:
  """What is wrong with a checkpoint's files; None where nothing is.

  Args:
    checkpoint: its folder.
    share: of the files, in order, those to look at: of four hosts each takes every fourth,
      slice(host, None, 4).
  """
  for item in [checkpoint / name for name in ITEMS]:
    manifest = item / MANIFEST
    if not manifest.exists():
      continue
    try:
      written = dict(json.loads(manifest.read_text()))
      found = checksums(item, sorted(written)[share])
    except (OSError, ValueError, TypeError, RecursionError) as error:
      return f'{item.name}: {error}'
    for name, text in found.items():
      if text != written[name]:
        return f'{item.name}/{name} is not as it was written: its checksum differs'
  return None


def checksums(directory: epath.Path, named: Iterable[str]) -> dict[str, str]:
  """The checksum of each file by its name in the directory."""
  named = list(named)
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    found = threads.map(lambda name: checksum(directory / name), named)
    return dict(zip(named, found, strict=True))


def checksum(path: epath.Path) -> str:
  """XXH3 of 128 bits: made against accidents, not against people."""
  digest = xxhash.xxh3_128()
  with path.open('rb') as file:
    while part := file.read(2**20):
      digest.update(part)
  return digest.hexdigest()


def names(directory: epath.Path, under: str = '') -> list[str]:
  """The files in a directory and below, as 'd/0a1b', but for the manifest and what comes later."""
  found: list[str] = []
  for path in sorted((directory / under).iterdir()):
    name = f'{under}/{path.name}' if under else path.name
    if path.is_dir():
      found += names(directory, name)
    elif not path.name.startswith(MANIFEST) and path.name != LATER:
      found.append(name)
  return found
