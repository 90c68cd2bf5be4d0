"""A stream whose next batches are in hand, so that a fault in the data is known before its turn."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Any, Protocol

from ddpm_jax.data.dataset import Batch


class Stream(Protocol):
  """Batches without end, and where in them it is: grain's iterators."""

  def __next__(self) -> Batch: ...

  def get_state(self) -> Any: ...

  def set_state(self, state: Any) -> None: ...


class Ahead:
  """The batches of a stream, of which some are read before they are asked for.

  Attributes:
    fault: the exception that the stream has raised; None while it has raised none.
  """

  def __init__(self, stream: Stream):
    self._stream = stream
    self._held: collections.deque[tuple[Batch, Any]] = collections.deque()
    self._state = stream.get_state()
    self.fault: Exception | None = None

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    """The next batch; raises `fault` where the stream raised it in place of that batch."""
    self.fill(1)
    if not self._held and self.fault:
      raise self.fault
    batch, self._state = self._held.popleft()
    return batch

  def fill(self, count: int) -> None:
    """Reads until the next `count` batches are in hand, or a fault is met, which is kept."""
    while len(self._held) < count and self.fault is None:
      try:
        self._held.append((next(self._stream), self._stream.get_state()))
      except Exception as error:
        self.fault = error

  def get_state(self) -> Any:
    """The stream's state after the last batch that was taken."""
    return self._state

  def set_state(self, state: Any) -> None:
    """Goes to where a stream was that gave this state."""
    self._stream.set_state(state)
    self._held.clear()
    self._state, self.fault = state, None
