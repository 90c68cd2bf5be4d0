import pytest

from ddpm_jax.errors import InputError, Interrupted, choose

TABLE = {'simple': 1, 'hybrid': 2}


def test_what_is_in_the_table_is_given_as_it_is():
  assert [choose(TABLE, name, 'config.loss.name') for name in TABLE] == [1, 2]


def test_a_slip_of_the_pen_gets_field_options_and_the_nearest_in_one_line():
  with pytest.raises(InputError) as error:
    choose(TABLE, 'hybird', 'config.loss.name')
  assert str(error.value) == (
    "config.loss.name: 'hybird' is not one of simple, hybrid; did you mean 'hybrid'?"
  )


def test_nothing_is_suggested_where_nothing_is_near():
  with pytest.raises(InputError) as error:
    choose(TABLE, 'xyz', 'config.loss.name')
  assert str(error.value).endswith('is not one of simple, hybrid')


def test_an_interruption_carries_its_signal_and_is_no_bad_input():
  interruption = Interrupted(15, 'saved at step 3')
  assert interruption.signum == 15
  assert str(interruption) == 'saved at step 3'
  assert not isinstance(interruption, InputError)
