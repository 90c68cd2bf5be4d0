"""The training loop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from etils import epath
from jax import Array

from ddpm_jax import data
from ddpm_jax.config.settings import Config
from ddpm_jax.data.dataset import Batch
from ddpm_jax.errors import Failed, InputError, Interrupted
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, record_of
from ddpm_jax.training.ema import decays
from ddpm_jax.training.job import Job
from ddpm_jax.training.metrics import Window
from ddpm_jax.training.report import Report, due
from ddpm_jax.training.state import TrainState, new_state
from ddpm_jax.training.step import Step, make_train_step, several
from ddpm_jax.training.stopping import stopping
from ddpm_jax.training.task import digest, refuse_changed

Advance = Callable[[TrainState, Iterator[Batch], int], tuple[TrainState, Any]]

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


def make_step(job: Job) -> Step:
  """The job's training step, not yet compiled."""
  config, parallel = job.config, job.parallel
  microbatches = config.parallel.microbatches
  return make_train_step(
    job.task,
    decays=decays(config),
    ema_warmup=config.ema.warmup,
    seed=config.seed,
    mean=parallel.mean,
    gather=parallel.gather if microbatches == 1 else refuse_gather,
    microbatches=microbatches,
  )


def refuse_gather(values: Array) -> Array:
  """Stands for the `gather` of a loss where the whole batch is never there at once."""
  del values
  raise InputError(
    'config.parallel.microbatches: this loss couples all examples of a batch, which come in parts; '
    'set it to 1'
  )


def make_advance(job: Job, frozen: Any) -> Advance:
  """Makes advance(state, batches, count) -> (state, metrics): so many steps at one call."""
  step, parallel = make_step(job), job.parallel
  one, many = parallel.compile(step), parallel.compile(several(step))

  def advance(state: TrainState, batches: Iterator[Batch], count: int) -> tuple[TrainState, Any]:
    if count == 1:
      return one(state, frozen, parallel.place_batch(next(batches)))
    taken = [next(batches) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *taken)
    return many(state, frozen, parallel.place_batch(stacked, axis=1))

  return advance


def begin(job: Job, checkpoints: Checkpoints, batches: data.Ahead) -> tuple[TrainState, Window]:
  """The newest checkpoint's state, on the devices, and its position in the data; or a new run's."""
  parallel, newest = job.parallel, checkpoints.latest_step()
  if newest is None:
    return first_state(job), Window()
  state, record = restored(job, checkpoints, newest)
  if not is_record(record):
    raise checkpoints.damaged(newest, 'its record is not one that training writes')
  refuse_changed(record.get('frozen'), job.record['frozen'])
  batches.set_state(record['data'])
  return parallel.place_state(state), Window(record['window'])


def restored(job: Job, checkpoints: Checkpoints, step: int) -> tuple[TrainState, Any]:
  """A checkpoint's state and record; in format 1 a teacher was in the loss's state."""
  like = job.shapes
  found = hosts.from_first(lambda: record_of(checkpoints.folder, step))
  earlier = isinstance(found, Mapping) and 'frozen' not in found and 'teacher' in job.frozen
  if earlier:
    like = dataclasses.replace(like, loss_state={'teacher': like.params['network']})
  state, record = checkpoints.restore(step, job.parallel.layout(like))
  if not earlier:
    return state, record
  kept = job.parallel.on_one_device(job.parallel.place_state(state.loss_state['teacher']))
  refuse_changed({'teacher': {'xxh128': digest(kept)}}, job.record['frozen'])
  return dataclasses.replace(state, loss_state=()), record


def first_state(job: Job) -> TrainState:
  """The state before the first step, on the devices."""
  if job.given is None:
    return job.parallel.create(lambda: new_state(job.task, job.config))
  return job.parallel.place_state(new_state(job.task, job.config, job.given()))


# What a checkpoint's record holds: the position in the data, and Window's.
RECORD = {
  'data': {'next_index': int},
  'window': {'count': int, 'sums': dict, 'missed': int, 'skipped': int},
}


def is_record(record: Any) -> bool:
  """Whether a checkpoint's record is of the form RECORD."""
  return is_of_form(record, RECORD) and all(
    isinstance(total, (int, float)) for total in record['window']['sums'].values()
  )


def is_of_form(tree: Any, form: Any) -> bool:
  """Whether a tree of dicts has these keys, and values of these types."""
  if isinstance(form, type):
    return type(tree) is form
  return isinstance(tree, dict) and all(
    key in tree and is_of_form(tree[key], part) for key, part in form.items()
  )


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
