"""How a run hears that it is to end."""

import os
import signal

import pytest

from ddpm_jax.training.stopping import stopping


def test_a_second_sigterm_leaves_the_run_the_time_to_save():
  """As `scancel` and a preemption of Slurm send it, within a tenth of a second."""
  with stopping() as asked:
    for _ in range(3):
      os.kill(os.getpid(), signal.SIGTERM)
    assert asked() and asked.signum == signal.SIGTERM


def test_a_second_ctrl_c_acts_at_once():
  with stopping() as asked:
    os.kill(os.getpid(), signal.SIGINT)
    assert asked()
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
