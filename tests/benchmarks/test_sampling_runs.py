"""What experiments.benchmark --sampling compares: the same samples, made in several ways."""

import dataclasses

import jax
import numpy as np
import pytest

from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.drawing import evaluations
from experiments.benchmarks.sampling_runs import (
  RUNS,
  make_batch,
  make_loop,
  make_program,
  make_runs,
)


@pytest.fixture
def small(experiment):
  """Makes the session's experiment anew, with other settings of the sampler and 8 samples."""

  def make(**settings):
    config = experiment.config
    changed = dataclasses.replace(
      config,
      sampler=dataclasses.replace(config.sampler, **settings),
      evaluation=dataclasses.replace(config.evaluation, batch_size=8),
    )
    return build(changed, experiment.dataset)

  return make


@pytest.mark.parametrize('name', ['ddim', 'ancestral', 'heun', 'dpmpp_2m_sde'])
def test_the_loop_draws_what_the_program_draws(small, params, name):
  experiment = small(name=name, num_steps=3)
  batch = make_batch(experiment)._replace(params=params)
  program, loop = (make(experiment)(batch) for make in (make_program, make_loop))
  np.testing.assert_allclose(program, loop, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_the_network_alone_is_evaluated_as_often(small, guidance):
  """By a network that counts its rows at run time."""
  experiment, rows = small(name='heun', num_steps=3, guidance=guidance), []

  def counting(params, x, noise_label, cond):
    jax.debug.callback(lambda: rows.append(x.shape[0]))
    return experiment.network(params, x, noise_label, cond)

  counted, totals = dataclasses.replace(experiment, network=counting), []
  for make in RUNS.values():
    rows.clear()
    jax.block_until_ready(make(counted)(make_batch(experiment)))
    jax.effects_barrier()
    totals.append(sum(rows))
  assert totals == 3 * [8 * evaluations(experiment)]


def test_a_run_is_one_program_however_often_it_is_drawn(small):
  runs = make_runs(small(num_steps=2))
  assert set(runs) == set(RUNS)
  assert all(run() > 0 for run in runs.values())
