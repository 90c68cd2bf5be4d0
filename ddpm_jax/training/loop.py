"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, NoReturn

import jax
from etils import epath

from ddpm_jax import data
from ddpm_jax.config.settings import Config
from ddpm_jax.errors import Failed, Interrupted
from ddpm_jax.training import hosts
from ddpm_jax.training.advance import make_advance
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.job import Job
from ddpm_jax.training.metrics import Window
from ddpm_jax.training.report import Report, due
from ddpm_jax.training.start import begin
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.stopping import stopping

# Calls of which a host has the batches in hand: where the data of one fails, it can keep step with
# the others until all have agreed where to stop, which is at most four calls later.
AHEAD = 8


def advance_all(
  job: Job, checkpoints: Checkpoints, workdir: epath.Path
) -> Generator[tuple[int, TrainState]]:
  """Goes on from the newest checkpoint to the last step."""
  config, num_steps = job.config, job.config.training.num_steps
  batches = data.Ahead(read_stream(job))
  frozen = job.parallel.place_state(job.frozen)
  state, window = begin(job, checkpoints, batches)
  step = saved = int(state.step)
  if step >= num_steps:
    hosts.say(f'{workdir}: already finished at step {step} of {num_steps}')
    return
  advance = make_advance(job, frozen)
  with hosts.together():
    read_on(batches, config, step)
    raise_fault(batches)
  hosts.begin_log(workdir)
  if hosts.is_first():
    job.begun(workdir, step)

  def save() -> None:
    """Waits for the steps under way, since their metrics are part of the record."""
    begun = time.monotonic()
    report.complete(window.flush())
    report.keep()
    record = {'data': batches.get_state(), 'window': window.record(), **job.record}
    checkpoints.save(step, job.parallel.for_checkpoint(state), record)
    report.time_save(begun, checkpoints.wait_beside)

  report = Report(job, frozen, workdir, checkpoints.folder, window, step)
  with report, stopping() as asked:
    while step < num_steps and not asked():
      count = steps_at_once(step, config)
      state, metrics = advance(state, batches, count)
      step += count
      report.complete(window.add(step, metrics))
      check_skipped(window, config)
      report.look(step, state)
      if due(step, config.checkpoint.every_steps, num_steps):
        save()
        saved = step
      yield step, state
      read_on(batches, config, step)
      if batches.fault:
        asked.end()
    if saved < step:
      save()
    checkpoints.wait()
  if step < num_steps:
    raise_end(batches, asked.signum, step)
  report.summary()


def read_stream(job: Job) -> Any:
  """This host's batches, from the first."""
  config = job.config
  place = jax.process_index(), jax.process_count()
  return data.train_iterator(job.dataset, config.dataset.batch_size, config.seed, *place)


def read_on(batches: data.Ahead, config: Config, step: int) -> None:
  """Reads the batches of the next call, or with several hosts of the next AHEAD."""
  calls = 1 if jax.process_count() == 1 else AHEAD
  left = config.training.num_steps - step
  batches.fill(min(left, calls * config.parallel.steps_per_dispatch))


def raise_fault(batches: data.Ahead) -> None:
  """Raises what the data raised, if anything."""
  if batches.fault:
    raise batches.fault


def raise_end(batches: data.Ahead, signum: int, step: int) -> NoReturn:
  """Raises what ended a run that is saved at `step`: a fault in a host's data, or a signal."""
  with hosts.together():
    raise_fault(batches)
  told = f'interrupted and saved at step {step}' if step else 'interrupted before the first step'
  raise Interrupted(signum, f'{told}; the same command goes on from there')


def steps_at_once(step: int, config: Config) -> int:
  """`parallel.steps_per_dispatch` where nothing is due before the last of them, else one."""
  count, num_steps = config.parallel.steps_per_dispatch, config.training.num_steps
  periods = (
    config.logging.every_steps,
    config.logging.preview_every_steps,
    config.evaluation.every_steps,
    config.checkpoint.every_steps,
  )
  before = range(step + 1, step + count)
  busy = any(due(number, every, num_steps) for number in before for every in periods)
  return 1 if busy else count


def check_skipped(window: Window, config: Config) -> None:
  """Raises Failed where steps have been skipped for too long to hope."""
  if window.skipped >= config.training.max_skipped:
    raise Failed(
      f'{window.skipped} steps in a row had a loss or a gradient that is not finite, and were '
      'skipped (config.training.max_skipped); the newest checkpoint is finite: begin anew with a '
      'lower config.optimizer.learning_rate or with config.optimizer.clip_norm'
    )
