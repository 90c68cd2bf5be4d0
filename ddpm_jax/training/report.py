"""What a run tells of itself while it goes: lines, held-out losses, previews.

Nothing that is only looked at ends training: where it fails, a line says so, once for each kind.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from etils import epath

from ddpm_jax import logs
from ddpm_jax.training import hosts, pictures
from ddpm_jax.training.copies import Copies
from ddpm_jax.training.cost import Bill
from ddpm_jax.training.job import Job
from ddpm_jax.training.metrics import Board, Display, MetricWriter, Scalars, Window
from ddpm_jax.training.state import TrainState


def due(step: int, every: int, num_steps: int) -> bool:
  """Whether what happens every so many steps, and at the end, happens now."""
  return step % every == 0 or step == num_steps


class Report:
  """Of all hosts the first writes it; the others only keep in step."""

  def __init__(
    self,
    job: Job,
    frozen: Any,
    workdir: epath.Path,
    checkpoints: epath.Path,
    window: Window,
    step: int,
  ):
    config = job.config
    self._task, self._parallel, self._frozen = job.task, job.parallel, frozen
    self._workdir, self._window = workdir, window
    self._config, self._num_steps = config, config.training.num_steps
    self._tells = hosts.is_first()
    self._failed: set[str] = set()
    self._begun = step
    self._bill: Bill | None = None
    if self._tells:
      self._copies = Copies(workdir, checkpoints)
      self._writer = MetricWriter(self._copies.folder, step)
      self._display = Display(step, self._num_steps, config.dataset.batch_size)
      with self._aside('the cost'):
        price = config.logging.price_per_chip_hour
        self._bill = Bill(workdir, step, price) if price else None
    self._start, self._first, self._looked = time.monotonic(), 0.0, 0.0
    self._timing: threading.Thread | None = None

  def __enter__(self) -> Report:
    return self

  def __exit__(self, *exception: object) -> None:
    if self._timing:
      self._timing.join(1.0)  # it may be about to speak; where a host has gone it waits for ever
    if self._tells:
      self._display.close()
      if self._bill:
        with self._aside('the cost'):
          self._bill.close()
      if '_board' in vars(self):
        with self._aside('TensorBoard'):
          self._board.close()
          self._copies.send_events()
      self._copies.close()

  @functools.cached_property
  def _board(self) -> Board:
    return Board(self._copies.folder, self._begun)

  @contextlib.contextmanager
  def _aside(self, kind: str) -> Iterator[None]:
    """Goes on where what is only looked at fails."""
    try:
      yield
    except Exception as error:
      if kind not in self._failed:
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        hosts.say(f'{kind} left out, training goes on ({reason})')
      self._failed.add(kind)

  def keep(self) -> None:
    """Copies the records to where they are kept; before each checkpoint, which counts on them."""
    if not self._tells:
      return
    self._copies.send()
    if self._copies.in_store and '_board' in vars(self):
      with self._aside('TensorBoard'):
        self._board.flush()
        self._copies.send_events()

  def complete(self, steps: Iterator[int]) -> None:
    """Writes a line for each of the complete steps that is due one."""
    for step in steps:
      self._first = self._first or time.monotonic() - self._start
      if self._bill:
        with self._aside('the cost'):
          self._bill.reached(step)
      if not due(step, self._config.logging.every_steps, self._num_steps):
        continue
      scalars = self._window.mean()
      if self._tells:
        if self._task.learning_rate:
          scalars['learning_rate'] = np.asarray(self._task.learning_rate(step - 1)).item()
        rate = self._display.update(step, scalars.get('loss'))
        self._writer.write(step, scalars)
        with self._aside('TensorBoard'):
          self._board.curves(step, {**scalars, 'images_per_second': rate})

  def look(self, step: int, state: TrainState) -> None:
    """Judges the averaged parameters, where that is due."""
    judged = due(step, self._config.evaluation.every_steps, self._num_steps)
    shown = due(step, self._config.logging.preview_every_steps, self._num_steps)
    heldout = self._task.heldout if judged else None
    preview = self._task.preview if shown else None
    if not (heldout or preview):
      return
    self.complete(self._window.flush())
    # One device does it: what is small is not worth all of them.
    params = self._parallel.on_one_device(next(iter(state.ema.values())))
    frozen = self._parallel.on_one_device(self._frozen)
    if not self._tells:
      return
    begin = time.monotonic()
    if heldout:
      self._judge(step, lambda: heldout(params, frozen))
    if preview:
      self._show(step, lambda: preview(params, frozen))
    self._looked += time.monotonic() - begin

  def _judge(self, step: int, heldout: Callable[[], Scalars]) -> None:
    scalars: Scalars = {}
    with self._aside('held-out losses'):
      scalars = heldout()
    if scalars:
      self._writer.write(step, scalars)
      with self._aside('TensorBoard'):
        self._board.curves(step, scalars)

  def _show(self, step: int, preview: Callable[[], np.ndarray]) -> None:
    with self._aside('the preview'):
      pixels = pictures.grid(preview(), pictures.COLUMNS)
      pictures.write_png(self._workdir / 'samples' / f'step_{step:07d}.png', pixels)
      with self._aside('TensorBoard'):
        self._board.picture(step, 'preview', pixels)

  def time_save(self, begun: float, wait: Callable[[], None]) -> None:
    """Tells of the first save how long it takes from `begun` until `wait` returns."""
    if self._tells and not self._timing:
      self._timing = threading.Thread(target=self._tell_save, args=(begun, wait), daemon=True)
      self._timing.start()

  def _tell_save(self, begun: float, wait: Callable[[], None]) -> None:
    with contextlib.suppress(Exception):  # the loop raises it too, at its next save or wait
      wait()
      hosts.say(told_of_save(time.monotonic() - begun, self._config.checkpoint.grace_seconds))

  def summary(self) -> None:
    """The last lines on the screen."""
    if not self._tells:
      return
    seconds = time.monotonic() - self._start
    logs.say(
      f'trained to step {self._num_steps} in {seconds:.0f} s: {self._first:.0f} s until the first '
      f'step was done, {self._looked:.0f} s on held-out losses and previews'
    )
    if self._bill:
      with self._aside('the cost'):
        for line in self._bill.lines():
          logs.say(line)
    with self._aside('the loss curve'):
      logs.say(str(pictures.loss_curve(self._workdir)))


def told_of_save(seconds: float, grace: float) -> str:
  """How long a save takes, and a warning where a stop gives less time than that."""
  told = f'saving a checkpoint takes {seconds:.1f} s, its wait for the steps under way included'
  if seconds <= grace:
    return told
  return (
    f'{told}; a stop with a kill after config.checkpoint.grace_seconds={grace:g} s would lose what '
    'was trained since the last one: ask the cluster for more time, or lower '
    'config.checkpoint.every_steps'
  )
