"""Errors for people: one line that names the field or file, and the mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar('T')


class InputError(ValueError):
  """Bad input from the user. The mains print it on one line and exit with code 2."""


def choose(table: Mapping[str, T], name: str, field: str) -> T:
  """Looks `name` up in a table of options; `field` is what the user wrote it in.

  Raises:
    InputError: naming the field, every option and the nearest one.
  """
  if name in table:
    return table[name]
  raise InputError(unknown(name, table, field))


def unknown(name: str, options: Iterable[str], field: str) -> str:
  """The message for a name that is not among the options."""
  options = list(options)
  nearest = difflib.get_close_matches(name, options, n=1)
  hint = f"; did you mean '{nearest[0]}'?" if nearest else ''
  return f"{field}: '{name}' is not one of {', '.join(options)}{hint}"


def one_line(error: BaseException) -> str:
  """What an error of another library says, on one line; its name where it says nothing."""
  return (str(error).splitlines() or [type(error).__name__])[0]


class Interrupted(Exception):
  """A signal ended a long piece of work, after it had saved. The mains exit with 128 + signum."""

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum


class Failed(Exception):
  """What a run cannot go on after, through no fault of its input. One line, exit code 1."""
