import math

import pytest

from ddpm_jax.evaluation.available import LEFT_OUT, Unavailable, collect, merge


def fail(error):
  raise error


def test_a_figure_that_cannot_be_had_is_none_with_its_reason():
  found = collect(
    {
      'a': lambda: 1.5,
      'b': lambda: fail(Unavailable('one image')),
      'c': lambda: math.nan,
      'd': lambda: math.inf,
    }
  )
  reasons = {'b': 'one image', 'c': 'not a number', 'd': 'infinite'}
  assert found == {'a': 1.5, 'b': None, 'c': None, 'd': None, LEFT_OUT: reasons}
  assert collect({'a': lambda: 0.0}) == {'a': 0.0}


def test_other_errors_are_not_hidden():
  with pytest.raises(ZeroDivisionError):
    collect({'a': lambda: 1 / 0})


def test_parts_keep_all_their_reasons():
  parts = [{'a': 1, 'b': None, LEFT_OUT: {'b': 'x'}}, {'c': 2}, {'d': None, LEFT_OUT: {'d': 'y'}}]
  merged = merge(*parts)
  assert merged == {'a': 1, 'b': None, 'c': 2, 'd': None, LEFT_OUT: {'b': 'x', 'd': 'y'}}
  assert LEFT_OUT not in merge({'a': 1}, {'c': 2})
