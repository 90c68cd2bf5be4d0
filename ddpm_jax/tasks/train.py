"""Training an experiment in its folder: it is built, checked, and handed to the loop."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection, Generator
from typing import Any

import jax
from etils import epath

from ddpm_jax import logs
from ddpm_jax.config import Config, naming, plain_group, provenance
from ddpm_jax.losses import OF_TEACHERS
from ddpm_jax.stores import check_reached, path_of
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training, rate_jump, remarks
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.identity import Identity, identify, note_unknown
from ddpm_jax.tasks.ownership import alone, refuse_foreign
from ddpm_jax.tasks.run import given, init_from, read_record, write_record
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, folder_of
from ddpm_jax.training.copies import CONFIG, bring_back
from ddpm_jax.training.disk import check_disk, full_disk
from ddpm_jax.training.job import Job
from ddpm_jax.training.loop import advance_all
from ddpm_jax.training.parallel import all_devices, check_batch_size, make_parallel
from ddpm_jax.training.state import TrainState, new_state
from ddpm_jax.training.task import Frozen, frozen_record, load_frozen


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
  identity = identify(config)
  enter = functools.partial(refuse_foreign, workdir, identity)
  hosts.from_first(enter)
  job = fit(config, identity, workdir, folder, plugins)
  with alone(workdir, folder):
    hosts.from_first(enter)  # Again: another may have trained there until now.
    if hosts.is_first():
      bring_back(workdir, folder)
    with Checkpoints(folder, config.checkpoint.keep) as checkpoints:
      yield from advance_all(job, checkpoints, workdir)


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


def fit(
  config: Config,
  identity: Identity,
  workdir: epath.Path,
  folder: epath.Path,
  plugins: Collection[str],
) -> Job:
  """What the loop is to do, where every host can do it and all agree on it.

  Raises:
    InputError: on every host; nothing has been written but empty folders.
  """
  with hosts.together():
    experiment = build(config)
  job = make_job(experiment, plugins)  # hosts load together what is frozen
  with hosts.together():
    check_training(experiment, job)
  hosts.agree(
    folder,
    config=identity.config,
    examples=len(experiment.dataset.train),
    plugins=identity.plugins,
    **code_of_this_host(),
  )
  check_batch_size(config.dataset.batch_size, jax.device_count(), config.parallel.microbatches)
  with hosts.together():
    check_disk(workdir, folder, job.shapes, config.checkpoint.keep)
  return job


def code_of_this_host() -> dict[str, Any]:
  """The code that all hosts have to run."""
  found = provenance()
  return {'git_revision': found['git_revision'], 'versions': found['versions']}


def make_job(experiment: Experiment, plugins: Collection[str] = ()) -> Job:
  """The experiment's task with all that the loop needs to train it.

  Args:
    experiment: from `build`.
    plugins: modules whose functions the run of `training.init_from` may name.
  """
  config = experiment.config
  source = config.training.init_from
  load = functools.cache(functools.partial(init_from, config, plugins))
  first = None if source is None else Frozen(source, load, together=True)
  group = 'config.loss' if config.loss.name else 'config.task'
  with hosts.together(), naming(group, otherwise=f'{group}.name'):
    task = make_task(experiment, first if config.loss.name in OF_TEACHERS else None)
    shapes = jax.eval_shape(lambda: new_state(task, config))
  frozen = load_frozen(task)
  record = frozen_record(task, frozen)
  return Job(
    task=task,
    frozen=frozen,
    config=config,
    dataset=experiment.dataset,
    parallel=make_parallel(config.parallel.mode, all_devices(), config.parallel.slices),
    shapes=shapes,
    given=None if first is None else functools.partial(given, first, shapes.params),
    record={'experiment': identify(config).record, 'frozen': record},
    begun=functools.partial(begin_record, experiment, record),
  )


def begin_record(experiment: Experiment, frozen: Any, workdir: epath.Path, step: int) -> None:
  """Tells how a run begins, and writes its config.json; of all hosts the first does it."""
  tell_begun(experiment, workdir, step)
  write_record(workdir, experiment, frozen)


def tell_begun(experiment: Experiment, workdir: epath.Path, step: int) -> None:
  """Says what of its config a run leaves aside, from where it goes on, and any jump of its rate."""
  for line in remarks(experiment):
    hosts.say(line)
  if not step:
    return
  hosts.say(f'{workdir}: going on from step {step}')
  note_unknown(folder_of(workdir, experiment.config.checkpoint.folder), step)
  if (workdir / CONFIG).exists():
    before = plain_group(read_record(workdir)['config'], 'training').num_steps
    jump = rate_jump(experiment.config, before, step)
    if jump:
      hosts.say(f'{workdir}: {jump}')
