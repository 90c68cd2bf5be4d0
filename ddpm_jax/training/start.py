"""Where a run begins: at its newest checkpoint, or anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ddpm_jax import data
from ddpm_jax.training import hosts
from ddpm_jax.training.checkpoint import Checkpoints, record_of
from ddpm_jax.training.job import Job
from ddpm_jax.training.metrics import Window
from ddpm_jax.training.state import TrainState, new_state
from ddpm_jax.training.task import digest, refuse_changed


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
