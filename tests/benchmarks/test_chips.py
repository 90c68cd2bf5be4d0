import numpy as np
import pytest

from experiments.benchmarks.chips import CHIPS, Chip, all_reduce_seconds, efficiency


def ring_bytes(count, size):
  """What one chip of a ring sends until all have the sum, simulated piece by piece."""
  # pieces[chip, piece]: whose terms it has
  pieces = np.stack([np.tile(np.eye(count)[chip], (count, 1)) for chip in range(count)])
  sent = 0
  for turn in range(2 * (count - 1)):
    moved = pieces.copy()
    for chip in range(count):
      piece, after = (chip - turn) % count, (chip + 1) % count
      moved[after, piece] = np.maximum(pieces[after, piece], pieces[chip, piece])
    pieces, sent = moved, sent + size / count
  assert pieces.all(), 'every chip has every term of every piece'
  return sent


@pytest.mark.parametrize('count', [2, 3, 8])
def test_a_slice_sends_what_a_ring_does(count):
  chip = Chip(1.0, 10.0, 64, 1.0, '')
  assert all_reduce_seconds(chip, count, 100.0) == pytest.approx(ring_bytes(count, 100.0) / 10.0)


def test_slices_send_each_chips_share_over_the_network():
  chip = Chip(1.0, 10.0, 4, 2.0, '')
  within = ring_bytes(4, 100.0) / 10.0
  between = ring_bytes(3, 100.0 / 4) / 2.0
  assert all_reduce_seconds(chip, 12, 100.0) == pytest.approx(within + between)
  with pytest.raises(ValueError, match='6 chips are not whole slices of 4'):
    all_reduce_seconds(chip, 6, 1.0)


@pytest.mark.parametrize('name', CHIPS)
def test_more_to_compute_hides_more_of_what_is_sent(name):
  few, many = (
    efficiency(CHIPS[name], 4096, parameters=10**8, flops=1e10, batch=b, share=0.5) for b in (1, 64)
  )
  alone = efficiency(CHIPS[name], 1, parameters=10**8, flops=1e10, batch=1, share=0.5)
  assert alone == (1, 1)
  assert few.apart < many.apart < 1 and few.hidden <= many.hidden <= 1
  assert few.apart >= few.hidden / 2, 'overlap gains a factor of two at most'
