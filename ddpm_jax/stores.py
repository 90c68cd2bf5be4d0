"""Folders and files as people name them: on a disk, or in an object store.

All of them are `etils.epath.Path`s. Of the stores, Cloud Storage's (gs://) is served, through
gcsfs and, for the arrays of checkpoints, tensorstore. A store has neither locks nor files that
grow: an object is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
from collections.abc import Iterator

import fsspec
from etils import epath

from ddpm_jax.errors import InputError, one_line

# epath's other way to a store, which it prefers wherever TensorFlow is installed.
os.environ.setdefault('EPATH_USE_TF', 'false')

SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')
# Those that are served: the package that each needs, and our extra with it.
SERVED = {'gs': ('gcsfs', 'gcs')}
# What mounts the buckets of others.
MOUNTS = {'gs': 'gcsfuse', 's3': 'mount-s3', 'az': 'blobfuse2', 'abfs': 'blobfuse2'}


def path_of(path: str | os.PathLike[str], field: str) -> epath.Path:
  """The folder or file that was named in `field`; '~' is the home folder.

  Raises:
    InputError: it is in a store that is not served, or whose package is missing.
  """
  text = os.fspath(path)
  scheme = SCHEME.match(text)
  if scheme:
    check_served(scheme[1], text, field)
    return epath.Path(text)
  found = epath.Path(text).expanduser()
  if is_store(found):
    raise InputError(
      f"{field}: '{text}' is a path that epath takes for {found}; mount the bucket elsewhere"
    )
  return found


def on_disk(path: str | os.PathLike[str], field: str) -> epath.Path:
  """`path_of` where only a disk serves.

  Raises:
    InputError: it is in a store.
  """
  text = os.fspath(path)
  if scheme := SCHEME.match(text):
    raise InputError(f"{field}: '{text}' is in an object store, not on a disk; {mount(scheme[1])}")
  return path_of(path, field)


def is_store(path: str | os.PathLike[str]) -> bool:
  """Whether a path that `path_of` has made is in a store."""
  return '://' in os.fspath(path)


def check_reached(folder: epath.Path, field: str) -> None:
  """Raises InputError where a store does not answer, or not us."""
  if not is_store(folder):
    return
  try:
    with reaching(folder), contextlib.suppress(FileNotFoundError):
      next(iter(folder.iterdir()), None)
  except OSError as error:
    raise InputError(f'{field}: {folder} cannot be reached ({error.strerror})') from error


def size_of(path: epath.Path) -> int:
  """A file's length in bytes; 0 where there is none."""
  if not path.exists():
    return 0
  # On a disk, epath's own `stat` asks for the name of the owner, who need not have one.
  return path.stat().length if is_store(path) else os.path.getsize(path)


def check_served(scheme: str, text: str, field: str) -> None:
  """Raises InputError where nothing serves a path; else sees to it that it is served well."""
  if scheme not in SERVED:
    listed = ', '.join(f'{name}://' for name in SERVED)
    raise InputError(
      f"{field}: '{text}' is in a store that is not served ({listed} is); {mount(scheme)}"
    )
  if not re.match(r'\w+://[^/]', text):
    raise InputError(f"{field}: '{text}' names no bucket, as {scheme}://bucket/run does")
  package, extra = SERVED[scheme]
  if importlib.util.find_spec(package) is None:
    raise InputError(
      f"{field}: '{text}' needs the package {package}: pip install 'ddpm_jax[{extra}]'"
    )
  # What other hosts and tensorstore write, a listing that is kept would not show.
  fsspec.config.conf.setdefault('gcs', {})['use_listings_cache'] = False


def mount(scheme: str) -> str:
  """What to do about a bucket that is not served."""
  if scheme == 'file':
    return 'give the path alone'
  tool = f' (as by {MOUNTS[scheme]})' if scheme in MOUNTS else ''
  return f'mount it{tool} and name the folder where it is mounted'


@contextlib.contextmanager
def reaching(path: epath.Path) -> Iterator[None]:
  """Raises whatever a store's client raises as an OSError, as a disk would.

  Raises:
    OSError: its `filename` is `path`; a FileNotFoundError stays one.
  """
  try:
    yield
  except (FileNotFoundError, InputError):
    raise
  except Exception as error:  # of gcsfs, aiohttp or google-auth, whose errors have no common base
    if not is_store(path):
      raise
    raise OSError(errno.EREMOTEIO, one_line(error), os.fspath(path)) from error


def upload(path: epath.Path, content: bytes) -> None:
  """Writes an object.

  Raises:
    OSError: it cannot be written; its `filename` is `path`.
  """
  try:
    with reaching(path):
      path.write_bytes(content)
  except FileNotFoundError as error:
    raise OSError(errno.EREMOTEIO, 'no such bucket', os.fspath(path)) from error
