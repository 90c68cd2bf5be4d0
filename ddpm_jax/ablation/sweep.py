"""Which variants of an experiment there are.

A variant is the settings that it overrides, {'loss.name': 'variational'}, and a sweep is a list of
them. `vary` makes one of a setting; `grid`, `zipped` and `listed` each make one of several.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ddpm_jax.errors import InputError

Variant = dict[str, Any]
Sweep = list[Variant]


def vary(field: str, *values: Any) -> Sweep:
  """One variant for each value of a setting: vary('loss.name', 'simple', 'variational')."""
  return [{field: value} for value in values]


def grid(*sweeps: Sweep) -> Sweep:
  """Every combination of a variant of each, the last changing fastest."""
  return [merged(*parts) for parts in itertools.product(*sweeps)]


def zipped(*sweeps: Sweep) -> Sweep:
  """The first variants of all together, the second ones together, and so on.

  Raises:
    InputError: they are not equally many.
  """
  lengths = [len(sweep) for sweep in sweeps]
  if len(set(lengths)) > 1:
    fields = (f'{", ".join(sweep[0]) if sweep else "nothing"} {len(sweep)}' for sweep in sweeps)
    raise InputError(f'zipped: settings of unequal numbers of values: {"; ".join(fields)}')
  return [merged(*parts) for parts in zip(*sweeps, strict=True)]


def listed(*sweeps: Sweep) -> Sweep:
  """The variants of one after those of another."""
  return list(itertools.chain(*sweeps))


def merged(*parts: Variant) -> Variant:
  """All the overrides of several variants.

  Raises:
    InputError: two of them set the same.
  """
  whole: Variant = {}
  for part in parts:
    for field, value in part.items():
      if field in whole:
        raise InputError(
          f'config.{field}: set twice in one variant, {whole[field]!r} and {value!r}'
        )
      whole[field] = value
  return whole


COMBINATIONS: dict[str, Callable[..., Sweep]] = {
  'grid': grid,
  'zipped': zipped,
  'listed': listed,
}


def split_values(text: str) -> list[str]:
  """The parts between commas that are inside no brackets and no quotes: 'a,b(c,d)' is two.

  Raises:
    InputError: brackets or quotes are not closed, or a part is empty.
  """
  parts, depth, quote = [''], 0, ''
  for letter in text:
    if letter == ',' and not depth and not quote:
      parts.append('')
      continue
    parts[-1] += letter
    if quote:
      quote = '' if letter == quote else quote
    elif letter in '\'"':
      quote = letter
    else:
      depth += (letter in '([{') - (letter in ')]}')
  if depth or quote:
    raise InputError(f"'{text}': a bracket or a quote is not closed")
  if not all(part.strip() for part in parts):
    raise InputError(f"'{text}': a value is missing")
  return [part.strip() for part in parts]
