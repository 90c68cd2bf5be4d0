"""The training loop."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import threading
import time
from collections.abc import Generator, Iterator
from typing import Any

import jax
import numpy as np

from ddpm_jax import data
from ddpm_jax.config import Config
from ddpm_jax.errors import Interrupted
from ddpm_jax.training import pictures
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.experiment import (
  Experiment,
  build,
  check_training,
  make_step,
  new_state,
)
from ddpm_jax.training.metrics import Display, MetricWriter, Window
from ddpm_jax.training.parallel import PARALLEL, check_batch_size
from ddpm_jax.training.run import initial_params, refuse_foreign, write_record
from ddpm_jax.training.state import TrainState


def train(config: Config, workdir: str | os.PathLike[str]) -> None:
  """Trains an experiment in its folder, going on from the newest checkpoint there.

  A run that was interrupted, even by kill -9, and started again ends with the same parameters and
  metrics, bit for bit, as one that was not (on a GPU under training.deterministic).

  Raises:
    InputError: the config, the data or the folder is not fit for it; nothing is overwritten.
    Interrupted: SIGINT or SIGTERM came; the run is saved.
  """
  for _ in steps(config, workdir):
    pass


def steps(config: Config, workdir: str | os.PathLike[str]) -> Generator[tuple[int, TrainState]]:
  """`train`, step by step: yields each step's number and its state, which the next step donates."""
  workdir = pathlib.Path(workdir)
  num_steps, devices = config.training.num_steps, jax.devices()
  refuse_foreign(workdir, config)
  check_batch_size(config.dataset.batch_size, len(devices))
  experiment = build(config)
  check_training(experiment)
  parallel = PARALLEL[config.parallel.mode](devices)
  train_step = parallel.compile(make_step(experiment, parallel))
  batches = data.train_iterator(
    experiment.dataset,
    config.dataset.batch_size,
    config.seed,
    jax.process_index(),
    jax.process_count(),
  )

  with Checkpoints(workdir / 'checkpoints', config.checkpoint.keep) as checkpoints:
    state, window = begin(experiment, checkpoints, batches)
    step = saved = int(state.step)
    if step >= num_steps:
      print(f'{workdir}: already finished at step {step} of {num_steps}')
      return
    if step:
      print(f'{workdir}: going on from step {step}')
    write_record(workdir, experiment)
    state = parallel.place_state(state)

    def save() -> None:
      """Waits for the steps under way, since their metrics are part of the record."""
      report.complete(window.flush())
      record = {'data': batches.get_state(), 'window': window.record()}
      checkpoints.save(step, state, record)

    with Report(experiment, workdir, window, step) as report, signals() as received:
      while step < num_steps and not received:
        batch = parallel.place_batch(next(batches))
        state, metrics = train_step(state, batch)
        step += 1
        report.complete(window.add(step, metrics))
        report.look(step, state)
        if due(step, config.checkpoint.every_steps, num_steps):
          save()
          saved = step
        yield step, state
      if saved < step:
        save()
      checkpoints.wait()
    if step < num_steps:
      raise Interrupted(
        received[0], f'interrupted and saved at step {step}; the same command goes on from there'
      )
  report.summary()


def begin(
  experiment: Experiment, checkpoints: Checkpoints, batches: Any
) -> tuple[TrainState, Window]:
  """The newest checkpoint's state and position in the data, or those of a new run."""
  newest = checkpoints.latest_step()
  if newest is None:
    return new_state(experiment, initial_params(experiment)), Window()
  state, record = checkpoints.restore(newest, jax.eval_shape(lambda: new_state(experiment)))
  batches.set_state(record['data'])
  return state, Window(record['window'])


def due(step: int, every: int, num_steps: int) -> bool:
  """Whether what happens every so many steps, and at the end, happens now."""
  return step % every == 0 or step == num_steps


class Report:
  """What a run tells of itself while it goes: lines, held-out losses, previews."""

  def __init__(self, experiment: Experiment, workdir: pathlib.Path, window: Window, step: int):
    config = experiment.config
    self._experiment, self._workdir, self._window = experiment, workdir, window
    self._config, self._num_steps = config, config.training.num_steps
    self._writer = MetricWriter(workdir, step)
    self._display = Display(step, self._num_steps, config.dataset.batch_size)
    self._heldout = experiment.kind.make_heldout(experiment)
    self._preview = pictures.make_preview(experiment)
    self._start, self._first, self._looked = time.monotonic(), 0.0, 0.0

  def __enter__(self) -> Report:
    return self

  def __exit__(self, *exception: object) -> None:
    self._display.close()
    self._writer.close()

  def complete(self, steps: Iterator[int]) -> None:
    """Writes a line for each of the complete steps that is due one."""
    for step in steps:
      self._first = self._first or time.monotonic() - self._start
      if due(step, self._config.logging.every_steps, self._num_steps):
        scalars = self._window.mean()
        scalars['learning_rate'] = np.asarray(self._experiment.learning_rate(step - 1)).item()
        rate = self._display.update(step, scalars['loss'])
        self._writer.write(step, scalars, {'images_per_second': rate})

  def look(self, step: int, state: TrainState) -> None:
    """Judges the averaged parameters, where that is due."""
    heldout = due(step, self._config.evaluation.every_steps, self._num_steps)
    preview = due(step, self._config.logging.preview_every_steps, self._num_steps)
    if not (heldout or preview):
      return
    self.complete(self._window.flush())
    begin = time.monotonic()
    params = one_device(next(iter(state.ema.values())))
    if heldout:
      self._writer.write(step, self._heldout(params))
    if preview:
      pixels = self._preview(params)
      pictures.write_png(self._workdir / 'samples' / f'step_{step:07d}.png', pixels)
      self._writer.image(step, 'preview', pixels)
    self._looked += time.monotonic() - begin

  def summary(self) -> None:
    """The last lines on the screen."""
    curve = pictures.loss_curve(self._workdir)
    seconds = time.monotonic() - self._start
    print(
      f'trained to step {self._num_steps} in {seconds:.0f} s: {self._first:.0f} s until the first '
      f'step was done, {self._looked:.0f} s on held-out losses and previews\n{curve}'
    )


def one_device(tree: Any) -> Any:
  """Replicated arrays as seen by one device: what is small is not worth all of them."""
  return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


@contextlib.contextmanager
def signals() -> Iterator[list[int]]:
  """A list that SIGINT and SIGTERM are appended to; a second one acts at once, as it always did."""
  received: list[int] = []
  previous: dict[int, Any] = {}

  def restore() -> None:
    for number, handler in previous.items():
      signal.signal(number, handler)

  def handle(number: int, frame: Any) -> None:
    del frame
    received.append(number)
    restore()

  if threading.current_thread() is threading.main_thread():
    previous |= {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield received
  finally:
    restore()
