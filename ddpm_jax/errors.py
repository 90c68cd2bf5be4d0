"""Errors for people: one line that names the field or file, and the mend."""

from __future__ import annotations

import difflib
import re
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
  """The message for a name that is not among the options, which was written in `field`."""
  return f'{field}: {not_among(name, options)}'


def not_among(name: str, options: Iterable[str]) -> str:
  """That a name is not among the options, and which of them is the nearest."""
  options = list(options)
  meant = nearest(name, options)
  hint = f"; did you mean '{meant}'?" if meant else ''
  return f"'{name}' is not one of {', '.join(options)}{hint}"


# Names that people know from elsewhere, as `letters` has them.
SYNONYMS = {
  'ddpm': 'ancestral',
  'dpmpp': 'dpmpp_2m',
  'dpmsolverpp': 'dpmpp_2m',
  'dpmsolvermultistep': 'dpmpp_2m',
  'epsilon': 'eps',
  'velocity': 'v',
  'sample': 'x0',
}


def nearest(name: str, options: Iterable[str]) -> str | None:
  """The option that a name most likely means: 'dpmpp_2m' of 'DPM++ 2M Karras'; None for none.

  A slip of the pen comes first, then a name that is a part of what was written, then one that
  begins with it.
  """
  names = {letters(option): option for option in options}
  said = letters(name)
  if (synonym := SYNONYMS.get(said)) in names.values():
    return synonym
  slips = difflib.get_close_matches(said, names, 1, 0.85)
  parts = sorted((each for each in names if len(each) > 2 and each in said), key=len)
  begun = [each for each in names if len(said) > 2 and each.startswith(said)]
  found = slips or parts[-1:] or begun[:1] or difflib.get_close_matches(said, names, 1)
  return names[found[0]] if found else None


def letters(name: str) -> str:
  """A name's letters and digits in lower case, '+' being 'p' and a last ' a' 'ancestral'."""
  words = re.findall(r'[a-z0-9]+', name.lower().replace('+', 'p'))
  return ''.join([*words[:-1], 'ancestral'] if len(words) > 1 and words[-1] == 'a' else words)


def one_line(error: BaseException) -> str:
  """What an error of another library says, on one line; its name where it says nothing."""
  return (str(error).splitlines() or [type(error).__name__])[0]


class Interrupted(BaseException):
  """A signal ended a long piece of work, after it had saved. The mains exit with 128 + signum.

  It is no Exception, as KeyboardInterrupt is none: what is caught as the fault of a file or of
  somebody's code is not the end of the program.
  """

  def __init__(self, signum: int, message: str):
    super().__init__(message)
    self.signum = signum


class Failed(Exception):
  """What a run cannot go on after, through no fault of its input. One line, exit code 1."""
