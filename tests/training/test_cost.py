"""What a run says of its cost, against sums by hand."""

import json

import pytest
from tiny import tiny

from ddpm_jax.tasks.train import train
from ddpm_jax.training import cost
from ddpm_jax.training.cost import Bill, Start, amount

HOUR = 3600.0


@pytest.fixture
def clock(monkeypatch):
  """The time in seconds, and eight chips."""
  now = [0.0]
  monkeypatch.setattr(cost.time, 'monotonic', lambda: now[0])
  monkeypatch.setattr(cost.jax, 'device_count', lambda: 8)
  return now


def test_a_start_costs_its_chips_for_its_hours_at_the_price(clock, tmp_path):
  bill = Bill(tmp_path, 0, 1.5)
  assert not [*bill.lines()]
  clock[0] = HOUR / 3
  bill.reached(2000)
  clock[0] = HOUR / 2  # previews after the last step
  bill.close()
  (line,) = bill.lines()
  hours = '4.00 chip-hours, 6.00 in money, 3.00 for every 1,000 steps'
  assert line == f'cost of this start: {hours}, at 1.50 per chip-hour'


def test_earlier_starts_count_with_the_steps_that_they_lost_and_their_own_price(clock, tmp_path):
  first = Bill(tmp_path, 0, 1.0)
  clock[0] = HOUR
  first.reached(1200)  # killed here, at whose last checkpoint the next start goes on
  second = Bill(tmp_path, 1000, 2.0)
  clock[0] = 2 * HOUR
  second.reached(2000)
  mine, all_of_them = second.lines()
  assert '8.00 chip-hours, 16.00 in money, 16.00 for every 1,000 steps' in mine
  assert 'all 2 starts: 16.00 chip-hours, 24.00 in money, 12.00 for every' in all_of_them


def test_of_a_killed_start_a_minute_at_most_is_not_counted(clock, tmp_path):
  bill = Bill(tmp_path, 0, 1.0)
  for second in range(300):
    clock[0] = float(second)
    bill.reached(1 + second)
    if second >= 60:
      assert second - cost.read(tmp_path / cost.FILE)[0].seconds < 60


def test_a_run_keeps_its_cost_and_the_next_start_says_both(tmp_path, capsys):
  train(tiny(**{'logging.price_per_chip_hour': 3.0, 'training.num_steps': 10}), tmp_path)
  assert 'cost of this start' in capsys.readouterr().out
  train(tiny(**{'logging.price_per_chip_hour': 3.0, 'training.num_steps': 20}), tmp_path)
  assert 'cost of all 2 starts' in capsys.readouterr().out
  first, second = (Start(**row) for row in json.loads((tmp_path / cost.FILE).read_text()))
  assert (first.from_step, first.to_step, second.from_step, second.to_step) == (0, 10, 10, 20)
  assert first.chips == 8 and 0 < second.seconds < 600
  assert second.money == pytest.approx(3 * 8 * second.seconds / HOUR)


def test_a_file_that_is_cut_is_not_overwritten(tmp_path):
  (tmp_path / cost.FILE).write_text('[')
  with pytest.raises(json.JSONDecodeError):
    Bill(tmp_path, 0, 1.0)


def test_without_a_price_nothing_is_said_or_written(tmp_path, capsys):
  train(tiny(**{'training.num_steps': 10}), tmp_path)
  assert 'cost' not in capsys.readouterr().out and not (tmp_path / cost.FILE).exists()


def test_amounts():
  assert [amount(x) for x in (1234.5, 1.0, 0.2, 0.0123)] == ['1,234.50', '1.00', '0.20', '0.012']
