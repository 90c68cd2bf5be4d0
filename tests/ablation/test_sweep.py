import itertools

import pytest

from ddpm_jax.ablation import COMBINATIONS, grid, listed, vary, zipped
from ddpm_jax.ablation.sweep import split_values
from ddpm_jax.errors import InputError

LOSSES = vary('loss.name', 'simple', 'variational')
RATES = vary('optimizer.learning_rate', 1e-3, 2e-3)


def pairs(sweep):
  return [(each['loss.name'], each['optimizer.learning_rate']) for each in sweep]


def test_a_grid_is_the_product():
  both = itertools.product(('simple', 'variational'), (1e-3, 2e-3))
  assert pairs(grid(LOSSES, RATES)) == list(both)


def test_zipped_is_a_zip():
  assert pairs(zipped(LOSSES, RATES)) == [('simple', 1e-3), ('variational', 2e-3)]


def test_listed_is_one_after_another():
  assert listed(LOSSES, RATES) == [*LOSSES, *RATES]


def test_combinations_nest():
  sweep = listed(grid(zipped(LOSSES, RATES), vary('seed', 0, 1)), [{}])
  assert len(sweep) == 5 and sweep[1] == {
    'loss.name': 'simple',
    'optimizer.learning_rate': 1e-3,
    'seed': 1,
  }


@pytest.mark.parametrize('combine', COMBINATIONS)
def test_one_setting_is_itself_in_every_combination(combine):
  assert COMBINATIONS[combine](LOSSES) == LOSSES


def test_zipped_refuses_unequal_lengths():
  with pytest.raises(InputError, match=r'loss.name 2; seed 3'):
    zipped(LOSSES, vary('seed', 0, 1, 2))


def test_a_setting_is_set_once():
  with pytest.raises(InputError, match=r"config.loss.name: set twice .* 'simple' and 'simple'"):
    grid(LOSSES, LOSSES)


@pytest.mark.parametrize(
  ('text', 'parts'),
  [
    ('a,b', ['a', 'b']),
    (' a , b ', ['a', 'b']),
    ('min_snr(gamma=5),p2(gamma=1, k=1)', ['min_snr(gamma=5)', 'p2(gamma=1, k=1)']),
    ('(1, 2),(1, [2, 3])', ['(1, 2)', '(1, [2, 3])']),
    ('\'a,b\',"c,(d"', ["'a,b'", '"c,(d"']),
    ('{1: (2, 3)}', ['{1: (2, 3)}']),
  ],
)
def test_values_are_split_outside_brackets_and_quotes(text, parts):
  assert split_values(text) == parts


@pytest.mark.parametrize('text', ['a,,b', 'a,', '', '(1, 2', '1)', "'a"])
def test_values_that_cannot_be_split(text):
  with pytest.raises(InputError, match='missing|not closed'):
    split_values(text)
