"""Runs that are interrupted by real signals, in processes of their own."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import shapes_of, tiny

from ddpm_jax.errors import InputError
from ddpm_jax.tasks.train import train
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.loop import steps_at_once
from ddpm_jax.training.metrics import read
from ddpm_jax.training.report import due
from ddpm_jax.training.start import is_record
from ddpm_jax.training.stopping import stopping

ROOT = pathlib.Path(__file__).parents[2]


def program(workdir, *death, **settings):
  """Trains in a process with two devices; returns its exit code and output."""
  command = [sys.executable, pathlib.Path(__file__).with_name('tiny.py'), workdir]
  done = subprocess.run(
    [*command, json.dumps(settings), *map(str, death)],
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2', 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': ROOT},
    capture_output=True,
    text=True,
  )
  return done.returncode, done.stdout + done.stderr


def final(workdir):
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = checkpoints.latest_step()
    return step, *checkpoints.restore(step, shapes_of(tiny()))


def contents(folder):
  return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def log(workdir):
  """What the log of the one host says, line by line, without its times."""
  lines = (workdir / 'logs' / 'host-0.txt').read_text().splitlines()
  return [line.split('  ', 1)[1] for line in lines]


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  code, output = program(workdir)
  assert code == 0, output
  return workdir


def test_an_interrupted_run_ends_bit_identical_to_one_that_was_not(whole, tmp_path):
  code, output = program(tmp_path, 'SIGTERM', 7)
  assert (code, 'saved at step 7' in output) == (143, True), output
  code, output = program(tmp_path, 'SIGKILL', 20)
  assert (code, 'going on from step 7' in output) == (-signal.SIGKILL, True), output
  code, output = program(tmp_path)
  # The checkpoint of step 20 was cut short, unless the disk outran the signal.
  assert code == 0 and re.search('going on from step (10|20)', output), output

  assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
  step, state, record = final(tmp_path)
  assert step == 30 and record['data'] == {'next_index': 30}
  expected = final(whole)
  assert record == expected[2]
  said = '\n'.join(log(tmp_path))
  assert said.count('host 0 of 1, ') == 3, 'each start goes on with the log'
  assert 'interrupted and saved at step 7' in said and 'step 30/30  loss' in said
  for path, leaf in jax.tree.leaves_with_path(state):
    other = dict(jax.tree.leaves_with_path(expected[1]))[path]
    np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


def test_a_run_leaves_its_config_metrics_pictures_and_checkpoints(whole):
  record = json.loads((whole / 'config.json').read_text())
  assert record['config']['dataset']['batch_size'] == 16
  assert record['data']['num_levels'] == 17
  assert record['provenance']['devices']['count'] == 2
  rows = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  assert [row['step'] for row in rows if 'loss' in row] == [4, 8, 12, 16, 20, 24, 28, 30]
  assert [row['step'] for row in rows if 'heldout/eps_mse' in row] == [15, 30]
  assert all(np.isfinite(value) for row in rows for value in row.values())
  pixels = np.asarray(Image.open(whole / 'samples' / 'step_0000030.png'))
  assert pixels.ndim == 2 and pixels.std() > 0
  assert Image.open(whole / 'loss.png').size[0] > 100
  assert list(whole.glob('events.out.tfevents.*'))


def test_a_finished_run_says_so_and_is_left_alone(whole, capsys):
  before = contents(whole)
  train(tiny(), whole)
  assert 'already finished at step 30 of 30' in capsys.readouterr().out
  assert contents(whole) == before


@pytest.mark.slow
def test_a_lost_connection_ends_nothing(tmp_path):
  """The terminal of the process goes in mid-run: SIGHUP comes, and what is written is refused."""
  master, terminal = os.openpty()
  here = pathlib.Path(__file__).parent
  command = [sys.executable, '-m', 'experiments.train', f'--config={here / "tiny_config.py"}']
  process = subprocess.Popen(
    ['setsid', '--ctty', *command, f'--workdir={tmp_path}', '--config.training.num_steps=200'],
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2', 'PYTHONPATH': f'{here}:{ROOT}'},
    cwd=ROOT,
    **dict.fromkeys(('stdin', 'stdout', 'stderr'), terminal),
  )
  os.close(terminal)
  while b'step' not in os.read(master, 1000):  # of the progress bar
    pass
  os.close(master)
  assert process.wait(120) == 0
  rows = read(tmp_path / 'metrics.jsonl')
  assert max(row['step'] for row in rows) == 200
  assert any('has gone (Input/output error)' in line for line in log(tmp_path))
  assert any('trained to step 200' in line for line in log(tmp_path))


@pytest.mark.parametrize(
  ('settings', 'named'),
  [
    ({'seed': 1}, ['config.seed']),
    ({'model.args.width': 8, 'ema.decay': 0.5}, ['config.model.args.width', 'config.ema.decay']),
  ],
)
def test_another_experiment_is_refused_and_nothing_overwritten(whole, settings, named):
  before = contents(whole)
  with pytest.raises(InputError) as caught:
    train(tiny(**settings), whole)
  assert all(name in str(caught.value) for name in [str(whole), *named, 'give another --workdir'])
  assert contents(whole) == before


def test_a_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1}\n')
  with pytest.raises(InputError, match='holds metrics.jsonl but no config.json'):
    train(tiny(), tmp_path)
  assert (tmp_path / 'metrics.jsonl').read_text() == '{"step": 1}\n'


def test_a_truncated_checkpoint_is_named_and_nothing_overwritten(whole, tmp_path):
  workdir = shutil.copytree(whole, tmp_path / 'copy')
  files = [path for path in (workdir / 'checkpoints' / '30' / 'state').rglob('*') if path.is_file()]
  largest = max(files, key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  before = contents(workdir)
  with pytest.raises(InputError) as caught:
    train(tiny(**{'training.num_steps': 40}), workdir)
  assert str(workdir / 'checkpoints' / '30') in str(caught.value)
  assert 'delete that folder to go on from step 20' in str(caught.value)
  assert contents(workdir) == before


def test_several_steps_at_a_call_and_microbatches_give_the_same_run(whole, tmp_path):
  changes = {'parallel.steps_per_dispatch': 4, 'parallel.microbatches': 2, 'parallel.mode': 'jit'}
  code, output = program(tmp_path / 'run', **changes)
  assert code == 0, output
  one, other = (read(folder / 'metrics.jsonl') for folder in (whole, tmp_path / 'run'))
  assert [row.keys() for row in one] == [row.keys() for row in other]
  for a, b in zip(one, other, strict=True):
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-4)
  assert final(tmp_path / 'run')[2]['data'] == {'next_index': 30}


@pytest.fixture(scope='module')
def mended(tmp_path_factory):
  """A run whose data failed at the batch of step 12 and went on when it was mended: (folder, said).

  Everything that is only looked at failed all the while.
  """
  workdir = tmp_path_factory.mktemp('mended') / 'run'
  code, output = program(workdir, 'data', 12)
  assert code == 2, output
  code, later = program(workdir, 'looks')
  assert code == 0, later
  return workdir, output, later


@pytest.mark.slow
def test_data_that_fails_in_mid_run_is_named_after_all_steps_are_saved(mended, whole):
  workdir, output, later = mended
  assert 'the file of example 7 is cut' in output and 'Traceback' not in output
  assert 'going on from step 11' in later and 'saving a checkpoint takes' in later
  assert any('the file of example 7 is cut' in line for line in log(workdir))
  assert (workdir / 'metrics.jsonl').read_bytes() != b''
  losses = [
    [row for row in read(run / 'metrics.jsonl') if 'loss' in row] for run in (workdir, whole)
  ]
  assert losses[0] == losses[1]
  step, state, _ = final(workdir)
  assert step == 30
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(final(whole)[1]), strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_is_only_looked_at_ends_nothing_and_is_told_of_once(mended):
  workdir, _, later = mended
  for kind in ('the preview', 'held-out losses', 'TensorBoard', 'the loss curve'):
    lines = [line for line in later.splitlines() if line.startswith(f'{kind} left out')]
    assert lines == [f'{kind} left out, training goes on (ValueError: no {kind})']
  assert not (workdir / 'loss.png').exists()


def test_calls_of_several_steps_end_where_something_is_due():
  """Logging is due every 4 steps, checkpoints every 10, held-out losses every 15 of 30."""
  config, step, reached = tiny(**{'parallel.steps_per_dispatch': 3}), 0, []
  while step < 30:
    step += steps_at_once(step, config)
    reached.append(step)
  assert set(reached) >= {4, 8, 10, 12, 15, 16, 20, 24, 28, 30}
  assert len(reached) < 30


def test_what_is_not_finite_is_skipped_and_counted_and_ends_the_run(tmp_path):
  settings = {'loss.name': 'tiny:broken', 'training.max_skipped': 5}
  code, output = program(tmp_path, **settings)
  assert code == 1 and '5 steps in a row' in output, output
  rows = [row for row in read(tmp_path / 'metrics.jsonl') if 'skipped' in row]
  assert [(row['step'], row['skipped']) for row in rows] == [(4, 0), (8, 0), (12, 0), (16, 4)]
  assert 'loss' not in rows[-1]
  with Checkpoints(tmp_path / 'checkpoints') as checkpoints:
    assert checkpoints.steps() == [10]


def test_a_full_disk_loses_nothing_that_was_saved(whole, tmp_path):
  code, output = program(tmp_path, 'full', 15)
  assert code == 1 and f'{tmp_path}: the disk is full' in output, output
  code, output = program(tmp_path)
  assert code == 0 and 'going on from step 10' in output, output
  assert (tmp_path / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()


def test_too_little_space_is_said_before_anything_is_trained(tmp_path, monkeypatch):
  free = shutil.disk_usage(tmp_path)._replace(free=10_000)
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: free)
  with pytest.raises(
    InputError, match=f'{tmp_path}/checkpoints: 0.00 GB are free.*config.checkpoint.keep'
  ):
    train(tiny(), tmp_path)
  assert not list(tmp_path.iterdir()), 'nor is a folder left that was not there'


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(InputError, match='--workdir: .*/file/run cannot be written .Not a directory'):
    train(tiny(), tmp_path / 'file' / 'run')


def test_a_loss_that_couples_a_batch_refuses_microbatches(tmp_path):
  settings = {'parallel.microbatches': 2, 'loss.timestep_distribution': 'importance'}
  with pytest.raises(InputError, match='config.parallel.microbatches: this loss couples'):
    train(tiny(**settings), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_made(tmp_path):
  with pytest.raises(InputError, match='config.dataset.batch_size: 12 .* 8 devices'):
    train(tiny(**{'dataset.batch_size': 12}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


WINDOW = {'count': 0, 'sums': {}, 'missed': 0, 'skipped': 0}


@pytest.mark.parametrize(
  'record',
  [
    {},
    [],
    None,
    7,
    {'data': {'next_index': 30}},
    {'data': {}, 'window': WINDOW},
    {'data': {'next_index': '30'}, 'window': WINDOW},
    {'data': {'next_index': 30}, 'window': {}},
    {'data': {'next_index': 30}, 'window': WINDOW | {'sums': []}},
    {'data': {'next_index': 30}, 'window': WINDOW | {'sums': {'loss': 'small'}}},
  ],
)
def test_a_record_of_another_form_is_none(record):
  assert is_record({'data': {'next_index': 30}, 'window': WINDOW})
  assert not is_record(record)


def test_a_checkpoint_whose_record_is_none_is_named_with_its_mend(whole, tmp_path):
  workdir = shutil.copytree(whole, tmp_path / 'copy')
  newest = workdir / 'checkpoints' / '30'
  good = json.loads((newest / 'record' / 'metadata').read_text())
  assert is_record(good)
  for path in newest.rglob('checksums.json'):
    path.unlink()
  (newest / 'record' / 'metadata').write_text('{}')
  words = f'{newest}: cannot be read .its record .* delete that folder to go on from step 20'
  with pytest.raises(InputError, match=words):
    train(tiny(**{'training.num_steps': 40}), workdir)


def test_a_damaged_config_json_is_named(whole, tmp_path):
  (tmp_path / 'config.json').write_text((whole / 'config.json').read_text()[:100])
  with pytest.raises(InputError, match=f'{tmp_path}/config.json: cannot be read'):
    train(tiny(), tmp_path)


def test_due_is_every_so_many_steps_and_the_last():
  assert [step for step in range(1, 11) if due(step, 4, 10)] == [4, 8, 10]


def test_one_signal_is_noted_and_a_second_acts_at_once():
  with stopping() as asked:
    assert not asked()
    os.kill(os.getpid(), signal.SIGINT)
    assert asked() and asked.signum == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
