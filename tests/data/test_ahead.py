import numpy as np
import pytest

from ddpm_jax.data import Ahead
from ddpm_jax.errors import InputError


class Numbers:
  """0, 1, 2, … but for one that cannot be read."""

  def __init__(self, cut=None):
    self.next, self.cut = 0, cut

  def __next__(self):
    if self.next == self.cut:
      raise InputError(f'{self.cut} is cut')
    self.next += 1
    return {'image': np.array(self.next - 1)}

  def get_state(self):
    return {'next_index': self.next}

  def set_state(self, state):
    self.next = state['next_index']


def take(batches, count):
  return [int(next(batches)['image']) for _ in range(count)]


def test_it_is_the_stream_and_its_position_is_that_of_what_was_taken():
  batches = Ahead(Numbers())
  batches.fill(5)
  assert take(batches, 3) == [0, 1, 2]
  assert batches.get_state() == {'next_index': 3}
  again = Ahead(Numbers())
  again.fill(2)
  again.set_state(batches.get_state())
  assert take(again, 4) == take(batches, 4) == [3, 4, 5, 6]


def test_a_fault_is_known_before_its_turn_and_raised_at_it():
  batches = Ahead(Numbers(cut=4))
  batches.fill(4)
  assert batches.fault is None
  batches.fill(5)
  assert str(batches.fault) == '4 is cut'
  assert take(batches, 4) == [0, 1, 2, 3]
  assert batches.get_state() == {'next_index': 4}
  with pytest.raises(InputError, match='4 is cut'):
    next(batches)
