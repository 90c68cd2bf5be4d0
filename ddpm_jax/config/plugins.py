"""Plug-ins, 'package.module:function': where a config names them, and whose word is enough to run.

A person may name any, in a config file or by a flag. What a folder names is data: of that, only
those are imported whose modules a person names too, as in --plugins=my_losses.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ddpm_jax.config.tables import Tables
from ddpm_jax.errors import InputError, unknown

PLUGIN = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_]\w*')


def plugins_of(tree: Mapping[str, Any], tables: Tables) -> dict[str, str]:
  """Every plug-in that reading a tree would import: {'loss.weight': 'my_losses:weight'}."""
  places = {f'{group}.name': row.table for group, row in tables.groups.items()} | {**tables.factors}
  found = {}
  for place, table in places.items():
    group, setting = place.split('.')
    branch = tree.get(group)
    text = branch.get(setting) if isinstance(branch, Mapping) else None
    name = text.partition('(')[0].strip() if isinstance(text, str) else ''
    if name not in table and PLUGIN.fullmatch(name):
      found[place] = name
  return found


def import_plugin(name: str, field: str, trusted: Collection[str] | None = None) -> Callable:
  """The function of a plug-in's name.

  Args:
    name: 'package.module:function'.
    field: what it is written in.
    trusted: the modules that may be imported, their submodules included; None: any.

  Raises:
    InputError: it cannot be imported, is not there, or is not of a trusted module.
  """
  refuse_untrusted({field: name}, trusted)
  module_name, function_name = name.split(':')
  try:
    module = importlib.import_module(module_name)
  except (Exception, SystemExit) as error:
    raise InputError(f"{field}: '{name}' cannot be imported: {error!r}") from error
  function = getattr(module, function_name, None)
  if not callable(function):
    public = [key for key, value in vars(module).items() if callable(value) and key[0] != '_']
    raise InputError(unknown(function_name, public, f'{field}: {module_name}'))
  if trusted is not None and not within(home(function), trusted):
    raise InputError(
      f"{field}: '{name}' is a function of {home(function)}, which {module_name} only imports; "
      f'if you trust that module too, add it to --plugins'
    )
  return function


def refuse_untrusted(found: Mapping[str, str], trusted: Collection[str] | None) -> None:
  """Raises InputError, with the mend, unless each plug-in {field: name} is of a trusted module."""
  if isinstance(trusted, str):
    raise TypeError(f"plugins: give a tuple of modules, as ('{trusted}',)")
  if trusted is None:
    return
  wanting = {f: name for f, name in found.items() if not within(name.split(':')[0], trusted)}
  if wanting:
    named = ', '.join(f"'{name}' ({field})" for field, name in wanting.items())
    modules = sorted({name.split(':')[0] for name in wanting.values()})
    raise InputError(
      f'needs code from outside of the package, {named}; it is imported only where you name its '
      f'modules: if you trust them, give --plugins={",".join(modules)} '
      f'(in Python plugins={tuple(modules)})'
    )


def within(module: str, trusted: Iterable[str]) -> bool:
  """Whether a module is one of these, or inside one."""
  return any(f'{module}.'.startswith(f'{name}.') for name in trusted)


def home(function: Any) -> str:
  """The module that a function was written in; of a partial one, that of what it calls."""
  while isinstance(function, functools.partial):
    function = function.func
  return getattr(function, '__module__', None) or type(function).__module__
