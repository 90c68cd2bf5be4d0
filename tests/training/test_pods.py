"""Real processes over JAX's distributed runtime, as on a pod: gloo stands for the network."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from etils import epath
from few import few
from pod import HERE, Pod
from tiny import shapes_of, tiny

from ddpm_jax.stores import path_of
from ddpm_jax.tasks.run import load_run
from ddpm_jax.training import checksums
from ddpm_jax.training.checkpoint import Checkpoints
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
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    step = checkpoints.latest_step()
    state, record = checkpoints.restore(step, shapes_of(tiny()))
  return step, jax.tree.map(np.asarray, state), record


def assert_same(one, two, **tolerance):
  for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, err_msg=jax.tree_util.keystr(path), **tolerance)


@pytest.fixture(scope='module')
def one(tmp_path_factory):
  """30 steps on one device."""
  return train(tmp_path_factory.mktemp('one') / 'run', *TINY)


HSDP = ('--config.parallel.mode=hsdp', '--config.parallel.slices=2')


@pytest.mark.parametrize('mode', few(['pmap', 'fsdp', 'hsdp'], 'pmap'))
def test_two_hosts_follow_the_curve_of_one_device(one, tmp_path, mode):
  flags = HSDP if mode == 'hsdp' else [f'--config.parallel.mode={mode}']
  run = train(tmp_path / 'run', *TINY, *flags, devices=(2, 2))
  assert len(losses(run)) == 30
  np.testing.assert_allclose(losses(run), losses(one), rtol=1e-6)
  (step, state, record), expected = final(run), final(one)
  assert (step, record['data']) == (30, {'next_index': 30}) == (expected[0], expected[2]['data'])
  assert_same(state.params, expected[1].params, rtol=0, atol=2e-7)
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


@pytest.mark.slow
def test_a_stop_inside_a_save_is_heard_however_far_the_run_is(long, tmp_path):
  """Orbax could ask for it in the loop's place, by a count of its own."""
  run = shutil.copytree(long, tmp_path / 'run')
  flags = (*LONG, '--config.training.num_steps=660', '--config.checkpoint.every_steps=1')
  struck = ('--stage=saving', '--step=603', '--struck=1')
  with Pod(run, *flags, *struck, devices=(1, 1), command='struck_train') as pod:
    assert pod.wait() == [143, 143], pod.outputs()
  saved = final(run)[0]
  assert 603 <= saved <= 606
  for host, said in enumerate(pod.outputs()):
    line = f'interrupted and saved at step {saved};'
    assert line in said and line in (run / 'logs' / f'host-{host}.txt').read_text()


# Stages at which SIGTERM comes, one after the other in the life of a run, and to which hosts.
STOPS = {
  'joining': '0',
  'reading the data': '1',
  'restoring': '0,1',
  'compiling': '1',
  'a step': '0,1',
  'saving': '0',
  'writing': '0',
  'held-out losses': '0',
  'a preview': '0',
}
LATE_STOPS = {'the last wait': '1', 'the summary': '0,1'}  # all is done: it ends as if unheard


@pytest.mark.slow
def test_a_stop_at_any_stage_ends_all_hosts_and_the_run_goes_on_bit_for_bit(long, tmp_path):
  run, before = tmp_path / 'run', 0
  for stage, struck in (STOPS | LATE_STOPS).items():
    flags = (*LONG, f'--stage={stage}', f'--struck={struck}')
    if stage == 'a preview':
      flags += ('--config.logging.preview_every_steps=20',)
    with Pod(run, *flags, devices=(1, 1), command='struck_train') as pod:
      assert pod.wait() == [0 if stage in LATE_STOPS else 143] * 2, (stage, pod.outputs())
    assert all('Traceback' not in said for said in pod.outputs()), pod.outputs()
    step = Checkpoints(run / 'checkpoints').latest_step() or 0
    assert step == 600 if stage in LATE_STOPS else before <= step < 600
    before = step
    if stage == 'the last wait':
      (run / 'checkpoints' / '600').rename(tmp_path / '600')  # and it goes on from the one before
      before = 0
  (_, state, record), expected = final(run), final(long)
  assert record == expected[2]
  assert_same(state, expected[1], rtol=0)
  assert (run / 'metrics.jsonl').read_bytes() == (long / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
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
  # What a host other than the first sees of the folder may be of before there was any checkpoint.
  train(run, *LONG, '--stale=1', devices=(1, 1), command='stale_train')
  assert_bitwise(run, long)


def assert_bitwise(run, other):
  """The same end: state, record and metrics."""
  (_, state, record), expected = final(run), final(other)
  assert record == expected[2]
  assert_same(state, expected[1], rtol=0)
  assert (run / 'metrics.jsonl').read_bytes() == (other / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_so_does_one_in_a_bucket(long, store, bucket, tmp_path, victim):
  run, flags = path_of(bucket, 'workdir'), (*LONG, f'--workdir={bucket}')
  with Pod(tmp_path / 'run', *flags, devices=(1, 1), timeout=15) as pod:
    pod.when(reached(run, 250))
    pod.signal(victim, signal.SIGKILL)
    codes = pod.wait()
  assert codes[victim] == -signal.SIGKILL and codes[1 - victim] not in (0, 143), pod.outputs()
  train(tmp_path / 'run', *flags, devices=(1, 1))
  assert 'going on from step' in (tmp_path / 'run-host-0.log').read_text()
  assert_bitwise(run, long)
  for command in ('sample', 'evaluate'):
    flags = ('--plugins=tiny', f'--workdir={bucket}')
    with Pod(tmp_path / command, *flags, devices=(1,), command=f'experiments.{command}') as pod:
      assert pod.wait() == [0], pod.outputs()
  assert json.loads((run / 'report.json').read_bytes())['finished']


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_signal_ends_a_host_that_has_nothing_to_save_at_once(long):
  flags = ('--num=100000', '--batch_size=8', '--steps=20', '--plugins=tiny')
  with Pod(long, *flags, devices=(1, 1), timeout=10, command='experiments.sample') as pod:
    pod.when(lambda: all('Gloo' in said for said in pod.outputs()))  # they have met
    pod.signal(1, signal.SIGTERM)
    assert pod.hosts[1].wait(10) == 143, pod.outputs()
    assert pod.wait(30)[0] not in (0, 143), pod.outputs()
  assert pod.outputs()[1].endswith('ended by SIGTERM\n')
  assert not (long / 'samples.npz').exists()


@pytest.mark.slow
def test_checkpoints_may_be_apart_from_folders_that_hosts_do_not_share(one, tmp_path):
  apart = (*TINY, f'--config.checkpoint.folder={tmp_path}/kept')
  own = [(f'--workdir={tmp_path}/{host}',) for host in (0, 1)]
  train(tmp_path / '0', *apart, devices=(1, 1), own=own)
  assert [path.name for path in (tmp_path / '1').iterdir()] == ['logs']
  assert not (tmp_path / '0' / 'checkpoints').exists()
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


@pytest.mark.parametrize('mistake', few(MISTAKES, 'another seed'))
def test_hosts_that_do_not_fit_all_say_why(tmp_path, mistake):
  options, words = MISTAKES[mistake]
  with Pod(tmp_path / 'run', *TINY, **{'devices': (1, 1), **options}) as pod:
    assert pod.wait() == [2, 2], pod.outputs()
  assert all(words in text for text in pod.outputs()), pod.outputs()
  assert not (tmp_path / 'run' / 'checkpoints').exists()


@pytest.mark.slow
def test_a_signal_ends_a_host_that_waits_for_the_others(tmp_path):
  """The runtime waits outside of Python, which would call no handler before the wait is over."""
  alone = ('--num_processes=2', '--process_id=1', '--host_timeout=120')
  with Pod(tmp_path / 'run', *TINY, '--coordinator=127.0.0.1:1', *alone) as pod:
    time.sleep(15)
    pod.signal(0, signal.SIGTERM)
    assert pod.wait(5) == [143], pod.outputs()
  assert 'ended by SIGTERM while it waited for the other hosts' in pod.outputs()[0]


def test_a_host_that_waits_in_vain_says_for_whom(tmp_path):
  alone = ('--num_processes=2', '--process_id=1', '--host_timeout=3')
  with Pod(tmp_path / 'run', *TINY, '--coordinator=127.0.0.1:1', *alone) as pod:
    assert pod.wait(30) == [1], pod.outputs()
  assert 'not all of 2 hosts at 127.0.0.1:1 have come within 3 s' in pod.outputs()[0]
