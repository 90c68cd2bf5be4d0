"""The comparison with diffusers: what it says without it, its measure, and the rows themselves."""

import importlib.util
import math
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.samplers import sample
from experiments.benchmarks import parity, parity_cases
from experiments.benchmarks.parity_cases import CALLS, CASES, PLAIN, described

ROOT = pathlib.Path(__file__).parents[2]
QUICK = ('DDPM', 'PNDM', 'HeunDiscrete', 'DEISMultistep')
HAVE = all(importlib.util.find_spec(name) for name in parity.WANTED)


@pytest.mark.skipif(HAVE, reason='diffusers is installed')
def test_without_diffusers_one_line_says_what_to_install():
  command = [sys.executable, '-m', 'experiments.benchmarks.parity']
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 2 and not done.stdout
  (line,) = done.stderr.splitlines()
  assert 'pip install' in line and 'diffusers' in line


def test_a_row_holds_where_it_agrees_or_says_why_not():
  def holds(deviation, why):
    return parity.Row('ours', 'theirs', [deviation], why).holds

  assert holds(1e-6, '') and holds(1e-2, 'a reason') and holds(math.inf, 'a reason')
  assert not holds(1e-2, '') and not holds(1e-6, 'no longer true') and not holds(math.nan, '')


def test_calls_are_those_that_the_schedulers_make():
  # Runge-Kutta evaluates four times a step, Heun twice but for the step to data.
  assert CALLS['runge-kutta thrice'](29) == [4, 4, 4] + [1] * 17
  assert CALLS['two'](39) == [2] * 19 + [1]
  assert CALLS['heun once'](21) == [2] + [1] * 19


def test_settings_are_shown_once():
  assert described('UniPC', PLAIN | dict(solver_order=3)) == 'UniPC(plain, solver_order=3)'
  assert described('DDIM', {}, dict(eta=0.5)) == 'DDIM(step eta=0.5)'


def test_every_reason_is_shown_by_a_pair_that_differs_in_it_alone():
  reasons = [case for case in CASES if case.why]
  agreeing = {case.theirs for case in CASES if not case.why}
  assert reasons and {case.theirs for case in reasons} <= agreeing


def test_heun_of_x_is_exact_for_straight_lines(x64):
  # A point mass at 2 has the paths (1 - t) 2 + t eps: any method for x over t keeps to them.
  schedule = schedules.flow()
  times, eps = np.array([1.0, 0.7, 0.2, 0.05]), np.array([[0.3], [-1.2]])
  keys = jax.random.split(jax.random.key(0), 2)
  _, path = sample(
    parity_cases.heun_of_x(),
    lambda xt, t: Denoised(2.0 + 0 * xt),
    schedule,
    jax.numpy.asarray(times),
    jax.numpy.asarray(eps),
    keys,
    return_path=True,
    final='keep',
  )
  np.testing.assert_allclose(path, (1 - times[:, None, None]) * 2 + times[:, None, None] * eps)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('theirs', QUICK)
def test_schedulers_do_as_their_rows_say(theirs, x64):
  for name in parity.WANTED:
    pytest.importorskip(name)
  from experiments.benchmarks import torch_schedulers

  for case in CASES:
    if case.theirs == theirs and not case.why:
      assert torch_schedulers.of_case(case, case.num_steps) < parity.AGREE
