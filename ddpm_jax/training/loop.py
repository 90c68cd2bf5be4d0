"""The training loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from ddpm_jax import data, logs
from ddpm_jax.config import Config, plain_group, plugin_sources
from ddpm_jax.data.dataset import Batch
from ddpm_jax.errors import Failed, Interrupted
from ddpm_jax.stores import check_reached, path_of
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, folder_of
from ddpm_jax.training.checks import check_training, rate_jump, remarks
from ddpm_jax.training.copies import CONFIG, bring_back
from ddpm_jax.training.disk import check_disk, full_disk
from ddpm_jax.training.experiment import Experiment, build, make_step, new_state
from ddpm_jax.training.identity import identity, note_unknown
from ddpm_jax.training.metrics import Window
from ddpm_jax.training.ownership import alone, refuse_foreign
from ddpm_jax.training.parallel import Parallel, all_devices, check_batch_size, make_parallel
from ddpm_jax.training.report import Report, due
from ddpm_jax.training.run import initial_params, read_record, write_record
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.step import several
from ddpm_jax.training.stopping import stopping

Advance = Callable[[TrainState, Iterator[Batch], int], tuple[TrainState, Any]]

# Calls of which a host has the batches in hand: where the data of one fails, it can keep step with
# the others until all have agreed where to stop, which is at most four calls later.
AHEAD = 8


def train(config: Config, workdir: str | os.PathLike[str], plugins: Collection[str] = ()) -> None:
  """Trains an experiment in its folder, going on from the newest checkpoint there.

  A run that was interrupted, even by kill -9, and started again ends with the same parameters and
  metrics, bit for bit, as one that was not (on a GPU under training.deterministic).

  Args:
    config: the experiment.
    workdir: its folder.
    plugins: modules whose functions the run of `training.init_from` may name; see `load_run`.

  Raises:
    InputError: the config, the data or the folder is not fit for it; nothing is overwritten.
    Interrupted: SIGINT or SIGTERM came; the run is saved.
    Failed: losses stay infinite, the disk is full or another host has gone; what was saved stays.
  """
  with logs.kept(), hosts.lost_hosts(), full_disk(workdir):
    for _ in steps(config, workdir, plugins):
      pass


def steps(
  config: Config, workdir: str | os.PathLike[str], plugins: Collection[str] = ()
) -> Generator[tuple[int, TrainState]]:
  """`train`, call by call: yields the step reached and its state, which the next call donates."""
  with hosts.together():
    workdir, folder = folders(workdir, config)
  experiment = fit(config, workdir, folder)
  with alone(workdir, folder):
    # Again: another may have trained there until now.
    hosts.from_first(lambda: refuse_foreign(workdir, config))
    if hosts.is_first():
      bring_back(workdir, folder)
    with Checkpoints(folder, config.checkpoint.keep) as checkpoints:
      yield from advance_all(experiment, checkpoints, workdir, plugins)


def folders(workdir: str | os.PathLike[str], config: Config) -> tuple[epath.Path, epath.Path]:
  """Where a run is kept, and its checkpoints.

  Raises:
    InputError: they are in a store that cannot be reached.
  """
  workdir = path_of(workdir, '--workdir')
  checkpoints = folder_of(workdir, config.checkpoint.folder)
  check_reached(workdir, '--workdir')
  check_reached(checkpoints, 'config.checkpoint.folder')
  return workdir, checkpoints


def advance_all(
  experiment: Experiment,
  checkpoints: Checkpoints,
  workdir: epath.Path,
  plugins: Collection[str] = (),
) -> Generator[tuple[int, TrainState]]:
  """Goes on from the newest checkpoint to the last step."""
  config, num_steps = experiment.config, experiment.config.training.num_steps
  parallel = make_parallel(config.parallel, all_devices())
  advance = make_advance(experiment, parallel)
  batches = read_ahead(experiment)
  state, window = begin(experiment, parallel, checkpoints, batches, plugins)
  step = saved = int(state.step)
  if step >= num_steps:
    hosts.say(f'{workdir}: already finished at step {step} of {num_steps}')
    return
  with hosts.together():
    read_on(batches, config, step)
    raise_fault(batches)
  hosts.begin_log(workdir)
  if hosts.is_first():
    tell_begun(experiment, workdir, step)
    write_record(workdir, experiment)
  named, folder = identity(config), checkpoints.folder

  def save() -> None:
    """Waits for the steps under way, since their metrics are part of the record."""
    begun = time.monotonic()
    report.complete(window.flush())
    report.keep()
    record = {'data': batches.get_state(), 'window': window.record(), 'experiment': named}
    checkpoints.save(step, parallel.for_checkpoint(state), record)
    report.time_save(begun, checkpoints.wait_beside)

  with Report(experiment, parallel, workdir, folder, window, step) as report, stopping() as asked:
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
    with hosts.together():
      raise_fault(batches)
    told = f'interrupted and saved at step {step}' if step else 'interrupted before the first step'
    raise Interrupted(asked.signum, f'{told}; the same command goes on from there')
  report.summary()


def read_ahead(experiment: Experiment) -> data.Ahead:
  """This host's batches."""
  config = experiment.config
  stream = data.train_iterator(
    experiment.dataset,
    config.dataset.batch_size,
    config.seed,
    jax.process_index(),
    jax.process_count(),
  )
  return data.Ahead(stream)


def read_on(batches: data.Ahead, config: Config, step: int) -> None:
  """Reads the batches of the next call, or with several hosts of the next AHEAD."""
  calls = 1 if jax.process_count() == 1 else AHEAD
  left = config.training.num_steps - step
  batches.fill(min(left, calls * config.parallel.steps_per_dispatch))


def raise_fault(batches: data.Ahead) -> None:
  """Raises what the data raised, if anything."""
  if batches.fault:
    raise batches.fault


def tell_begun(experiment: Experiment, workdir: epath.Path, step: int) -> None:
  """Says what of its config a run leaves aside, from where it goes on, and any jump of its rate."""
  for line in remarks(experiment):
    hosts.say(line)
  if not step:
    return
  hosts.say(f'{workdir}: going on from step {step}')
  if (workdir / CONFIG).exists():
    before = plain_group(read_record(workdir)['config'], 'training').num_steps
    jump = rate_jump(experiment.config, before, step)
    if jump:
      hosts.say(f'{workdir}: {jump}')


def fit(config: Config, workdir: epath.Path, folder: epath.Path) -> Experiment:
  """The experiment, where every host can train it and all agree on it.

  Raises:
    InputError: on every host; nothing has been written but empty folders.
  """
  hosts.from_first(lambda: refuse_foreign(workdir, config))
  with hosts.together():
    experiment = build(config)
    check_training(experiment)
  facts = {'examples': len(experiment.dataset.train), 'plugins': plugin_sources(config)}
  hosts.agree(config, folder, **facts)
  check_batch_size(config.dataset.batch_size, jax.device_count(), config.parallel.microbatches)
  with hosts.together():
    check_disk(workdir, folder, experiment)
  return experiment


def make_advance(experiment: Experiment, parallel: Parallel) -> Advance:
  """Makes advance(state, batches, count) -> (state, metrics): so many steps at one call."""
  step = make_step(experiment, parallel)
  one, many = parallel.compile(step), parallel.compile(several(step))

  def advance(state: TrainState, batches: Iterator[Batch], count: int) -> tuple[TrainState, Any]:
    if count == 1:
      return one(state, parallel.place_batch(next(batches)))
    taken = [next(batches) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *taken)
    return many(state, parallel.place_batch(stacked, axis=1))

  return advance


def begin(
  experiment: Experiment,
  parallel: Parallel,
  checkpoints: Checkpoints,
  batches: data.Ahead,
  plugins: Collection[str] = (),
) -> tuple[TrainState, Window]:
  """The newest checkpoint's state, on the devices, and its position in the data; or a new run's."""
  newest = checkpoints.latest_step()
  if newest is not None:
    like = parallel.layout(jax.eval_shape(lambda: new_state(experiment)))
    state, record = checkpoints.restore(newest, like)
    if not is_record(record):
      raise checkpoints.damaged(newest, 'its record is not one that training writes')
    batches.set_state(record['data'])
    if hosts.is_first():
      note_unknown(checkpoints.folder, newest)
    return parallel.place_state(state), Window(record['window'])
  teacher = initial_params(experiment, plugins)
  if teacher is None:
    return parallel.create(lambda: new_state(experiment)), Window()
  return parallel.place_state(new_state(experiment, teacher)), Window()


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
