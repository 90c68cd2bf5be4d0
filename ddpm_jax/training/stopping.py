"""How a run hears that it is to end: Ctrl-C, or SIGTERM as schedulers and preemptions send it.

Several hosts must end at one step. JAX's service sees to that: each host asks it before each step,
with a number that goes up by one, and where a host has had a SIGTERM the service finds the next
number that no host has come to. It keeps only the last number that it was asked with, and waits for
one number exactly: so there is one count in a process, and nothing but `heard` asks.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

NOTICE = 5.0  # seconds that JAX's service has, which looks once a second, to find a step for all
_numbers = itertools.count()


def heard() -> bool:
  """Whether all hosts are to end now; every host asks alike.

  The first time is on joining: the service forgets a SIGTERM before it has any number.
  """
  return multihost_utils.reached_preemption_sync_point(next(_numbers))


class Asked:
  """Whether the run is asked to end: called once before each step, by every host alike.

  Attributes:
    signum: the signal that did it.
  """

  def __init__(self, hears: Callable[[], bool], tell: Callable[[], None]):
    self._hears, self._tell = hears, tell
    self._told = False
    self.signum = signal.SIGTERM

  def __call__(self) -> bool:
    return self._hears()

  def end(self) -> None:
    """Asks all hosts to end, from one that can make only a few more calls."""
    if not self._told:
      self._told = True
      self._tell()


@contextlib.contextmanager
def stopping() -> Iterator[Asked]:
  """Hears SIGINT and SIGTERM; after a SIGINT another one acts at once, as it always did.

  With several hosts it is enough that one hears a SIGTERM: JAX's service finds the next step that
  all of them will reach, and all are asked to end there.
  """
  with several_hosts() if jax.process_count() > 1 else one_host() as asked:
    yield asked


@contextlib.contextmanager
def one_host() -> Iterator[Asked]:
  """Handlers of our own."""
  received: list[int] = []

  def handle(number: int, frame: Any) -> None:
    del frame
    received.append(number)
    asked.signum = signal.Signals(number)
    if number == signal.SIGINT:
      restore()  # not after SIGTERM, which schedulers send twice: the run is still to be saved

  asked = Asked(lambda: bool(received), lambda: received.append(signal.SIGTERM))
  with handling(handle, signal.SIGINT, signal.SIGTERM) as restore:
    yield asked


@contextlib.contextmanager
def several_hosts() -> Iterator[Asked]:
  """SIGTERM is left to JAX's service; Ctrl-C is handed on to it."""

  def handle(number: int, frame: Any) -> None:
    del number, frame
    os.kill(os.getpid(), signal.SIGTERM)

  with handling(handle, signal.SIGINT):
    yield Asked(heard, tell_all)


def tell_all() -> None:
  """Has JAX's service find a step for all hosts to end at, and gives it the time to."""
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(NOTICE)


@contextlib.contextmanager
def handling(handler: Callable[[int, Any], None], *signals: int) -> Iterator[Callable[[], None]]:
  """Sets a handler where the main thread can; yields what sets the previous ones again."""
  previous: dict[int, Any] = {}

  def restore() -> None:
    for number, old in previous.items():
      signal.signal(number, old)

  if threading.current_thread() is threading.main_thread():
    previous |= {number: signal.signal(number, handler) for number in signals}
  try:
    yield restore
  finally:
    restore()
