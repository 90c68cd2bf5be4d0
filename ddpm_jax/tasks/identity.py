"""Which experiment a run is of: its settings and its code, in its folder and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import logging
from etils import epath

from ddpm_jax.config import (
  RESUMABLE,
  Config,
  differing,
  is_free,
  leaves,
  plugin_sources,
  to_json,
  upgraded,
)
from ddpm_jax.errors import InputError
from ddpm_jax.training.checkpoint import record_of

# What may differ between a checkpoint's experiment and one that goes on from it: also its place.
MOVABLE = (*RESUMABLE, 'checkpoint')


class Identity(NamedTuple):
  """Which experiment a run is of.

  Attributes:
    config: its settings, as JSON.
    plugins: module -> hash, of the code behind its plug-ins.
    fixed: those of them that a run that goes on has to share.
  """

  config: dict[str, Any]
  plugins: dict[str, str | None]
  fixed: dict[str, str | None]

  @property
  def record(self) -> dict[str, Any]:
    """What a checkpoint says of it."""
    settings = dict(leaves(self.config))
    kept = {name: value for name, value in settings.items() if not is_free(name, MOVABLE)}
    return {'config': kept, 'plugins': self.fixed}


def identify(config: Config) -> Identity:
  """The identity of the experiment that a config describes."""
  tree = to_json(config)
  return Identity(tree, plugin_sources(tree), plugin_sources(tree, RESUMABLE))


def other_code(before: Any, now: Mapping[str, str | None]) -> list[str]:
  """The modules of `now`, module -> hash, that a record has with another hash or not at all.

  A record that says nothing of modules differs in none.
  """
  if not isinstance(before, Mapping):
    return []
  return [name for name, digest in now.items() if before.get(name) != digest]


def refuse_other(
  folder: epath.Path, step: int, identity: Identity, mend: str, code: bool = False
) -> None:
  """Lets an experiment use its own checkpoint, or one that does not say whose it is.

  Args:
    folder: of the checkpoints.
    step: of the one that is to be used.
    identity: the experiment's.
    mend: what to do about another's.
    code: whether to look at the code of the plug-ins too.

  Raises:
    InputError: the checkpoint is another experiment's, or one's by other code.
  """
  found = experiment_of(folder, step)
  if found is None:
    return
  where = f'{folder}: the checkpoint of step {step} is of'
  if differ := differing(found['config'], identity.config, MOVABLE):
    names = ', '.join(f'config.{name}' for name in differ)
    raise InputError(f'{where} another experiment, which differs in {names}; {mend}')
  if changed := other_code(found['plugins'], identity.fixed) if code else []:
    raise InputError(f'{where} other code: {", ".join(changed)} has changed since; {mend}')


def experiment_of(folder: epath.Path, step: int) -> Mapping[str, Any] | None:
  """What a checkpoint's record says of its experiment; None where it says nothing."""
  record = record_of(folder, step)
  found = record.get('experiment') if isinstance(record, Mapping) else None
  if not isinstance(found, Mapping):
    return None
  if not all(isinstance(found.get(part), Mapping) for part in ('config', 'plugins')):
    return None
  return {**found, 'config': upgraded(found['config'])}


def note_unknown(folder: epath.Path, step: int) -> None:
  """Tells, in a line, of a checkpoint that does not say whose it is."""
  if experiment_of(folder, step) is None:
    logging.warning(
      '%s: the checkpoint of step %d does not say which experiment it belongs to (earlier versions '
      'did not write that); it is taken as one of this experiment',
      folder,
      step,
    )
