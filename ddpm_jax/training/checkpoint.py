"""Checkpoints: Orbax behind one small module.

A checkpoint is a folder named by its step that holds the TrainState and a JSON record. It is
written in the background and appears under its name only when whole, so a process killed while it
saves leaves the one before it in place. Its files have checksums, which are compared when it is
read.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from orbax.checkpoint import checkpoint_managers

from ddpm_jax.errors import InputError
from ddpm_jax.stores import is_store, path_of, reaching
from ddpm_jax.training import checksums, hosts

Tree = TypeVar('Tree')

# What a thread of Orbax logs as an exception it also raises, at the next save or wait.
logging.getLogger('absl').addFilter(
  lambda record: not (record.exc_info and 'orbax' in record.pathname)
)


def folder_of(workdir: epath.PathLike, folder: str | None) -> epath.Path:
  """Where a run keeps its checkpoints: `config.checkpoint.folder`, or in its own folder."""
  if folder:
    return path_of(folder, 'config.checkpoint.folder')
  return path_of(workdir, 'workdir') / 'checkpoints'


def whole_steps(folder: epath.Path) -> list[int]:
  """The steps of the whole checkpoints in a folder, which need not be there.

  Raises:
    InputError: it cannot be read.
  """
  names = ocp.path.step.standard_name_format()
  try:
    with reaching(folder):
      return sorted(found.step for found in names.find_all(folder)) if folder.exists() else []
  except OSError as error:
    raise InputError(f'{folder}: cannot be read ({error.strerror})') from error


def record_of(folder: epath.Path, step: int) -> Any:
  """The JSON record of a checkpoint, without Orbax, which asks for all hosts; None if damaged."""
  try:
    return json.loads((folder / str(step) / 'record' / 'metadata').read_bytes())
  except (OSError, ValueError, RecursionError):
    return None


class Manager(ocp.CheckpointManager):
  """Orbax's, which leaves it to the loop to ask whether the run is to end; see `stopping`."""

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """The checkpoints in one folder; a context manager that waits for the last save on leaving."""

  def __init__(self, folder: epath.PathLike, keep: int | None = None):
    """Opens a folder: for writing where `keep`, the number of newest ones to keep, is given."""
    folder = path_of(folder, 'folder')
    self.folder = folder if is_store(folder) else folder.absolute()
    self._writes = keep is not None
    if self._writes and not is_store(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
    # Host 0 lists the folder, and tells the others: theirs may be of an earlier moment.
    told = {'single_host_load_and_broadcast': True}
    with _quiet():
      self._options = (
        ocp.CheckpointManagerOptions(
          preservation_policy=checkpoint_managers.LatestN(keep),
          enable_async_checkpointing=True,
          **told,
        )
        if self._writes
        else ocp.CheckpointManagerOptions(read_only=True, **told)
      )
      self._manager = Manager(
        self.folder,
        options=self._options,
        handler_registry=checksums.handlers() if self._writes else None,
      )

  def __enter__(self) -> Checkpoints:
    return self

  def __exit__(self, *exception: object) -> None:
    with _quiet():
      self._manager.close()

  def steps(self) -> list[int]:
    """The steps of the whole checkpoints, in order."""
    return sorted(self._manager.all_steps())

  def latest_step(self) -> int | None:
    """The newest step, or None."""
    return self._manager.latest_step()

  def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
    """Starts to save `state` and the JSON `record`; the state may be donated at once."""
    items = ocp.args.Composite(state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record))
    with _quiet():
      self._manager.save(step, args=items, force=True)

  def wait(self) -> None:
    """Waits until what was saved is on the disk."""
    with _quiet():
      self._manager.wait_until_finished()

  def wait_beside(self) -> None:
    """The same for a thread beside the one that saves: it changes nothing that they share."""
    self._manager.wait_until_finished()

  def restore(self, step: int, like: Tree) -> tuple[Tree, dict[str, Any]]:
    """The state and the record at `step`; `like` gives shapes, dtypes and shardings.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(_abstract(like)), record=ocp.args.JsonRestore()
    )
    restored = self._read(step, items)
    return restored['state'], restored['record']

  def restore_part(self, step: int, like: Tree) -> Tree:
    """Only the branches of the state that `like`, a dict, names.

    Raises:
      InputError: the checkpoint cannot be read.
    """
    like = _abstract(like)
    arguments = ocp.args.PyTreeRestore(
      like,
      restore_args=ocp.checkpoint_utils.construct_restore_args(like),
      partial_restore=True,
    )
    return self._read(step, ocp.args.Composite(state=arguments))['state']

  def _read(self, step: int, items: ocp.args.Composite) -> Any:
    self._check(step)
    with _quiet(collect=True):
      try:
        return self._manager.restore(step, args=items)
      # Orbax has no error of its own for a damaged file: anything from OSError to KeyError comes.
      except Exception as error:
        reason = re.split(r'\n|\. ', str(error))[0][:160]
    raise self.damaged(step, reason)

  def _check(self, step: int) -> None:
    """Compares every file's checksum, whatever part is to be read; each host takes its share."""
    folder = self.folder / str(step)
    if not checksums.has_checksums(folder):
      absl_logging.warning('%s: has no checksums, so damage to its arrays would go unseen', folder)
    with hosts.together():
      share = slice(jax.process_index(), None, jax.process_count())
      if reason := checksums.damage(folder, share):
        raise self.damaged(step, reason)

  def damaged(self, step: int, reason: str) -> InputError:
    """The error for a checkpoint that cannot be read, with the mend."""
    earlier = [other for other in self.steps() if other < step]
    onward = f'go on from step {earlier[-1]}' if earlier else 'start anew'
    return InputError(
      f'{self.folder / str(step)}: cannot be read ({reason}); if it is damaged, delete that folder '
      f'to {onward}'
    )


def _abstract(tree: Tree) -> Tree:
  """Shapes and dtypes; what has no sharding goes to one device, wherever it was saved from."""
  one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or one),
    tree,
  )


@contextlib.contextmanager
def _quiet(collect: bool = False) -> Iterator[None]:
  """Keeps Orbax's warnings off the screen, and the traces of what it left unfinished.

  Those come when it is collected as garbage, which `collect` does here and now.
  """
  loggers = [logging.getLogger(name) for name in ('absl', 'asyncio')]
  levels = [logger.level for logger in loggers]
  hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
  for logger in loggers:
    logger.setLevel(logging.CRITICAL)
  try:
    yield
  finally:
    if collect:
      gc.collect()
    sys.unraisablehook = hook
    for logger, level in zip(loggers, levels, strict=True):
      logger.setLevel(level)
