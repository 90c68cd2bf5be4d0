import re

import numpy as np
import pytest
from tiny import tiny

from ddpm_jax.tasks.checks import rate_jump


def of(lr_schedule, num_steps):
  settings = {'lr_schedule': lr_schedule, 'learning_rate': 5e-4, 'warmup_steps': 10}
  named = {f'optimizer.{name}': value for name, value in settings.items()}
  return tiny(**named, **{'training.num_steps': num_steps})


@pytest.mark.parametrize('lr_schedule', ['constant', 'inverse_sqrt'])
def test_a_rate_that_does_not_know_the_end_goes_on_without_a_word(lr_schedule):
  assert rate_jump(of(lr_schedule, 200), 100, 100) is None


@pytest.mark.parametrize('lr_schedule', ['cosine', 'linear'])
@pytest.mark.parametrize('step', [50, 100])
def test_a_rate_that_jumps_is_told_with_both_rates(lr_schedule, step):
  """After n of N steps beyond the warm-up: (1 + cos(pi n / N)) / 2 and 1 - n / N of the peak."""
  course = {'cosine': lambda x: (1 + np.cos(np.pi * x)) / 2, 'linear': lambda x: 1 - x}[lr_schedule]
  old, new = 5e-4 * course((step - 11) / 90), 5e-4 * course((step - 10) / 190)
  line = rate_jump(of(lr_schedule, 200), 100, step)
  told = re.search(r'was 100 and is 200: the learning rate jumps from (\S+) to ([^;]+); ', line)
  np.testing.assert_allclose([float(told[1]), float(told[2])], [old, new], rtol=5e-3)
  assert 'config.training.init_from' in line and '\n' not in line
  assert rate_jump(of(lr_schedule, 100), 100, step) is None
