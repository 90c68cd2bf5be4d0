"""Whom a run's folder belongs to: one experiment, and one process at a time.

A folder is an experiment's once there is something to lose in it: a line of metrics, a picture or a
whole checkpoint. What a start leaves that was killed before that is nobody's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import filelock
from etils import epath

from ddpm_jax.config import differing, plain_group
from ddpm_jax.errors import InputError
from ddpm_jax.stores import is_store, size_of
from ddpm_jax.tasks.identity import Identity, other_code, refuse_other
from ddpm_jax.tasks.run import read_record
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import folder_of, whole_steps
from ddpm_jax.training.copies import CONFIG, METRICS, beside

LOCK = '.lock'


@contextlib.contextmanager
def alone(workdir: epath.Path, checkpoints: epath.Path) -> Iterator[None]:
  """Keeps a run's folders, which must be there, from other processes that would train in them.

  The first host holds the locks. They end with its process, however that ends. Object stores have
  no locks.

  Raises:
    InputError: on every host, where another process has one of them.
  """
  folders = [folder for folder in (workdir, beside(workdir, checkpoints)) if folder]
  with contextlib.ExitStack() as held:
    with hosts.together():
      for folder in folders if hosts.is_first() else ():
        if not is_store(folder):
          held.enter_context(locked(folder))
    yield


@contextlib.contextmanager
def locked(folder: epath.Path) -> Iterator[None]:
  """Holds the lock of one folder; where its file system has none, says so and goes on."""
  lock = filelock.FileLock(folder / LOCK, fallback_to_soft=False, thread_local=False)
  try:
    lock.acquire(blocking=False)
  except filelock.Timeout:
    raise InputError(
      f'{folder}: another process is training in this folder; wait until it has ended, or give '
      'another --workdir'
    ) from None
  except (OSError, NotImplementedError) as error:
    hosts.say(
      f'{folder}: cannot be locked ({error}); see to it that no other process trains in this folder'
    )
  try:
    yield
  finally:
    lock.release()


def refuse_foreign(workdir: epath.Path, identity: Identity) -> None:
  """Lets a run into its own folders or those that are nobody's.

  Raises:
    InputError: the folder holds another experiment, one of other code, or files that no config.json
      explains; or the checkpoints are of another.
  """
  refuse_files(workdir, identity)
  place = identity.config['checkpoint']['folder']
  folder = folder_of(workdir, place)
  if steps := whole_steps(folder):
    name = 'config.checkpoint.folder' if place else '--workdir'
    refuse_other(folder, steps[-1], identity, f'give another {name}', code=True)


def refuse_files(workdir: epath.Path, identity: Identity) -> None:
  """Raises InputError where the workdir is not this experiment's."""
  recorded = read_record(workdir) if (workdir / CONFIG).exists() else None
  found = belongings(workdir, recorded)
  if not found:
    return
  if recorded is None:
    raise InputError(
      f'{workdir}: holds {", ".join(found)} but no config.json to say of what; '
      'give another --workdir'
    )
  differ = differing(recorded['config'], identity.config)
  if differ:
    names = ', '.join(f'config.{name}' for name in differ)
    raise InputError(
      f'{workdir}: holds another experiment, which differs in {names}; give another --workdir'
    )
  if changed := other_code(recorded['provenance'].get('plugins'), identity.fixed):
    raise InputError(
      f'{workdir}: holds a run of other code: {", ".join(changed)} has changed since; '
      'restore it, or give another --workdir'
    )


def belongings(workdir: epath.Path, recorded: Mapping[str, Any] | None) -> list[str]:
  """What there is to lose in a run's folder, and where its record keeps the checkpoints."""
  samples = workdir / 'samples'
  folder = plain_group(recorded['config'], 'checkpoint').folder if recorded else None
  checkpoints = folder_of(workdir, folder)
  present = {
    METRICS: size_of(workdir / METRICS) > 0,
    'checkpoints': bool(whole_steps(checkpoints)),
    'samples': samples.is_dir() and any(samples.iterdir()),
  }
  return [name for name, there in present.items() if there]
