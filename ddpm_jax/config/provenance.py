"""What a run's record says of the code and the machine."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

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


def provenance() -> dict[str, Any]:
  """The git revision ('-dirty' where files differ; None outside a checkout), versions, devices."""
  import jax  # Here and not above: the first question about devices starts the backend.

  return {
    'git_revision': git_revision(),
    'versions': {'python': platform.python_version(), **installed()},
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
