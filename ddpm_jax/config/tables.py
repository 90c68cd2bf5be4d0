"""Where the names in a config are looked up, and what the entries take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from ddpm_jax.config.signatures import keywords, kind


@dataclasses.dataclass(frozen=True)
class Group:
  """A choice group's table.

  Attributes:
    table: name -> function, whose keyword arguments are settings.
    supplied: the keyword arguments that the program gives itself.
    fallback: name -> function, for names that are not in the table; None refuses them.
  """

  table: Mapping[str, Callable]
  supplied: frozenset[str] = frozenset()
  fallback: Callable[[str], Callable] | None = None

  def arguments(self) -> dict[str, type]:
    """The keyword arguments of all the functions, each with the type that they agree on."""
    functions = [*self.table.values(), *([self.fallback('')] if self.fallback else [])]
    kinds: dict[str, set[type]] = {}
    for function in functions:
      for name, parameter in keywords(function, self.supplied).items():
        kinds.setdefault(name, set()).add(kind(parameter.annotation))
    return {name: found.pop() if len(found) == 1 else object for name, found in kinds.items()}


class Tables(NamedTuple):
  """All that names are looked up in, by where they are written.

  Attributes:
    groups: 'loss' -> its table.
    options: 'sampler.grid' -> the table of a plain setting's names.
    factors: 'loss.weight' -> the table of a setting that may be an expression or a plug-in.
    unread: a task's name -> the groups that it makes no use of.
    trusted: the modules whose functions may stand beside the tables' as plug-ins; None: any.
  """

  groups: Mapping[str, Group]
  options: Mapping[str, Mapping[str, Any]]
  factors: Mapping[str, Mapping[str, Callable]]
  unread: Mapping[str, frozenset[str]] = {}
  trusted: Collection[str] | None = None
