"""The launch recipes, with stand-ins for the clusters' own commands."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

from ddpm_jax.training.metrics import read

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'experiments' / 'launch'
SMALL = (
  '--config.training.num_steps=4',
  '--config.dataset.batch_size=16',
  '--config.model.channels=8',
  '--config.logging.every_steps=1',
  '--config.evaluation.every_steps=100',
)


@pytest.mark.parametrize('path', sorted(LAUNCH.glob('*.*')), ids=lambda path: path.name)
def test_every_recipe_says_how_it_is_stopped_and_resumed(path):
  text = path.read_text()
  assert re.search(r'stop|Ctrl-C', text, re.I) and re.search(r'resume|goes on from', text, re.I)
  if path.suffix in ('.sh', '.sbatch'):
    subprocess.run(['bash', '-n', path], check=True)


def recipe(folder, name, *flags, **variables):
  """Runs it; the losses that it logs."""
  environment = {
    **os.environ,
    'JAX_NUM_CPU_DEVICES': '1',
    'PYTHON': sys.executable,
    'CONFIG': 'configs/digits.py',
    'WORKDIR': str(folder / 'run'),
    **variables,
  }
  done = subprocess.run(
    ['bash', LAUNCH / name, *flags], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return [row['loss'] for row in read(folder / 'run' / 'metrics.jsonl') if 'loss' in row]


@pytest.mark.slow
def test_the_recipe_of_one_machine_runs_as_it_stands(tmp_path):
  assert len(recipe(tmp_path, 'gpus.sh', *SMALL)) == 4
