"""Real processes over JAX's distributed runtime, as on a pod: gloo stands for the network."""

import json
import signal

import jax
import numpy as np
import pytest
from etils import epath
from pod import HERE, Pod
from tiny import tiny

from ddpm_jax.training import checksums, load_run
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.experiment import build, new_state
from ddpm_jax.training.metrics import read

TINY = (f'--config={HERE / "tiny_config.py"}', '--config.logging.every_steps=1')
LONG = (*TINY, '--config.training.num_steps=600', '--config.checkpoint.every_steps=100')


def train(workdir, *flags, devices=(1,), **options):
  """Runs to the end."""
  with Pod(workdir, *flags, devices=devices, **options) as pod:
    assert pod.wait() == [0] * len(devices), pod.outputs()
  return workdir


def losses(workdir):
  return [row['loss'] for row in read(workdir / 'metrics.jsonl') if 'loss' in row]


def final(workdir):
  experiment = build(tiny())
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = checkpoints.latest_step()
    state, record = checkpoints.restore(step, jax.eval_shape(lambda: new_state(experiment)))
  return step, jax.tree.map(np.asarray, state), record


def assert_same(one, two, **tolerance):
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """30 steps on one device."""
  return train(tmp_path_factory.mktemp('one') / 'run', *TINY)


HSDP = ('--config.parallel.mode=hsdp', '--config.parallel.slices=2')


@pytest.mark.parametrize('mode', ['pmap', 'fsdp', 'hsdp'])
def test_two_hosts_follow_the_curve_of_one_device(one, tmp_path, mode):
  flags = HSDP if mode == 'hsdp' else [f'--config.parallel.mode={mode}']
  run = train(tmp_path / 'run', *TINY, *flags, devices=(2, 2))
  assert len(losses(run)) == 30
  np.testing.assert_allclose(losses(run), losses(one), rtol=1e-5)
  (step, state, record), expected = final(run), final(one)
  assert (step, record['data']) == (30, {'next_index': 30}) == (expected[0], expected[2]['data'])
  assert_same(state.params, expected[1].params, atol=1e-4)
  found = json.loads((run / 'config.json').read_text())['provenance']['devices']
  assert (found['count'], found['processes']) == (4, 2)
  assert_all_have_checksums(run / 'checkpoints' / '30')


def assert_all_have_checksums(checkpoint):
  """Those of every host's files, and they are right."""
  summed = json.loads((checkpoint / 'state' / 'checksums.json').read_text())
  files = [path for path in (checkpoint / 'state').rglob('*') if path.is_file()]
  names = {path.relative_to(checkpoint / 'state').as_posix() for path in files}
  assert names - {'checksums.json', 'commit_success.txt'} == set(summed)
  assert {name.split('/')[0] for name in summed} >= {'ocdbt.process_0', 'ocdbt.process_1'}
  assert checksums.damage(epath.Path(checkpoint)) is None


DIGITS = (
  '--config=configs/digits.py',
  '--config.training.num_steps=30',
  '--config.optimizer.learning_rate=1e-3',
  '--config.logging.every_steps=1',
)
TOPOLOGIES = {'1x1': (1,), '1x4': (4,), '2x2': (2, 2)}
SLICES = {'1x4': (2, 4), '2x2': (2,)}  # of hsdp; with as many as devices the state is whole


def without_key_biases(params):
  """A bias of all keys moves no weight of an attention: its gradient is zero but for rounding."""

  def kept(path, leaf):
    if 'attention' not in jax.tree_util.keystr(path) or leaf.ndim > 1 or leaf.size % 3:
      return leaf
    return np.concatenate(np.split(leaf, 3)[::2]) if 'qkv' in jax.tree_util.keystr(path) else leaf

  return jax.tree.map_with_path(kept, params)


@pytest.mark.slow
def test_every_way_and_every_topology_trains_one_network_alike(tmp_path):
  """The digits' U-Net, with attention: 30 steps, twelve times."""
  ways = {
    f'{mode}-{name}': (devices, [f'--config.parallel.mode={mode}'])
    for mode in ('pmap', 'jit', 'fsdp')
    for name, devices in TOPOLOGIES.items()
  } | {
    f'hsdp-{name}-{slices}': (
      TOPOLOGIES[name],
      ['--config.parallel.mode=hsdp', f'--config.parallel.slices={slices}'],
    )
    for name, each in SLICES.items()
    for slices in each
  }
  runs = [
    train(tmp_path / name, *DIGITS, *flags, devices=devices)
    for name, (devices, flags) in ways.items()
  ]
  first, *others = runs
  curve, params = losses(first), load_params(first)
  assert len(curve) == 30 and curve[-1] < curve[0]
  for other in others:
    np.testing.assert_allclose(losses(other), curve, rtol=1e-5)
    assert_same(load_params(other), params, atol=1e-4)


def load_params(workdir):
  return without_key_biases(
    jax.tree.map(np.asarray, load_run(workdir, ema=False, plugins=('tiny',)).params)
  )


@pytest.fixture(scope='module')
def long(tmp_path_factory):
  """600 steps of two hosts that nothing disturbed."""
  return train(tmp_path_factory.mktemp('long') / 'run', *LONG, devices=(1, 1))


def reached(workdir, step):
  return lambda: any(row['step'] >= step for row in read(workdir / 'metrics.jsonl'))


def test_a_preempted_host_makes_all_save_at_one_step_and_any_topology_goes_on(long, tmp_path):
  run = tmp_path / 'run'
  with Pod(run, *LONG, devices=(1, 1)) as pod:
    pod.when(reached(run, 150))
    pod.signal(1, signal.SIGTERM)
    assert pod.wait() == [143, 143], pod.outputs()
    said = {text.rsplit('interrupted and saved at step ', 1)[1] for text in pod.outputs()}
  step = int(said.pop().split(';')[0])
  assert not said and 150 < step < 600
  assert final(run)[0] == step
  train(run, *LONG, '--config.parallel.mode=fsdp', devices=(4,))
  (end, state, record), expected = final(run), final(long)
  assert (end, record['data']) == (600, expected[2]['data'])
  np.testing.assert_allclose(losses(run), losses(long), rtol=1e-3)
  assert_same(state.params, expected[1].params, atol=1e-3)


@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_host_ends_the_others_and_the_run_resumes_bit_for_bit(long, tmp_path, victim):
  run = tmp_path / 'run'
  with Pod(run, *LONG, devices=(1, 1), timeout=10) as pod:
    pod.when(reached(run, 250))
    pod.signal(victim, signal.SIGKILL)
    codes = pod.wait()
  assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 143), pod.outputs()
  told = pod.outputs()[1 - victim]
  assert 'lost another host' in told or 'another task died' in told
  train(run, *LONG, devices=(1, 1))
  (_, state, record), expected = final(run), final(long)
  assert record == expected[2]
  assert_same(state, expected[1], rtol=0)
  assert (run / 'metrics.jsonl').read_bytes() == (long / 'metrics.jsonl').read_bytes()


def test_two_hosts_draw_the_samples_of_one_and_the_first_writes_them(long, tmp_path):
  flags = ('--num=21', '--batch_size=8', '--steps=5', '--plugins=tiny')
  for devices in ((1,), (2, 2)):
    with Pod(long, *flags, devices=devices, command='experiments.sample') as pod:
      assert pod.wait() == [0] * len(devices), pod.outputs()
    (long / 'samples.npz').rename(tmp_path / f'{len(devices)}.npz')
  assert 'samples.npz' not in pod.outputs()[1]
  one, two = (np.load(tmp_path / f'{hosts}.npz')['arr_0'] for hosts in (1, 2))
  assert one.shape == (21, 8, 8, 1) and np.ptp(one) > 100
  assert np.abs(one.astype(int) - two).max() <= 1, 'rounding to a level'


def test_checkpoints_may_be_apart_from_folders_that_hosts_do_not_share(one, tmp_path):
  apart = (*TINY, f'--config.checkpoint.folder={tmp_path}/kept')
  own = [(f'--workdir={tmp_path}/{host}',) for host in (0, 1)]
  train(tmp_path / '0', *apart, devices=(1, 1), own=own)
  assert not (tmp_path / '1').exists() and not (tmp_path / '0' / 'checkpoints').exists()
  np.testing.assert_allclose(losses(tmp_path / '0'), losses(one), rtol=1e-5)
  assert load_run(tmp_path / '0', plugins=('tiny',)).step == 30


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_data_that_fails_on_one_host_ends_all_after_they_have_saved(tmp_path, victim):
  run = tmp_path / 'run'
  with Pod(run, *LONG, f'--cut={victim}', devices=(1, 1), command='cut_train') as pod:
    assert pod.wait() == [2, 2], pod.outputs()
  words = f'host {victim}: the file of example 7 is cut'
  assert all(words in text for text in pod.outputs()), pod.outputs()
  step, state, record = final(run)
  # Where all meet is at most as many calls ahead as a host holds batches for.
  assert 250 - 9 <= step <= 250 and record['data'] == {'next_index': step} and state.step == step
  train(run, *LONG, devices=(1, 1))
  assert final(run)[0] == 600


MISTAKES = {
  'another seed': (
    {'own': [(), ('--config.seed=1',)]},
    'host 1 differs from host 0 in config.seed: 1, not 0',
  ),
  'unequal devices': ({'devices': (1, 2)}, 'host 0 has 1, host 1 has 2'),
  'another folder': ({'own': [('--workdir=/tmp/a',), ('--workdir=/tmp/b',)]}, 'in checkpoints'),
  'bad data on one': (
    {
      'own': [
        (),
        (
          '--config.dataset.name=folder',
          '--config.dataset.path=/nowhere',
          '--config.dataset.image_size=8',
        ),
      ]
    },
    'host 1: config.dataset',
  ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_hosts_that_do_not_fit_all_say_why(tmp_path, mistake):
  options, words = MISTAKES[mistake]
  with Pod(tmp_path / 'run', *TINY, **{'devices': (1, 1), **options}) as pod:
    assert pod.wait() == [2, 2], pod.outputs()
  assert all(words in text for text in pod.outputs()), pod.outputs()
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_host_that_waits_in_vain_says_for_whom(tmp_path):
  alone = ('--num_processes=2', '--process_id=1', '--host_timeout=3')
  with Pod(tmp_path / 'run', *TINY, '--coordinator=127.0.0.1:1', *alone) as pod:
    assert pod.wait(30) == [2], pod.outputs()
  assert 'not all of 2 hosts at 127.0.0.1:1 have come within 3 s' in pod.outputs()[0]
