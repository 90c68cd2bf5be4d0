"""Entries of tables by what is written in a config.

A name, 'min_snr'; a name with keyword arguments, 'min_snr(gamma=3)', as Python writes literals; or
a plug-in to import, 'package.module:function', with arguments or without.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from ddpm_jax.bounds import complaint
from ddpm_jax.config.plugins import PLUGIN, import_plugin
from ddpm_jax.config.signatures import fit, keywords, show
from ddpm_jax.errors import InputError, choose

EXPRESSION = re.compile(r'(?P<name>[^(]*)(?P<arguments>\(.*\))?', re.DOTALL)


def find_function(
  name: str,
  table: Mapping[str, Callable],
  field: str,
  fallback: Callable[[str], Callable] | None = None,
  trusted: Collection[str] | None = None,
) -> Callable:
  """An entry of the table, a plug-in of a trusted module (None: of any), or fallback(name)."""
  if name not in table and PLUGIN.fullmatch(name):
    return import_plugin(name, field, trusted)
  return choose(table, name, field) if name in table or not fallback else fallback(name)


def find_entry(
  text: str,
  table: Mapping[str, Callable],
  field: str,
  trusted: Collection[str] | None = None,
) -> Callable:
  """The function that an expression means, its arguments bound.

  Only keyword arguments with a default of their own can be set, so that an expression's function
  is called as any other entry.

  Raises:
    InputError: naming the field: the name is not there, or an argument is not one of the entry's.
  """
  found = EXPRESSION.fullmatch(text.strip())
  if found is None:
    raise InputError(f"{field}: '{text}' is not of the form name or name(argument=value)")
  function = find_function(found['name'].strip(), table, field, trusted=trusted)
  arguments = read_arguments(text, found['arguments'], field)
  if not arguments:
    return function
  takes = settable(function)
  for name, value in arguments.items():
    if name not in takes:
      mend = f'it takes {", ".join(takes)}' if takes else 'it takes no arguments'
      raise InputError(f"{field}: '{found['name']}' has no argument '{name}'; {mend}")
    try:
      arguments[name] = fit(value, takes[name])
    except TypeError:
      raise InputError(f'{field}: {name}={value!r} is not {show(takes[name])}') from None
    if wrong := complaint(arguments[name], takes[name]):
      raise InputError(f'{field}: {name}: {wrong}')
  return functools.partial(function, **arguments)


def read_arguments(text: str, arguments: str | None, field: str) -> dict[str, Any]:
  """{'gamma': 3} of '(gamma=3)'."""
  try:
    call = ast.parse(f'entry{arguments or "()"}', mode='eval').body
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
      raise ValueError
    return {str(pair.arg): ast.literal_eval(pair.value) for pair in call.keywords}
  except (ValueError, SyntaxError, RecursionError, MemoryError):
    raise InputError(f"{field}: '{text}' is not of the form name(argument=value)") from None


def settable(function: Callable) -> dict[str, Any]:
  """The hints of the keyword arguments that have a default."""
  return {
    name: parameter.annotation
    for name, parameter in keywords(function, frozenset()).items()
    if parameter.default is not inspect.Parameter.empty
  }
