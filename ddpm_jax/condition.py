"""Conditions: what a network is told beside the noise, as arrays with the batch axis first.

A data set carries a specification of its condition, name -> `Field`. The condition itself goes from
the data to the network as it is; the network alone knows which entries it reads.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Field:
  """One entry of a condition, as a data set specifies it.

  Attributes:
    shape: of one example's value; () for a single number.
    dtype: NumPy's name of its type, such as 'int32'.
    null: the number that fills a value which says nothing.
    title: what the entry is, in words, such as 'class' or 'caption'.
    num_classes: the value is one class of 0 … num_classes - 1, and null is no class; None for a
      value that is no class label.
    classes: the classes that have a training example; None for a value that is no class label.
  """

  shape: tuple[int, ...] = ()
  dtype: str = 'float32'
  null: float = 0
  title: str = 'condition'
  num_classes: int | None = None
  classes: tuple[int, ...] | None = None


Spec = Mapping[str, Field]
Cond = Any


def class_field(num_classes: int, classes: tuple[int, ...] | None = None) -> Field:
  """The field of a class label; its null is the number after the last class."""
  trained = tuple(range(num_classes)) if classes is None else classes
  return Field((), 'int32', num_classes, 'label', num_classes, trained)


def labels(num_classes: int, classes: tuple[int, ...] | None = None) -> dict[str, Field]:
  """The specification of a data set whose whole condition is a class label."""
  return {'label': class_field(num_classes, classes)}


def class_name(spec: Spec) -> str | None:
  """The name of the entry that is a class, where there is exactly one; else None."""
  names = [name for name, field in spec.items() if field.num_classes is not None]
  return names[0] if len(names) == 1 else None


def classes_in(spec: Spec, cond: Cond) -> np.ndarray | None:
  """The class of each example of a condition, (B,); None where the condition has no class."""
  name = class_name(spec)
  return None if name is None else np.asarray(cond[name])


def titles(spec: Spec) -> str:
  """The titles of the entries, each once, such as 'caption, picture'."""
  return ', '.join(dict.fromkeys(field.title for field in spec.values()))


def nulls(spec: Spec, batch_size: int) -> dict[str, Array]:
  """The condition that says nothing: every entry filled with its field's null."""
  return {
    name: jnp.full((batch_size, *field.shape), field.null, field.dtype)
    for name, field in spec.items()
  }


def shapes(spec: Spec, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """The shapes and types of a condition of `batch_size` examples."""
  return {
    name: jax.ShapeDtypeStruct((batch_size, *field.shape), field.dtype)
    for name, field in spec.items()
  }


def checked(spec: Spec, cond: Cond) -> Cond:
  """The condition of one example or of a batch, once it is what the specification says.

  Traced classes are clamped to 0 … num_classes, the last of which is the null: an embedding would
  give NaN for those above, and its last row for -1. Entries that are not specified pass untouched.

  Raises:
    InputError: an entry is missing or has another shape, or a concrete class is out of range.
  """
  return {**cond, **{name: checked_entry(name, field, cond) for name, field in spec.items()}}


def checked_entry(name: str, field: Field, cond: Cond) -> Any:
  """One entry of the condition; raises InputError as `checked`."""
  what = f'{field.title}, {field.dtype} (B{"".join(f", {side}" for side in field.shape)})'
  if name not in cond:
    raise InputError(
      f"cond: '{name}' is missing, and this network is conditional on it; give {{'{name}': "
      f'{what}}}, or null_cond(module, B) for no condition'
    )
  value = cond[name]
  dtype, shape = jnp.result_type(value), jnp.shape(value)
  leading = len(shape) - len(field.shape)
  if leading not in (0, 1) or shape[leading:] != field.shape:
    raise InputError(f'cond: {name} must be {what}, not {dtype} {shape}')
  return value if field.num_classes is None else checked_class(name, field, value, what)


def checked_class(name: str, field: Field, value: Any, what: str) -> Any:
  """Class labels within 0 … null; raises InputError for others."""
  null = int(field.null)
  if not jnp.issubdtype(jnp.result_type(value), jnp.integer):
    raise InputError(f'cond: {name} must be {what}, not {jnp.result_type(value)}')
  if isinstance(value, jax.core.Tracer):
    return jnp.clip(value, 0, null)
  outside = [int(k) for k in np.ravel(value) if not 0 <= k <= null]
  if outside:
    raise InputError(
      f'cond: {name} {outside[0]} is no class: there are 0 to {null - 1}, and {null} for no '
      'condition'
    )
  return value


def to_record(spec: Spec) -> dict[str, Any]:
  """The specification as JSON; `from_record` reads it back."""
  return {name: dataclasses.asdict(field) for name, field in spec.items()}


def from_record(record: Any) -> dict[str, Field]:
  """The specification that `to_record` wrote.

  Raises:
    ValueError: it is none; the message names the entry.
  """
  if not isinstance(record, Mapping):
    raise ValueError(f'cond: {record!r} is not a mapping of names to fields')
  return {str(name): field_of(str(name), entry) for name, entry in record.items()}


def earlier_record(data: Mapping[str, Any]) -> dict[str, Any]:
  """What `to_record` would have written where a record of format 1 has the number of classes."""
  count = data['num_classes']
  if count is None:
    return {}
  field = {'dtype': 'int32', 'null': count, 'title': 'label', 'num_classes': count}
  return {'label': {**field, 'classes': data.get('classes')}}


WHOLE = 2**31  # no side, no value's size and no number of classes is as large


def field_of(name: str, entry: Any) -> Field:
  """One field; raises ValueError where the record is of something else."""
  names = {field.name for field in dataclasses.fields(Field)}
  if not isinstance(entry, Mapping) or not entry.keys() <= names:
    raise ValueError(f'cond.{name}: {entry!r} is not a field with {", ".join(sorted(names))}')
  given: Any = {**dataclasses.asdict(Field()), **entry}
  given['shape'] = whole_numbers(name, 'shape', given['shape'])
  for part, (what, is_one) in PARTS.items():
    if not is_one(given[part]):
      raise ValueError(f'cond.{name}.{part}: {given[part]!r} is not {what}')
  whole_numbers(name, 'shape', [math.prod(given['shape'])])
  parts = (given['shape'], given['dtype'], given['null'], given['title'])
  if not holds(given['dtype'], given['null']):
    raise ValueError(f'cond.{name}.null: {given["null"]!r} is not of the type {given["dtype"]}')
  if given['num_classes'] is None:
    return Field(*parts)
  (count,) = whole_numbers(name, 'num_classes', [given['num_classes']])
  classes = range(count) if given['classes'] is None else given['classes']
  if not all(type(k) is int and 0 <= k < count for k in classes):
    raise ValueError(f'cond.{name}.classes: {given["classes"]!r} are not all numbers of classes')
  if np.dtype(given['dtype']).kind not in 'iu':
    raise ValueError(f'cond.{name}.dtype: {given["dtype"]!r} holds no numbers of classes')
  if 0 <= given['null'] < count:
    raise ValueError(f'cond.{name}.null: {given["null"]!r} is one of the {count} classes')
  return Field(*parts, count, tuple(classes))


def holds(dtype: str, value: float) -> bool:
  """Whether a type has the number: one that is finite and, for whole numbers, whole."""
  kind = np.dtype(dtype).kind
  if kind == 'f':
    return abs(value) <= float(np.finfo(dtype).max)
  low, high = (0, 1) if kind == 'b' else (np.iinfo(dtype).min, np.iinfo(dtype).max)
  return low <= value <= high and value == int(value)


DTYPES = ('int32', 'float32', 'bool', 'uint8')

# What a record of a field must be, part by part.
PARTS: dict[str, tuple[str, Callable[[Any], bool]]] = {
  'dtype': (f'one of {", ".join(DTYPES)}', lambda value: value in DTYPES),
  'title': ('a string', lambda value: isinstance(value, str)),
  'null': ('a number', lambda value: type(value) in (int, float, bool)),
  'classes': ('a list', lambda value: value is None or isinstance(value, (list, tuple, range))),
}


def whole_numbers(name: str, part: str, values: Any) -> tuple[int, ...]:
  """The values, each a whole number from 1 to WHOLE - 1; raises ValueError for others."""
  if not isinstance(values, (list, tuple)):
    raise ValueError(f'cond.{name}.{part}: {values!r} is not a list of whole numbers')
  for value in values:
    if type(value) is not int or not 1 <= value < WHOLE:
      raise ValueError(f'cond.{name}.{part}: {value!r} is not a whole number from 1 to {WHOLE - 1}')
  return tuple(values)
