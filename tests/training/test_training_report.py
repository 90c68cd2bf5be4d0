import pytest

from ddpm_jax.training.report import told_of_save


@pytest.mark.parametrize(('seconds', 'warns'), [(29.9, False), (30.0, False), (30.1, True)])
def test_a_save_that_takes_longer_than_a_stop_gives_is_warned_of(seconds, warns):
  told = told_of_save(seconds, 30.0)
  assert told.startswith(f'saving a checkpoint takes {seconds} s')
  assert ('config.checkpoint.grace_seconds=30 s' in told) is warns and '\n' not in told
