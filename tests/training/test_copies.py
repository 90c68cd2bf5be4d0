"""Runs in a bucket, and runs whose machine is made anew beside their checkpoints."""

import json

import jax
import numpy as np
import pytest
from few import few
from quick import apart, quick, start, trained
from tiny import shapes_of, tiny

from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.sampling import Samples, load_samples, save_samples
from ddpm_jax.stores import path_of
from ddpm_jax.tasks.run import load_run
from ddpm_jax.tasks.train import train
from ddpm_jax.training.checkpoint import Checkpoints, whole_steps
from ddpm_jax.training.copies import beside
from ddpm_jax.training.metrics import read

__all__ = ['quick']


def final(checkpoints, config):
  """The newest checkpoint, as NumPy's arrays, and its record."""
  with Checkpoints(checkpoints) as found:
    state, record = found.restore(found.latest_step(), shapes_of(config))
  return jax.tree.map(np.asarray, state), record


def assert_same(one, other):
  assert one[1] == other[1]
  for (path, a), b in zip(
    jax.tree.leaves_with_path(one[0]), jax.tree.leaves(other[0]), strict=True
  ):
    np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_a_run_in_a_bucket_is_resumed_and_is_the_one_on_a_disk(store, bucket, tmp_path):
  config = tiny(**{'training.num_steps': 24})
  train(config, tmp_path / 'run')
  assert start(bucket, config, 14)[-1] == 14  # and is cut off there: the newest checkpoint is of 10
  assert whole_steps(path_of(f'{bucket}/checkpoints', 'x')) == [10]
  train(config, bucket)
  workdir = path_of(bucket, 'workdir')
  assert_same(
    final(workdir / 'checkpoints', config), final(tmp_path / 'run' / 'checkpoints', config)
  )
  local = tmp_path / 'run'
  for name in ('metrics.jsonl', 'loss.png', 'samples/step_0000024.png'):
    assert (workdir / name).read_bytes() == (local / name).read_bytes(), name
  names = [{path.name.split('.')[0] for path in folder.iterdir()} for folder in (workdir, local)]
  assert names[0] == names[1] - {'', 'logs'}, 'all but the lock, and logs, which are on disks'
  run = load_run(bucket, plugins=('tiny',))
  assert run.step == 24
  pixels = np.zeros((2, 8, 8, 1), np.uint8)
  record = {'step': 24, 'seed': 0, 'evaluations': 2, 'sampler': {'guidance': 1.0}}
  save_samples(workdir / 'samples.npz', Samples(pixels, None, record))
  assert load_samples(workdir / 'samples.npz').record['step'] == 24
  with pytest.raises(InputError, match=f'{bucket}: holds another experiment, .* config.seed'):
    start(bucket, tiny(seed=1))


@pytest.mark.parametrize('where', few(['disk', 'bucket'], 'disk'))
def test_a_machine_made_anew_goes_on_as_if_nothing_had_happened(
  quick, tmp_path, where, store, bucket
):
  kept = tmp_path / 'kept' if where == 'disk' else bucket
  trained(tmp_path / 'old', kept)
  trained(tmp_path / 'whole', tmp_path / 'other', 8)
  assert start(tmp_path / 'new', apart(kept), 4)[0] == 5
  lines = [(tmp_path / name / 'metrics.jsonl').read_bytes() for name in ('new', 'whole')]
  assert lines[0] == lines[1] and lines[0].count(b'\n') == 8
  assert json.loads((tmp_path / 'new' / 'config.json').read_text())['config']['seed'] == 0


def test_a_machine_made_anew_knows_what_the_run_has_cost(quick, tmp_path):
  kept, priced = tmp_path / 'kept', {'logging.price_per_chip_hour': 2.0}
  start(tmp_path / 'old', apart(kept, **priced), 5)
  begun = json.loads((tmp_path / 'old' / 'cost.json').read_text())
  start(tmp_path / 'new', apart(kept, **priced), 2)
  assert json.loads((tmp_path / 'new' / 'cost.json').read_text())[: len(begun)] == begun


def test_metrics_beside_the_checkpoints_are_those_to_go_on_from(quick, tmp_path):
  kept = tmp_path / 'kept'
  trained(tmp_path / 'a', kept, 3)
  assert start(tmp_path / 'b', apart(kept), 4)[-1] == 6  # on another machine
  assert start(tmp_path / 'a', apart(kept), 3)[-1] == 9  # and back
  assert [row['step'] for row in read(tmp_path / 'a' / 'metrics.jsonl')] == [*range(1, 9)]


def test_where_the_checkpoints_are_apart(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  run, kept = path_of('run', 'x'), path_of(tmp_path / 'kept', 'x')
  assert beside(run, run / 'checkpoints') is None
  assert beside(run, path_of(tmp_path / 'run' / 'checkpoints', 'x')) is None
  assert beside(run, kept) == kept
  assert str(beside(run, path_of('gs://b/run', 'x'))) == 'gs://b/run'
  assert beside(path_of('gs://b/run', 'x'), path_of('gs://b/run/c', 'x')) is None
