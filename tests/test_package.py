"""The package as it is shipped: what it holds, what it imports, what the repository names."""

import importlib.metadata
import itertools
import pathlib
import re
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ddpm_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]

ENTRIES = {
  '.ci',
  '.dockerignore',
  '.gitignore',
  'LICENSE',
  'Makefile',
  'README.md',
  'configs',
  'constraints.txt',
  'ddpm_jax',
  'docs',
  'experiments',
  'pyproject.toml',
  'tests',
}

# Imports every module with a finder in front that notes each search for a foreign framework: a
# guarded `try: import torch` is found too, and also where the framework isn't installed.
IMPORT_ALL = """
import importlib, pkgutil, sys

class Watch:
  def find_spec(self, name, path=None, target=None):
    if name in ('tensorflow', 'torch'):
      sys.exit(f'{module} searches for {name}')

sys.meta_path.insert(0, Watch())
module = 'ddpm_jax'
package = importlib.import_module(module)
for entry in pkgutil.walk_packages(package.__path__, 'ddpm_jax.'):
  module = entry.name
  importlib.import_module(module)
"""


def tracked() -> list[str]:
  """The files of the repository, or no test where there is none (an unpacked archive)."""
  if not (ROOT / '.git').exists():
    pytest.skip('not a git checkout')
  listing = subprocess.run(
    ['git', 'ls-files', '-z'], cwd=ROOT, check=True, capture_output=True, text=True
  )
  return listing.stdout.rstrip('\0').split('\0')


def test_versions_agree():
  stated = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']
  assert ddpm_jax.__version__ == stated
  assert importlib.metadata.version('ddpm_jax') == stated


def test_no_module_imports_tensorflow_or_torch():
  done = subprocess.run(
    [sys.executable, '-c', IMPORT_ALL], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_wheel_holds_the_package_only(tmp_path):
  build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
  subprocess.run([*build, '--wheel-dir', tmp_path, ROOT], check=True)
  (wheel,) = tmp_path.glob('*.whl')
  names = zipfile.ZipFile(wheel).namelist()
  modules = {name for name in names if not re.match(r'ddpm_jax-[^/]*\.dist-info/', name)}
  assert modules == {
    path.relative_to(ROOT).as_posix() for path in (ROOT / 'ddpm_jax').rglob('*.py')
  }


def test_nothing_unexpected_at_the_top():
  assert {name.split('/')[0] for name in tracked()} <= ENTRIES


@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
def test_every_requirement_has_one_pin_in_its_range(python):
  lines = (ROOT / 'constraints.txt').read_text().splitlines()
  pins = [Requirement(line) for line in lines if not line.startswith('#')]
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = itertools.chain.from_iterable(project['optional-dependencies'].values())
  for wanted in map(Requirement, [*project['dependencies'], *extras]):
    found = [
      pin
      for pin in pins
      if canonicalize_name(pin.name) == canonicalize_name(wanted.name)
      and (pin.marker is None or pin.marker.evaluate({'python_version': python}))
    ]
    assert len(found) == 1, f'{wanted.name}: {[str(pin) for pin in found]}'
    (pin,) = found[0].specifier
    assert wanted.specifier.contains(pin.version), f'{wanted} against {found[0]}'


def test_no_file_names_a_machine_or_an_index():
  machine = re.compile(
    rb'/(?:home|Users|root|work|mnt|tmp/[a-z]+|opt)/[a-z]|--(?:extra-)?index-url|pypi\.org/simple'
  )
  for name in tracked():
    if name != 'tests/test_package.py':
      found = machine.search((ROOT / name).read_bytes())
      assert found is None, f'{name}: {found[0].decode()}'
