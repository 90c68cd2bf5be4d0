import pytest

from ddpm_jax.errors import InputError, Interrupted, choose, nearest

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


SAMPLERS = (
  'ancestral', 'ddim', 'euler', 'heun', 'dpm2', 'dpm_solver', 'dpmpp_2s', 'dpmpp_2m', 'dpmpp_3m',
  'euler_ancestral', 'dpm2_ancestral', 'dpmpp_sde', 'dpmpp_2m_sde', 'dopri5',
)  # fmt: skip


@pytest.mark.parametrize(
  ('written', 'meant'),
  [
    ('dpm++', 'dpmpp_2m'),
    ('dpm++ 2m', 'dpmpp_2m'),
    ('DPM++ 2M Karras', 'dpmpp_2m'),
    ('DPM++ 2M SDE', 'dpmpp_2m_sde'),
    ('ddpm', 'ancestral'),
    ('euler a', 'euler_ancestral'),
    ('Euler a', 'euler_ancestral'),
    ('k_euler', 'euler'),
    ('k_dpm_2_a', 'dpm2_ancestral'),
    ('DDIMScheduler', 'ddim'),
    ('dopri', 'dopri5'),
    ('euler_ancestrl', 'euler_ancestral'),
    ('hune', 'heun'),
    ('', None),
  ],
)
def test_names_as_people_write_them(written, meant):
  assert nearest(written, SAMPLERS) == meant
