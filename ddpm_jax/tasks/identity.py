"""Of which experiment a checkpoint is: what its record says, and who may go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def identity(config: Config) -> dict[str, Any]:
  """The settings of an experiment, and the hashes of the code behind its plug-ins."""
  settings = dict(leaves(to_json(config)))
  return {
    'config': {name: value for name, value in settings.items() if not is_free(name, MOVABLE)},
    'plugins': plugin_sources(config, MOVABLE),
  }


def refuse_other(
  folder: epath.Path, step: int, config: Config, mend: str, code: bool = False
) -> None:
  """Lets an experiment use its own checkpoint, or one that does not say whose it is.

  Args:
    folder: of the checkpoints.
    step: of the one that is to be used.
    config: the experiment's.
    mend: what to do about another's.
    code: whether to look at the code of the plug-ins too.

  Raises:
    InputError: the checkpoint is another experiment's, or one's by other code.
  """
  found = experiment_of(folder, step)
  if found is None:
    return
  where = f'{folder}: the checkpoint of step {step} is of'
  if differ := differing(found['config'], to_json(config), MOVABLE):
    names = ', '.join(f'config.{name}' for name in differ)
    raise InputError(f'{where} another experiment, which differs in {names}; {mend}')
  now = plugin_sources(config, MOVABLE) if code else {}
  if changed := [name for name, digest in now.items() if found['plugins'].get(name) != digest]:
    raise InputError(f'{where} other code: {", ".join(changed)} has changed since; {mend}')


def experiment_of(folder: epath.Path, step: int) -> Mapping[str, Any] | None:
  """What a checkpoint's record says of its experiment; None where it says nothing."""
  record = record_of(folder, step)
  found = record.get('experiment') if isinstance(record, Mapping) else None
  parts = [found.get(part) for part in ('config', 'plugins')] if isinstance(found, Mapping) else []
  if found is None or not all(isinstance(part, Mapping) for part in parts):
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
