"""Where a run's records are written line by line, and where they are copied to, whole.

A file in an object store cannot grow: there metrics.jsonl and TensorBoard's events are written on a
disk of the first host, and copied before each checkpoint and at the end. And where the checkpoints
are apart from the workdir, config.json, metrics.jsonl and cost.json are copied beside them: a
machine that is made anew, with an empty workdir, has them back from there, and goes on as if
nothing had happened.
"""

from __future__ import annotations

import tempfile

from etils import epath

from ddpm_jax.files import whole
from ddpm_jax.stores import is_store, path_of, reaching, size_of
from ddpm_jax.training.checkpoint import whole_steps
from ddpm_jax.training.cost import FILE as COST

CONFIG, METRICS = 'config.json', 'metrics.jsonl'


def beside(workdir: epath.Path, checkpoints: epath.Path) -> epath.Path | None:
  """The folder of checkpoints, where it is apart from the workdir; None where it is in it."""
  inner, outer = (p if is_store(p) else p.resolve() for p in (checkpoints, workdir))
  return None if inner.is_relative_to(outer) else checkpoints


def copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a file, which is at the target whole or not at all."""
  with reaching(source):
    content = source.read_bytes()
  with whole(target) as part:
    part.write_bytes(content)


def bring_back(workdir: epath.Path, checkpoints: epath.Path) -> None:
  """Has a new machine's records back from beside the checkpoints."""
  kept = beside(workdir, checkpoints)
  if kept is None or (workdir / CONFIG).exists() or not whole_steps(kept):
    return
  for name in (CONFIG, METRICS, COST):  # in this order: metrics alone would be nobody's
    if (kept / name).exists():
      copy(kept / name, workdir / name)


class Copies:
  """The folder that the first host writes metrics.jsonl and events to, and their copies.

  Attributes:
    in_store: whether the workdir is in a store.
    folder: on a disk: the workdir, or where that is in a store a folder for the run's length.
  """

  def __init__(self, workdir: epath.Path, checkpoints: epath.Path):
    """Copies config.json, and begins with the metrics of before.

    Those beside the checkpoints have every line up to the newest of them.
    """
    self.in_store = is_store(workdir)
    self._own = tempfile.TemporaryDirectory(prefix='ddpm_jax_') if self.in_store else None
    self.folder = path_of(self._own.name, 'workdir') if self._own else workdir
    self._workdir = workdir
    self._beside = kept = beside(workdir, checkpoints)
    self._targets = [target for target in (kept, workdir if self.in_store else None) if target]
    self._sizes: dict[epath.Path, int] = {}
    if kept:
      copy(workdir / CONFIG, kept / CONFIG)
    found = [target for target in self._targets if (target / METRICS).exists()]
    if found:
      copy(found[0] / METRICS, self.folder / METRICS)

  def send(self) -> None:
    """Copies what has grown."""
    for target in self._targets:
      self._send(self.folder / METRICS, target)
    if self._beside:
      self._send(self._workdir / COST, self._beside)

  def send_events(self) -> None:
    """Copies TensorBoard's files."""
    for path in list(self.folder.iterdir()) if self.in_store else ():
      if path.name.startswith('events.'):
        self._send(path, self._workdir)

  def _send(self, source: epath.Path, folder: epath.Path) -> None:
    size, target = size_of(source), folder / source.name
    if size and self._sizes.get(target) != size:
      copy(source, target)
      self._sizes[target] = size

  def close(self) -> None:
    """Copies a last time."""
    self.send()
    if self._own:
      self._own.cleanup()
