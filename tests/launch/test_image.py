"""The image, and the shell of all recipes, by their linters."""

import pathlib
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'experiments' / 'launch'
DOCKERFILE = LAUNCH / 'Dockerfile'


def program(name):
  """A linter's path: beside Python, or wherever it is."""
  path = shutil.which(name, path=pathlib.Path(sys.executable).parent) or shutil.which(name)
  if path is None:
    pytest.skip(f'{name} has no wheel for this machine')
  return path


def check(*words):
  done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_hadolint_finds_nothing_in_the_image():
  check(program('hadolint'), DOCKERFILE)


SHELL = [ROOT / '.ci' / 'run', *LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')]


@pytest.mark.parametrize('path', sorted(SHELL), ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_the_recipes(path):
  check(program('shellcheck'), path)


def test_what_is_copied_into_the_image_is_there_and_is_sent():
  text = DOCKERFILE.read_text()
  copied = [
    word for line in re.findall(r'^COPY (.+) \S+$', text, re.MULTILINE) for word in line.split()
  ]
  sent = {
    line[1:] for line in (ROOT / '.dockerignore').read_text().splitlines() if line.startswith('!')
  }
  assert set(copied) == sent
  assert all((ROOT / name).exists() for name in copied)


def test_the_images_extras_and_python_are_ones_that_there_are():
  text = DOCKERFILE.read_text()
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  named = re.search(r'EXTRAS is (.+?) for older', text, re.DOTALL)[1]
  extras = set(re.findall(r'\b(?:tpu|cuda\d+)\b', named))
  assert extras == {'tpu', 'cuda12', 'cuda13'} <= project['optional-dependencies'].keys()
  assert re.search(r'^ARG EXTRAS=tpu$', text, re.MULTILINE)
  python = re.search(r'^FROM python:(\S+)-slim$', text, re.MULTILINE)[1]
  assert f'Programming Language :: Python :: {python}' in project['classifiers']
