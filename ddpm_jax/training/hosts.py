"""Several hosts that run one program: how they meet, what they must agree on, how they part."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from ddpm_jax import logs
from ddpm_jax.errors import Failed, InputError
from ddpm_jax.stores import is_store
from ddpm_jax.training.stopping import heard

T = TypeVar('T')

GRACE = 2.0  # seconds that the first host outlives an error of all, for the others to tell of it
# What the collectives of each platform say when a host has gone.
LOST = re.compile(r'gloo|nccl|collective|coordination service|connection (reset|closed)', re.I)


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: int = 300,
) -> None:
  """Meets the other hosts; comes before anything that asks for devices.

  What is not given is read from the cluster: Cloud TPU, GKE, Slurm or Open MPI.

  Args:
    coordinator: 'address:port' of host 0, at which they meet.
    num_processes: how many they are.
    process_id: which of them this is, from 0.
    timeout: seconds to wait for the others; afterwards the program ends with exit code 1. A host
      that is silent for as long ends them all.

  Raises:
    InputError: they are no cluster's, and not all are given; or they have unequal numbers of
      devices.
    Failed: the cluster does not answer, or they do not meet.
  """
  told = f'{num_processes or "the"} hosts at {coordinator or "the address of the cluster"}'
  try:
    with watched(told, timeout):
      jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout + 60,
        heartbeat_timeout_seconds=timeout,
      )
  except ValueError as error:
    raise InputError(
      f'--distributed: {error}; give --coordinator, --num_processes and --process_id'
    ) from error
  except RuntimeError as error:  # what may be otherwise at the next start
    raise Failed(f'--distributed: {" ".join(str(error).split())}') from error
  heard()
  counts = collections.Counter(device.process_index for device in jax.devices())
  if len(set(counts.values())) > 1:
    listed = ', '.join(f'host {host} has {counts[host]}' for host in sorted(counts))
    raise InputError(f'the hosts have unequal numbers of devices: {listed}')


@contextlib.contextmanager
def watched(told: str, timeout: int) -> Iterator[None]:
  """Ends the program where the others do not come in time, or a signal comes before them.

  The runtime waits outside of Python, where no handler of a signal is called and an end of its own
  would be a crash. So another thread watches, to which Python writes the number of a signal.
  """
  watching, telling = os.pipe()
  os.set_blocking(telling, False)
  before = signal.set_wakeup_fd(telling)
  watch = threading.Thread(target=keep_watch, args=(watching, told, timeout), daemon=True)
  watch.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.write(telling, b'\0')
    watch.join()
    os.close(watching)
    os.close(telling)


def keep_watch(watching: int, told: str, timeout: int) -> None:
  """Waits for the number of a signal, or 0 where all is well; ends the program otherwise."""
  if not select.select([watching], [], [], timeout)[0]:
    leave(
      1,
      f'--distributed: not all of {told} have come within {timeout} s; start each of them with the '
      'same --coordinator and --num_processes and a --process_id of its own',
    )
  if signum := os.read(watching, 1)[0]:
    name = signal.Signals(signum).name
    leave(128 + signum, f'ended by {name} while it waited for the other hosts')


def leave(exit_code: int, line: str) -> None:
  """Says why and ends the program at once: to end in order is to wait for the other hosts."""
  print(line, file=sys.stderr, flush=True)
  os._exit(exit_code)


def is_first() -> bool:
  """Whether this host is the one that writes and tells."""
  return jax.process_index() == 0


def say(line: str) -> None:
  """Prints a line once for all hosts; each notes it in its log."""
  (logs.say if is_first() else logs.note)(line)


def begin_log(workdir: str | os.PathLike[str]) -> None:
  """Opens the log of this host; it begins with where this host runs, and by which command."""
  path = logs.log_of(workdir, jax.process_index())
  logs.open_log(path)
  if is_store(workdir):
    say(f'{workdir}: each host keeps its log on a disk of its own, in {path.parent}')
  logs.note(
    f'host {jax.process_index()} of {jax.process_count()}, {socket.gethostname()}, process '
    f'{os.getpid()}: {shlex.join(sys.argv)}'
  )


def agree(folder: epath.Path, **facts: Any) -> None:
  """Lets hosts begin together that run one experiment by one code and keep it in one folder.

  Args:
    folder: of this host's checkpoints; host 0 makes it.
    **facts: what else must be the same, such as config=… and the number of examples.

  Raises:
    InputError: on every host, naming what differs and where.
  """
  if jax.process_count() == 1:
    return
  mine = flat({'checkpoints': str(folder), **facts})
  first, *others = everyone(mine)
  for host, other in enumerate(others, 1):
    differ = [name for name in first | other if first.get(name) != other.get(name)]
    if differ:
      name = differ[0]
      more = f', and in {", ".join(differ[1:4])}' if differ[1:] else ''
      raise InputError(
        f'host {host} differs from host 0 in {name}: {other.get(name)!r}, not '
        f'{first.get(name)!r}{more}; start every host with the same command and code'
      )
  blind = [host for host, sees in enumerate(everyone(is_shared(folder))) if not sees]
  if blind:
    raise InputError(
      f'host {blind[0]} does not see what host 0 writes to {folder}; give a --workdir, or a '
      'config.checkpoint.folder, that all hosts share'
    )


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Raises an InputError on every host where one of them has one."""
  problem = None
  try:
    yield
  except InputError as error:
    if jax.process_count() == 1:
      raise
    problem = str(error)
  found = {host: text for host, text in enumerate(everyone(problem)) if text}
  if found:
    host, text = next(iter(found.items()))
    raise InputError(text if len(found) == jax.process_count() else f'host {host}: {text}')


def from_first(look: Callable[[], T]) -> T:
  """What host 0 finds, on every host: what others see of a shared folder may be older.

  Args:
    look: its value must be as JSON carries it.

  Raises:
    InputError: on every host, where host 0 has one.
  """
  if jax.process_count() == 1:
    return look()
  found, problem = None, None
  if is_first():
    try:
      found = look()
    except InputError as error:
      problem = str(error)
  found, problem = everyone([found, problem])[0]
  if problem is not None:
    raise InputError(problem)
  return found


def flat(tree: Mapping[str, Any], path: str = '') -> dict[str, Any]:
  """{'config': {'seed': 0}} as {'config.seed': 0}."""
  found: dict[str, Any] = {}
  for name, value in tree.items():
    nested = flat(value, f'{path}{name}.') if isinstance(value, Mapping) else None
    found |= {f'{path}{name}': value} if nested is None else nested
  return found


def everyone(value: Any) -> list[Any]:
  """The value of each host, as JSON carries it."""
  text = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(text.size, np.int32)).ravel()
  rows = multihost_utils.process_allgather(np.pad(text, (0, sizes.max() - text.size)))
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def is_shared(folder: epath.Path) -> bool:
  """Whether this host sees what host 0 writes there."""
  mark = folder / f'.mark-{everyone(time.time_ns())[0]}'
  if is_first():
    if not is_store(folder):
      folder.mkdir(parents=True, exist_ok=True)
    mark.touch()
  multihost_utils.sync_global_devices('marked')
  sees = mark.exists()
  multihost_utils.sync_global_devices('seen')
  if is_first():
    mark.unlink()
  return sees


@contextlib.contextmanager
def lost_hosts() -> Iterator[None]:
  """Turns what a collective says when a host has gone into one line.

  Raises:
    Failed: another host has gone.
  """
  try:
    yield
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    if isinstance(error, InputError) or jax.process_count() == 1 or not LOST.search(str(error)):
      raise
    reason = ' '.join(str(error).split())[:160]
    raise Failed(
      f'host {jax.process_index()}: lost another host ({reason}); the same command on all hosts '
      'goes on from the newest checkpoint'
    ) from error


def part(exit_code: int) -> None:
  """Ends the program at once after an error: hosts that wait for the others to end would hang."""
  if exit_code in (1, 2) and jax.distributed.is_initialized():
    if is_first():
      time.sleep(GRACE)
    os._exit(exit_code)
