"""The launch recipes, with stand-ins for the clusters' own commands."""

import os
import pathlib
import re
import stat
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


def stand_in(folder, name, text):
  path = folder / name
  path.write_text(text)
  path.chmod(path.stat().st_mode | stat.S_IEXEC)


# Two tasks on one node, with the variables that Slurm sets.
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
wait $first; one=$?
wait $second; two=$?
exit $(( one > two ? one : two ))
"""


def recipe(folder, name, *flags, **variables):
  """Runs it with stand-ins first in the path."""
  environment = {
    **os.environ,
    'JAX_NUM_CPU_DEVICES': '1',
    'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}',
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
def test_the_recipes_of_one_machine_and_of_slurm_run_as_they_stand(tmp_path):
  for folder in (tmp_path / 'gpus', tmp_path / 'slurm'):
    folder.mkdir()
  stand_in(tmp_path / 'slurm', 'srun', SRUN)
  one = recipe(tmp_path / 'gpus', 'gpus.sh', *SMALL)
  two = recipe(tmp_path / 'slurm', 'slurm.sbatch', *SMALL, SLURM_JOB_ID=str(os.getpid()))
  assert len(one) == 4
  assert two == pytest.approx(one, rel=2e-2), 'bfloat16'
