"""Bounds in signatures: what is refused in which words, wherever the function is called."""

import dataclasses
import re
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Len, MultipleOf

from ddpm_jax.bounds import OneOf, bounded, check, check_fields, complaint, describe

RULES = {'midpoint': 1, 'heun': 2}


@pytest.mark.parametrize(
  ('hint', 'value', 'words'),
  [
    (Annotated[float, Interval(ge=0, lt=1)], 0.0, ''),
    (Annotated[float, Interval(ge=0, lt=1)], 1.0, '1.0 is outside [0, 1)'),
    (Annotated[float, Interval(gt=0, le=1e6)], 0.0, '0.0 is outside (0, 1e+06]'),
    (Annotated[float, Interval(ge=0, le=1)], float('nan'), 'nan is outside [0, 1]'),
    (Annotated[int, Ge(1)], 0, '0 must be at least 1'),
    (Annotated[float, Gt(0)], float('inf'), ''),
    (Annotated[int, Interval(ge=4, le=8), MultipleOf(4)], 6, '6 is not a multiple of 4'),
    (Annotated[int, Ge(1)] | None, None, ''),
    (Annotated[int, Ge(1)] | None, 0, '0 must be at least 1'),
    (tuple[Annotated[int, Ge(1)], ...], (2, 0), '0 must be at least 1, in (2, 0)'),
    (
      tuple[Annotated[int, Ge(1)], Annotated[int, Ge(5)]],
      (1, 4),
      '4 must be at least 5, in (1, 4)',
    ),
    (Annotated[tuple[int, ...], Len(1, 2)], (), '() is empty'),
    (Annotated[tuple[int, ...], Len(1, 2)], (1, 2, 3), '(1, 2, 3) has more than 2 elements'),
    (
      Annotated[str, OneOf(RULES)],
      'huen',
      "'huen' is not one of midpoint, heun; did you mean 'heun'?",
    ),
    (Literal[1, 2], True, 'True is not one of 1, 2'),
    (Literal[1, 2], 2, ''),
    (int, -1, ''),
  ],
  ids=str,
)
def test_a_complaint_says_what_is_wrong(hint, value, words):
  assert complaint(value, hint) == words


@pytest.mark.parametrize(
  ('hint', 'words'),
  [
    (Annotated[float, Interval(ge=0, lt=1)], 'in [0, 1)'),
    (Annotated[float, Gt(0)] | None, 'above 0'),
    (Annotated[int, Ge(4), MultipleOf(4)], 'at least 4, a multiple of 4'),
    (tuple[Annotated[int, Ge(1)], ...], 'each at least 1'),
    (Annotated[str, OneOf(RULES)], 'one of midpoint, heun'),
    (Literal[2, 4], 'one of 2, 4'),
    (str, ''),
  ],
  ids=str,
)
def test_bounds_in_words(hint, words):
  assert describe(hint) == words


@bounded
def function(eta: Annotated[float, Interval(ge=0, le=1)] = 0.5, *, rule: 'Rule' = 'heun'):
  return eta, rule


Rule = Annotated[str, OneOf(RULES)]


def test_a_bounded_function_names_its_argument():
  assert function() == (0.5, 'heun')
  for arguments, words in (((2.0,), r'^eta: 2\.0 is outside \[0, 1\]$'), ((-1,), '^eta: -1 is')):
    with pytest.raises(ValueError, match=words):
      function(*arguments)
  with pytest.raises(ValueError, match="^rule: 'huen' is not one of"):
    function(rule='huen')


def test_arrays_are_the_functions_own_business():
  assert function(jnp.array(2.0))[0] == 2


@dataclasses.dataclass
class Record:
  width: Annotated[int, Ge(1)] = 1


@pytest.mark.parametrize('value', [np.float32(2), np.int64(2)])
def test_scalars_of_numpy_are_numbers(value):
  @bounded
  def f(x: Annotated[float, Interval(ge=0, le=1)], n: Literal[1, 3] = 1):
    return x, n

  with pytest.raises(ValueError, match=r'^x: 2(\.0)? is outside \[0, 1\]$'):
    f(value)
  with pytest.raises(ValueError, match='^n: 2(.0)? is not one of 1, 3$'):
    f(np.float32(0.5), value)
  assert f(np.float32(0.5), np.int64(3)) == (0.5, 3)


@pytest.mark.parametrize(
  ('hint', 'value', 'words'),
  [
    (Annotated[int, Interval(ge=0, le=99)], 10.5, '10.5 is not a whole number'),
    (Annotated[float, Interval(ge=0, le=1)], 'a', "'a' is of a wrong type; in [0, 1] is wanted"),
    (Annotated[tuple[int, ...], Len(1, 2)], 3, '3 is of a wrong type'),
    (Annotated[str, OneOf(RULES)], 3, '3 is of a wrong type; one of midpoint, heun is wanted'),
  ],
)
def test_a_value_of_a_wrong_type_is_named_too(hint, value, words):
  with pytest.raises(ValueError, match=f'^x: {re.escape(words)}$'):
    check({'x': value}, {'x': hint})


def test_fields_are_arguments():
  check_fields(Record(2))
  with pytest.raises(ValueError, match='^width: 0 must be at least 1$'):
    check_fields(Record(0))
