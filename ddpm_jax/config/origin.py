"""What a run's record says of the code and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Collection, Mapping
from typing import Any

from ddpm_jax.config.catalog import all_tables
from ddpm_jax.config.plugins import plugins_of
from ddpm_jax.config.sources import sources
from ddpm_jax.config.tree import is_free

PACKAGES = (
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'grain',
  'ml_collections',
  'numpy',
)


# By which XLA's compiler is told what to do.
XLA_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')


def provenance() -> dict[str, Any]:
  """The git revision ('-dirty' where files differ; None outside a checkout), versions, XLA's flags
  and the devices.
  """
  import jax  # Here and not above: the first question about devices starts the backend.

  return {
    'git_revision': git_revision(),
    'versions': {'python': platform.python_version(), **installed()},
    'xla_flags': {name: os.environ[name] for name in XLA_FLAGS if os.environ.get(name)},
    'devices': {
      'platform': jax.devices()[0].platform,
      'kind': jax.devices()[0].device_kind,
      'count': jax.device_count(),
      'processes': jax.process_count(),
    },
  }


def installed() -> dict[str, str]:
  """The versions of the packages that decide a run's numbers."""
  return {name: importlib.metadata.version(name) for name in PACKAGES}


def git_revision() -> str | None:
  """The commit of the checkout that this package is run from."""
  command = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
  folder = pathlib.Path(__file__).parent
  try:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def plugin_sources(config: Mapping[str, Any], free: Collection[str] = ()) -> dict[str, str | None]:
  """The `sources` of a config's plug-ins, but for those that are named in its settings `free`.

  The config is as `to_json` writes it.
  """
  return sources(
    {
      name.split(':')[0]
      for place, name in plugins_of(config, all_tables()).items()
      if not is_free(place, free)
    }
  )
