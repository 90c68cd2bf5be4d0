"""What the loop is to do: a task, its data, and how often what is done."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from etils import epath

from ddpm_jax.config.settings import Config
from ddpm_jax.data.dataset import Dataset
from ddpm_jax.training.parallel import Parallel
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.task import Task


class Job(NamedTuple):
  """What the loop is to do.

  Attributes:
    task: what is trained.
    frozen: the arrays of what the task reads and does not train, by name, on the host.
    config: how often what is done.
    dataset: what is trained on.
    parallel: how the step runs on all devices.
    shapes: of the state, whose leaves have shape and dtype.
    given: () -> the first values of some branches of the parameters, called where a run begins
      anew; None for none.
    record: what a checkpoint is to say besides: whose it is, and the hashes of what is frozen.
    begun: (workdir, step) -> None, called on the first host before the first step.
  """

  task: Task
  frozen: Any
  config: Config
  dataset: Dataset
  parallel: Parallel
  shapes: TrainState
  given: Callable[[], Any] | None
  record: dict[str, Any]
  begun: Callable[[epath.Path, int], None]
