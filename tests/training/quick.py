"""Training whose steps do nothing, for tests of what a start reads and writes."""

import dataclasses

import pytest
from tiny import tiny

from ddpm_jax.tasks import train
from ddpm_jax.tasks.building import build
from ddpm_jax.training import loop
from ddpm_jax.training.metrics import Window

EVERY_STEP = {'training.num_steps': 1000, 'logging.every_steps': 1}
APART = {**EVERY_STEP, 'checkpoint.every_steps': 2}


def make_quick(patch):
  """Replaces what asks anything of the compiler or builds the experiment anew."""
  experiment = build(tiny(**EVERY_STEP))
  begin, fresh = loop.begin, []

  def once(job, checkpoints, batches):
    if checkpoints.latest_step() is not None:
      return begin(job, checkpoints, batches)
    fresh[:] = fresh or [begin(job, checkpoints, batches)[0]]
    return fresh[0], Window()

  def advance(state, batches, count):
    next(batches)
    return state.replace(step=state.step + 1), {'loss': 1.0}

  patch.setattr(train, 'build', lambda config: dataclasses.replace(experiment, config=config))
  patch.setattr(train, 'check_training', lambda experiment, job: None)
  patch.setattr(loop, 'begin', once)
  patch.setattr(loop, 'make_advance', lambda job, frozen: advance)


@pytest.fixture
def quick(monkeypatch):
  make_quick(monkeypatch)


def start(workdir, config, count=1):
  """The steps that so many calls reach."""
  run = train.steps(config, workdir)
  try:
    return [next(run)[0] for _ in range(count)]
  finally:
    run.close()


def apart(folder, **settings):
  """A quick run that keeps its checkpoints in this folder."""
  return tiny(**APART, **{'checkpoint.folder': str(folder)}, **settings)


def trained(workdir, kept, last=5):
  """Trains beyond a checkpoint, and ends without saving."""
  assert start(workdir, apart(kept), last) == [*range(1, last + 1)]
