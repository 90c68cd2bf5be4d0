"""What a function's signature says of the settings that it takes."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

from ddpm_jax.bounds import SEQUENCES, alternatives, bare, elements, evaluated, literal, options_of

# Parameters that are never settings: Flax's own, and the name by which a choice is made.
RESERVED = frozenset({'name', 'parent'})
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def keywords(function: Callable, supplied: frozenset[str]) -> dict[str, inspect.Parameter]:
  """The parameters that a config may set: those by name that the program doesn't supply."""
  scope = vars(sys.modules[getattr(function, 'func', function).__module__])
  return {
    name: parameter.replace(annotation=evaluated(parameter.annotation, scope))
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.kind in NAMED and name not in supplied | RESERVED
  }


def kind(hint: Any) -> type:
  """The type that a flag of this hint is parsed as; `object` reads any Python literal."""
  members = alternatives(hint)
  if len(members) > 1:
    return object
  member = members[0]
  if get_origin(member) is Literal:
    return type(get_args(member)[0])
  if member in SEQUENCES or get_origin(member) in SEQUENCES:
    return tuple
  return member if member in (bool, int, float, str) else object


def fit(value: Any, hint: Any) -> Any:
  """`value` as `hint` wants it, an int made a float where need be; a hint of ours or none passes.

  Raises:
    TypeError: where it is of another type. A bool is no number, and nan no float.
  """
  members = alternatives(hint)
  if len(members) > 1:
    return fit_any(value, members)
  member = members[0]
  if get_origin(member) is Literal:
    accepted = literal(value, member)
  elif member in SEQUENCES or get_origin(member) in SEQUENCES:
    return fit_elements(value, get_args(member))
  elif member is float:
    accepted = isinstance(value, (int, float)) and type(value) is not bool
    value = as_float(value) if accepted else value
    accepted = accepted and not math.isnan(value)
  elif member in (bool, int, str):
    accepted = isinstance(value, member) and (member is bool or not isinstance(value, bool))
  else:
    return value
  if not accepted:
    raise TypeError
  return value


def as_float(value: float) -> float:
  """A number as a float, infinite where an int is beyond all floats."""
  try:
    return float(value)
  except OverflowError:
    return math.inf if value > 0 else -math.inf


def fit_any(value: Any, members: tuple[Any, ...]) -> Any:
  """The first member that fits, one of the value's very type before the others."""
  for member in sorted(members, key=lambda member: type(value) is not member):
    try:
      return fit(value, member)
    except TypeError:
      continue
  raise TypeError


def fit_elements(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
  """A tuple whose elements fit `hints`: one for each, or one for all."""
  if not isinstance(value, (tuple, list)):
    raise TypeError
  if not hints:
    return tuple(value)
  hints = elements(hints, len(value))
  if len(hints) != len(value):
    raise TypeError
  return tuple(fit(element, hint) for element, hint in zip(value, hints, strict=True))


def show(hint: Any) -> str:
  """A hint in words: 'int', 'tuple[int, ...]', 'one of ...'."""
  members = tuple(bare(member) for member in alternatives(hint))
  if len(members) == 1 and get_origin(members[0]) is Literal:
    return options_of(get_args(members[0]))
  names = (m.__name__ if type(m) is type else str(m).replace('typing.', '') for m in members)
  return f'of type {" or ".join(names)}'
