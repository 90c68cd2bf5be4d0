"""Downloads TFDS sets and writes them to disk, once, in the format that training reads.

  python -m ddpm_jax.data.prepare cifar10

Only this step needs TensorFlow.
"""

from __future__ import annotations

import argparse
import importlib
import sys

from ddpm_jax.data.prepared import check_name, data_dirs
from ddpm_jax.errors import InputError
from ddpm_jax.stores import on_disk


def prepare(name: str, data_dir: str | None = None, download_dir: str | None = None) -> str:
  """Downloads and prepares TFDS's set `name` as array_record; returns its folder.

  Args:
    name: TFDS's name, 'name[/config][:version]'.
    data_dir: where to; unset, the first of `data_dirs()`.
    download_dir: where downloads are kept and looked for; unset, <data_dir>/downloads.

  Raises:
    InputError: not a TFDS name, or TensorFlow is not installed.
  """
  check_name(name)
  folder = on_disk(data_dirs(data_dir)[0], '--data_dir')
  for module in ('tensorflow', 'importlib_resources'):
    try:
      importlib.import_module(module)
    except ImportError as error:
      raise InputError(
        f"preparing '{name}' needs {module}, which reading it does not: "
        "pip install 'ddpm_jax[tfds-prepare]', in an environment of its own if you like"
      ) from error
  import tensorflow_datasets

  builder = tensorflow_datasets.builder(name, data_dir=folder, file_format='array_record')
  builder.download_and_prepare(download_dir=download_dir)
  return str(builder.data_path)


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code."""
  parser = argparse.ArgumentParser(prog='python -m ddpm_jax.data.prepare', description=__doc__)
  parser.add_argument('names', nargs='+', metavar='NAME', help='such as cifar10 or mnist:3.0.1')
  parser.add_argument('--data_dir', help='as config.dataset.data_dir (default: its default)')
  parser.add_argument('--download_dir', help='default: DATA_DIR/downloads')
  options = parser.parse_args(argv)
  try:
    for name in options.names:
      print(f'{name}: {prepare(name, options.data_dir, options.download_dir)}')
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
