"""Bounds of arguments, written in signatures: eta: Annotated[float, Interval(ge=0, le=1)] = 0.0.

They are those of the library annotated-types, and OneOf. The config holds every entry of every
table to them and `--help` prints them; `bounded` holds a function to its own wherever it is called.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from annotated_types import (
  BaseMetadata,
  Ge,
  GroupedMetadata,
  Gt,
  Le,
  Lt,
  MaxLen,
  MinLen,
  MultipleOf,
)

from ddpm_jax.errors import not_among

F = TypeVar('F', bound=Callable)

SEQUENCES = (tuple, list, collections.abc.Sequence)


@dataclasses.dataclass(frozen=True, eq=False)
class OneOf(BaseMetadata):
  """The value is one of these names, as a table's keys."""

  options: Iterable[str]


# Of a number: how it compares with its limit, in words, and the bracket of an interval.
LIMITS: dict[type, tuple[str, Callable[[Any, Any], bool], str, str]] = {
  Ge: ('ge', operator.ge, 'at least', '['),
  Gt: ('gt', operator.gt, 'above', '('),
  Le: ('le', operator.le, 'at most', ']'),
  Lt: ('lt', operator.lt, 'below', ')'),
}


def bounded(function: F) -> F:
  """Decorator: a function that keeps to the bounds in its signature.

  NumPy's scalars count as numbers; arrays and traced values pass.

  Raises:
    ValueError: when it is called, naming the argument: 'eta: 2.0 is outside [0, 1]'.
  """
  signature = inspect.signature(function)

  @functools.wraps(function)
  def checked(*args: Any, **kwargs: Any) -> Any:
    check(signature.bind(*args, **kwargs).arguments, hints(function))
    return function(*args, **kwargs)

  return checked  # pyrefly: ignore


def check_fields(instance: Any) -> None:
  """Raises ValueError where a field of a dataclass is outside the bounds of its annotation."""
  found = hints(type(instance))
  check({name: getattr(instance, name) for name in found if hasattr(instance, name)}, found)


def check(values: dict[str, Any], found: dict[str, Any]) -> None:
  """Raises ValueError where one of the named values is outside its hint's bounds."""
  for name, value in values.items():
    plain = value.item() if isinstance(value, np.generic) else value
    if isinstance(plain, (int, float, str, tuple, list)) and (wrong := said(plain, found[name])):
      raise ValueError(f'{name}: {wrong}')


def said(value: Any, hint: Any) -> str:
  """`complaint`; that a value is of a wrong type, where it has no comparison with its bounds."""
  try:
    return complaint(value, hint)
  except (TypeError, AttributeError):
    wanted = describe(hint)
    return f'{value!r} is of a wrong type' + (f'; {wanted} is wanted' if wanted else '')


@functools.cache
def hints(function: Callable) -> dict[str, Any]:
  """The annotations of a function's parameters, or of a class's, by name."""
  scope = vars(sys.modules[function.__module__])
  parameters = inspect.signature(function).parameters
  return {name: evaluated(each.annotation, scope) for name, each in parameters.items()}


def evaluated(annotation: Any, scope: dict[str, Any]) -> Any:
  """An annotation kept as a string, read in its module; Any where its names are not there.

  One by one: a linen module's signature also has Flax's, whose names its module lacks.
  """
  try:
    return eval(annotation, scope) if isinstance(annotation, str) else annotation
  except (NameError, AttributeError):
    return Any


def complaint(value: Any, hint: Any) -> str:
  """What is wrong with a value of the hint's type, as '0 must be at least 1'; '' for nothing."""
  if get_origin(hint) is Annotated:
    kind, *metadata = get_args(hint)
    if kind is int and isinstance(value, float) and not value.is_integer():
      return f'{value} is not a whole number'
    return own_complaint(value, list(flat(metadata))) or complaint(value, kind)
  if get_origin(hint) is Literal:
    return '' if literal(value, hint) else f'{value!r} is not {options_of(get_args(hint))}'
  if members(hint):
    found = [] if value is None else [complaint(value, each) for each in members(hint)]
    return '' if '' in found or not found else found[0]
  if get_origin(hint) in SEQUENCES and isinstance(value, (tuple, list)):
    each = elements(get_args(hint), len(value))
    found = map(complaint, value, each)
    return next((f'{wrong}, in {value}' for wrong in found if wrong), '')
  return ''


def own_complaint(value: Any, bounds: list[Any]) -> str:
  """What is wrong with a value by bounds of its own, not by those of its elements."""
  for bound in bounds:
    if isinstance(bound, OneOf) and value not in bound.options:
      return not_among(value, bound.options)
    if isinstance(bound, MultipleOf) and value % bound.multiple_of:
      return f'{value} is not a multiple of {bound.multiple_of}'
    if isinstance(bound, MinLen) and len(value) < bound.min_length:
      return (
        f'{value!r} has fewer than {bound.min_length} elements' if value else f'{value!r} is empty'
      )
    if isinstance(bound, MaxLen) and len(value) > bound.max_length:
      return f'{value!r} has more than {bound.max_length} elements'
  limits = [bound for bound in bounds if type(bound) in LIMITS]
  if all(LIMITS[type(each)][1](value, limit_of(each)) for each in limits):
    return ''
  words = interval(limits)
  return f'{value} {"is outside" if len(limits) > 1 else "must be"} {words}'


def interval(limits: list[Any]) -> str:
  """'[0, 1)' of two limits, 'at least 1' of one."""
  if len(limits) == 1:
    return f'{LIMITS[type(limits[0])][2]} {shown(limits[0])}'
  low, high = sorted(limits, key=limit_of)
  brackets = LIMITS[type(low)][3], LIMITS[type(high)][3]
  return f'{brackets[0]}{shown(low)}, {shown(high)}{brackets[1]}'


def limit_of(bound: Any) -> Any:
  """The number that it compares with."""
  return getattr(bound, LIMITS[type(bound)][0])


def shown(bound: Any) -> str:
  """That number, as people write it."""
  limit = limit_of(bound)
  return f'{limit:g}' if isinstance(limit, float) else str(limit)


def describe(hint: Any) -> str:
  """A hint's bounds in words for help, as 'in [0, 1]'; '' where it has none."""
  found = []
  for each in members(hint) or (hint,):
    metadata = list(flat(get_args(each)[1:])) if get_origin(each) is Annotated else []
    limits = [bound for bound in metadata if type(bound) in LIMITS]
    found += [f'in {interval(limits)}' if len(limits) > 1 else interval(limits)] if limits else []
    found += [f'a multiple of {m.multiple_of}' for m in metadata if isinstance(m, MultipleOf)]
    found += [options_of(m.options) for m in metadata if isinstance(m, OneOf)]
    inner = get_args(each)[0] if metadata else each
    if get_origin(inner) is Literal:
      found.append(options_of(get_args(inner)))
    elif get_origin(inner) in SEQUENCES and (words := describe(get_args(inner)[0])):
      found.append(f'each {words}')
  return ', '.join(found)


def options_of(options: Iterable[Any]) -> str:
  """'one of a, b'."""
  return f'one of {", ".join(map(str, options))}'


def literal(value: Any, hint: Any) -> bool:
  """Whether it is one of a Literal's, in type too: True is not 1."""
  return any(value == each and type(value) is type(each) for each in get_args(hint))


def flat(metadata: Iterable[Any]) -> Iterator[Any]:
  """Single bounds, of those that are groups of them."""
  for each in metadata:
    yield from each if isinstance(each, GroupedMetadata) else (each,)


def alternatives(hint: Any) -> tuple[Any, ...]:
  """The members of a union but None; of anything else, itself; each without its own bounds."""
  if get_origin(hint) is Annotated:
    return alternatives(get_args(hint)[0])
  return tuple(each for member in members(hint) for each in alternatives(member)) or (hint,)


def members(hint: Any) -> tuple[Any, ...]:
  """Those of a union but None; none of anything else."""
  union = get_origin(hint) in (Union, types.UnionType)
  return tuple(each for each in get_args(hint) if each is not types.NoneType) if union else ()


def bare(hint: Any) -> Any:
  """A hint without any bounds, its elements' included."""
  if get_origin(hint) is Annotated:
    return bare(get_args(hint)[0])
  if get_origin(hint) in SEQUENCES:
    return get_origin(hint)[tuple(map(bare, get_args(hint)))]
  return hint


def elements(each: tuple[Any, ...], count: int) -> tuple[Any, ...]:
  """The hints of a sequence's elements: one for each, or one for all."""
  if len(each) == 1 or each[-1] is Ellipsis:
    return (each[0],) * count
  return each
