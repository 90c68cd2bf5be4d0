"""Specifications of a condition: their records, their nulls, and what is held against them."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import condition
from ddpm_jax.condition import Field, checked, class_field, labels
from ddpm_jax.errors import InputError

VECTOR = Field((2,), 'float32', -0.5, 'vector')
SPEC = {
  **labels(4, classes=(0, 3)),
  'vector': VECTOR,
  'tokens': Field((5, 3), title='caption'),
  'mask': Field((5,), 'bool', False, 'caption'),
  'picture': Field((8, 8, 3), 'uint8', 128, 'picture'),
}


def cond(batch_size=3):
  """A condition of SPEC, none of whose entries is null."""
  rng = np.random.default_rng(0)
  return {
    'label': np.arange(batch_size) % 4,
    'vector': rng.normal(size=(batch_size, 2)).astype(np.float32),
    'tokens': rng.normal(size=(batch_size, 5, 3)).astype(np.float32),
    'mask': np.ones((batch_size, 5), bool),
    'picture': rng.integers(0, 128, (batch_size, 8, 8, 3), np.uint8),
  }


# Records.


@pytest.mark.parametrize(
  'spec', [{}, labels(10), labels(1), SPEC], ids=['none', 'ten', 'one', 'all']
)
def test_a_specification_comes_back_from_its_record(spec):
  record = json.loads(json.dumps(condition.to_record(spec)))
  found = condition.from_record(record)
  assert found == spec
  for name, field in spec.items():
    assert [type(part) for part in vars(found[name]).values()] == [
      type(part) for part in vars(field).values()
    ]
    hash(found[name])  # a module's attribute is hashed


LABEL = {'dtype': 'int32', 'num_classes': 3, 'null': 3}


def test_a_record_may_leave_out_what_is_as_usual():
  found = condition.from_record({'vector': {'shape': [2]}, 'label': LABEL})
  assert found['vector'] == Field((2,))
  assert found['label'].classes == (0, 1, 2)


NESTED = [[[[]]]]
for _ in range(500):
  NESTED = [NESTED]

HOSTILE = {
  'no field': ('x', 3, r'^cond\.x: 3 is not a field'),
  'a list': ('x', [1], r'^cond\.x: .* is not a field'),
  'nothing': ('x', None, r'^cond\.x: None is not a field'),
  'an unknown part': ('x', {'size': 3}, r'^cond\.x: .* is not a field with .*dtype'),
  'a shape that is a number': ('x', {'shape': 3}, r'^cond\.x\.shape: 3 is not a list'),
  'a shape that is a string': ('x', {'shape': '33'}, r"^cond\.x\.shape: '33' is not a list"),
  'a shape that is null': ('x', {'shape': None}, r'^cond\.x\.shape: None'),
  'a nested shape': ('x', {'shape': [[2]]}, r'^cond\.x\.shape: \[2\] is not a whole number'),
  'a deep shape': ('x', {'shape': NESTED}, r'^cond\.x\.shape: '),
  'a side of zero': ('x', {'shape': [0]}, r'^cond\.x\.shape: 0 is not a whole number'),
  'a negative side': ('x', {'shape': [2, -1]}, r'^cond\.x\.shape: -1 is not'),
  'a broken side': ('x', {'shape': [2.5]}, r'^cond\.x\.shape: 2\.5 is not'),
  'a side that is true': ('x', {'shape': [True]}, r'^cond\.x\.shape: True is not'),
  'a huge side': ('x', {'shape': [2**31]}, r'^cond\.x\.shape: 2147483648 is not'),
  'an endless side': ('x', {'shape': [float('inf')]}, r'^cond\.x\.shape: inf is not'),
  'a type that is a number': ('x', {'dtype': 4}, r'^cond\.x\.dtype: 4 is not one of int32, '),
  'another type': ('x', {'dtype': 'object'}, r"^cond\.x\.dtype: 'object' is not one of int32, "),
  'a type that is a list': ('x', {'dtype': ['int32']}, r'^cond\.x\.dtype: .* is not one of'),
  'a null that is a string': ('x', {'null': '0'}, r"^cond\.x\.null: '0' is not a number"),
  'a null that is a list': ('x', {'null': [0]}, r'^cond\.x\.null: \[0\] is not a number'),
  'a null that is none': ('x', {'null': None}, r'^cond\.x\.null: None is not a number'),
  'a title that is a mapping': ('x', {'title': {}}, r'^cond\.x\.title: {} is not a string'),
  'no classes': ('x', {'num_classes': 0}, r'^cond\.x\.num_classes: 0 is not'),
  'huge classes': ('x', {'num_classes': 10**30}, r'^cond\.x\.num_classes: 10{30} is not'),
  'broken classes': ('x', {'num_classes': 3.0}, r'^cond\.x\.num_classes: 3\.0 is not'),
  'classes by name': ('x', {'num_classes': 'ten'}, r"^cond\.x\.num_classes: 'ten' is not"),
  'a number of trained classes': (
    'x',
    LABEL | {'classes': 3},
    r'^cond\.x\.classes: 3 is not a list',
  ),
  'a trained class that is none': (
    'x',
    LABEL | {'classes': [0, 3]},
    r'^cond\.x\.classes: \[0, 3\] are not all numbers of classes',
  ),
  'nested classes': ('x', LABEL | {'classes': [[0]]}, r'^cond\.x\.classes: \[\[0\]\]'),
  'true classes': ('x', LABEL | {'classes': [True]}, r'^cond\.x\.classes: \[True\]'),
}


@pytest.mark.parametrize('case', HOSTILE)
def test_a_record_of_something_else_is_refused_by_its_entry(case):
  name, entry, message = HOSTILE[case]
  with pytest.raises(ValueError, match=message):
    condition.from_record({'label': condition.to_record(labels(3))['label'], name: entry})


@pytest.mark.parametrize('record', [None, 3, 'label', [], [['label', {}]]])
def test_a_record_that_names_nothing_is_refused(record):
  with pytest.raises(ValueError, match='^cond: .* is not a mapping of names to fields'):
    condition.from_record(record)


LARGE = {
  'a null beyond all floats': {'null': 10**400},
  'a null beyond its type': {'dtype': 'int32', 'null': 2**40},
  'a null that is no byte': {'dtype': 'uint8', 'null': -1},
  'a null that is broken': {'dtype': 'int32', 'null': 0.5},
  'a null that is no number': {'null': float('nan')},
  'an endless null': {'null': float('-inf')},
  'a flag of two': {'dtype': 'bool', 'null': 2},
  'a value of too many numbers': {'shape': [2**30, 2**30]},
  'a class whose null is one': {'dtype': 'int32', 'num_classes': 3, 'null': 1},
  'a class of fractions': {'dtype': 'float32', 'num_classes': 3, 'null': 3},
}


@pytest.mark.parametrize('case', LARGE)
def test_a_record_that_no_data_set_has_is_refused_by_its_entry(case):
  with pytest.raises(ValueError, match=r'^cond\.x'):
    condition.from_record({'x': LARGE[case]})


# Nulls and shapes.


def test_nulls_say_nothing_in_every_entry():
  found = condition.nulls(SPEC, 2)
  assert found.keys() == SPEC.keys()
  for name, value in (('label', 4), ('vector', -0.5), ('tokens', 0), ('mask', False)):
    np.testing.assert_array_equal(found[name], np.full(found[name].shape, value))
  assert condition.nulls({}, 2) == {}


def test_nulls_are_a_condition_of_the_shapes_that_it_has():
  given, nulls, shapes = cond(3), condition.nulls(SPEC, 3), condition.shapes(SPEC, 3)
  checked(SPEC, nulls)
  for name in SPEC:
    assert nulls[name].shape == shapes[name].shape == given[name].shape
    assert nulls[name].dtype == shapes[name].dtype == SPEC[name].dtype


# What is held against a specification.


def test_what_is_as_specified_passes_untouched_and_so_does_what_is_not_specified():
  given = cond() | {'augmentation': object()}
  found = checked(SPEC, given)
  assert found.keys() == given.keys()
  assert all(found[name] is given[name] for name in given)


def test_one_example_has_no_batch_axis():
  one = jax.tree.map(lambda leaf: leaf[1], cond())
  found = checked(SPEC, one)
  assert all(np.array_equal(found[name], one[name]) for name in SPEC)


WRONG = {
  'missing': ({'label': None}, r"'label' is missing.*{'label': label, int32 \(B\)}, or null_cond"),
  'a vector missing': ({'vector': None}, r"'vector' is missing.*vector, float32 \(B, 2\)}"),
  'a longer vector': (
    {'vector': np.ones((3, 4), np.float32)},
    r'vector must be vector, float32 \(B, 2\), not float32 \(3, 4\)',
  ),
  'a number': ({'vector': np.float32(1)}, r'vector must be vector, .* not float32 \(\)'),
  'two axes too many': (
    {'vector': np.ones((3, 1, 2), np.float32)},
    r'vector must be .* not float32 \(3, 1, 2\)',
  ),
  'one-hot': ({'label': np.eye(3, dtype=np.int32)}, r'label must be .* not int32 \(3, 3\)'),
  'fractions': ({'label': np.ones(3, np.float32)}, r'label must be .* not float32'),
  'flags': ({'label': np.ones(3, bool)}, r'label must be .* not bool'),
  'above': (
    {'label': np.array([0, 5, 9])},
    'label 5 is no class: there are 0 to 3, and 4 for no condition',
  ),
  'below': ({'label': jnp.array([0, -1, 2])}, 'label -1 is no class'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_not_as_specified_is_refused_by_its_entry(case):
  changes, message = WRONG[case]
  given = {name: value for name, value in (cond() | changes).items() if value is not None}
  with pytest.raises(InputError, match=f'^cond: {message}'):
    checked(SPEC, given)


def test_traced_classes_are_clamped_and_never_wrap():
  @jax.jit
  def run(label):
    return checked(labels(4), {'label': label})['label']

  np.testing.assert_array_equal(run(jnp.array([-1, -9, 0, 3, 4, 5, 10**6])), [0, 0, 0, 3, 4, 4, 4])


def test_a_traced_condition_of_another_shape_is_refused():
  with pytest.raises(InputError, match=r'^cond: vector must be'):
    jax.eval_shape(lambda value: checked({'vector': VECTOR}, {'vector': value}), jnp.ones((3, 5)))


# Classes.


def test_the_classes_of_a_condition_are_those_of_its_one_class_entry():
  assert condition.class_name(SPEC) == 'label'
  np.testing.assert_array_equal(condition.classes_in(SPEC, cond(6)), [0, 1, 2, 3, 0, 1])
  other = {'vector': VECTOR, 'kind': class_field(2)}
  found = condition.classes_in(other, {'vector': jnp.ones((2, 2)), 'kind': jnp.array([1, 0])})
  np.testing.assert_array_equal(found, [1, 0])


@pytest.mark.parametrize(
  'spec', [{}, {'vector': VECTOR}, {**labels(3), 'kind': class_field(2)}], ids=['none', 'no', 'two']
)
def test_without_exactly_one_class_there_is_no_class(spec):
  assert condition.class_name(spec) is None
  assert condition.classes_in(spec, {}) is None


def test_the_null_of_a_class_is_the_number_after_the_last():
  for count in (1, 3, 1000):
    field = class_field(count)
    assert (field.null, field.classes) == (count, tuple(range(count)))
    checked(labels(count), condition.nulls(labels(count), 2))


def test_what_is_read_is_said_in_words_once():
  words = condition.titles(SPEC)
  assert re.split(', ', words) == ['label', 'vector', 'caption', 'picture']
