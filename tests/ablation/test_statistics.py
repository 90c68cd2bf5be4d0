import math

import numpy as np
import pytest

from ddpm_jax.ablation.results import clear_best, make_rows
from ddpm_jax.ablation.statistics import Difference, Mean, mean_error, paired
from ddpm_jax.ablation.words import show_interval, show_mean


def test_mean_and_its_error_by_hand():
  """2, 4, 9: mean 5, s² = (9 + 1 + 16) / 2 = 13, error sqrt(13 / 3)."""
  mean, error, count = mean_error([2.0, 4.0, 9.0])
  assert (mean, count) == (5, 3)
  assert error == pytest.approx(math.sqrt(13 / 3))


def test_three_pairs_by_a_printed_quantile():
  """d = 1, 2, 3: mean 2, s = 1; t(0.975; 2) = 4.303 in every table of Student's law."""
  found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
  assert found.mean == 2
  assert found.high - 2 == pytest.approx(4.303 / math.sqrt(3), rel=1e-3)
  assert found.low + found.high == pytest.approx(4)
  assert not found.excludes_zero


def test_the_interval_covers_the_truth_as_often_as_it_says():
  """A seed's own effect is ten times the noise; 4,000 experiments err by 3 sqrt(p q / n) = 1 %."""
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(4000):
    common = rng.normal(0, 10, 4)
    found = paired(common + rng.normal(0.7, 1, 4), common + rng.normal(0, 1, 4))
    covered += found.low <= 0.7 <= found.high
  assert covered / 4000 == pytest.approx(0.95, abs=0.0104)


def test_what_is_common_to_a_seed_cancels():
  common = np.array([0.0, 100.0, -50.0])
  assert paired(common + np.arange(1.0, 4.0), common) == paired([1.0, 2.0, 3.0], [0.0, 0.0, 0.0])


def test_one_seed_has_no_interval_and_excludes_nothing():
  assert math.isnan(mean_error([3.0]).error)
  found = paired([3.0], [1.0])
  assert found.mean == 2 and math.isnan(found.low) and not found.excludes_zero


@pytest.mark.parametrize('values', [[], [1.0, math.nan], [1.0, math.inf]])
def test_what_has_no_mean_is_not_one(values):
  assert math.isnan(mean_error(values).mean)


def seeds(*values):
  return dict(enumerate(values))


def test_the_best_is_best_only_beside_the_second():
  """Far from the third, but no further from the second than the seeds are from each other."""
  near = [seeds(1.0, 2.0, 3.0), seeds(2.1, 1.9, 3.3), seeds(11.0, 12.0, 13.0)]
  clear = [seeds(1.0, 2.0, 3.0), seeds(2.0, 3.0, 4.01), seeds(11.0, 12.0, 13.0)]
  for found, best in (near, None), (clear, 0):
    means = [mean_error(list(each.values())) for each in found]
    assert clear_best(found, means, -1) == best
  assert clear_best(clear, means, 1) == 2


def test_rows_compare_the_seeds_that_both_have():
  rows = make_rows(['a', 'b', 'c'], [seeds(1.0, 2.0, 30.0), {1: 5.0, 0: 3.0}, {}], -1, 0)
  assert rows[0].difference is None
  assert rows[1].difference == paired([3.0, 5.0], [1.0, 2.0])
  assert rows[2].difference.count == 0 and not rows[2].best


@pytest.mark.parametrize(
  ('mean', 'shown'),
  [
    (Mean(3.25817, 0.01234, 3), '3.258 ± 0.012'),
    (Mean(-12.3, 4.56, 3), '−12.3 ± 4.6'),
    (Mean(12345.6, 321.0, 3), '12346 ± 321'),
    (Mean(0.0123456, math.nan, 1), '0.01235'),
    (Mean(math.nan, math.nan, 0), '–'),
    (Mean(2.0, 0.0, 3), '2.000 ± 0.000'),
  ],
)
def test_digits_follow_the_error(mean, shown):
  assert show_mean(mean) == shown


def test_differences_are_signed():
  assert show_interval(Difference(-0.123, -0.2, -0.046, 3)) == ('−0.123', '[−0.200, −0.046]')
  assert show_interval(Difference(0.3, -12.0, 12.6, 3)) == ('+0', '[−12, 13]')
  assert show_interval(Difference(0.5, math.nan, math.nan, 1)) == ('+0.5000', '')
