"""What may be written where a table's entry is meant."""

import math

import pytest

from ddpm_jax.config import find_entry
from ddpm_jax.errors import InputError


def shifted(x, *, by: float = 1.0, times: int = 1):
  return x + by * times


def plain(x):
  return x


TABLE = {'shifted': shifted, 'plain': plain}


@pytest.mark.parametrize(
  ('text', 'value'),
  [
    ('plain', 10),
    ('plain()', 10),
    ('shifted', 11),
    ('shifted(by=3)', 13),
    (' shifted( by = -0.5, times=4 ) ', 8),
  ],
)
def test_an_expression_is_its_entry_with_its_arguments(text, value):
  assert find_entry(text, TABLE, 'field')(10) == value


def test_a_plug_in_may_have_arguments_too():
  assert find_entry('math:sqrt', TABLE, 'field') is math.sqrt
  assert find_entry(f'{__name__}:shifted(by=5)', TABLE, 'field')(1) == 6


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('shiftd', "field: 'shiftd' is not one of shifted, plain; did you mean 'shifted'?"),
    ('shifted(bye=1)', "field: 'shifted' has no argument 'bye'; it takes by, times"),
    ('shifted(x=1)', "field: 'shifted' has no argument 'x'; it takes by, times"),
    ('plain(by=1)', "field: 'plain' has no argument 'by'; it takes no arguments"),
    ('shifted(times=0.5)', 'field: times=0.5 is not of type int'),
    ('shifted(2)', "field: 'shifted(2)' is not of the form name(argument=value)"),
    ('shifted(by=', "field: 'shifted(by=' is not of the form"),
    ('shifted(by=print())', 'is not of the form name(argument=value)'),
    ('shifted(by=1)(by=2)', 'is not of the form name(argument=value)'),
    ('nowhere.module:f', "field: 'nowhere.module:f' cannot be imported"),
  ],
)
def test_what_is_no_expression_names_the_field_and_the_mend(text, message):
  with pytest.raises(InputError) as caught:
    find_entry(text, TABLE, 'field')
  assert message in str(caught.value)
