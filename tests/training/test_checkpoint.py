import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from ddpm_jax.errors import InputError, Interrupted
from ddpm_jax.training import checksums
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.state import init_state

RECORD = {'data': {'next_index': 96}, 'window': {'sums': {'loss': 0.1 + 0.2}}}


def state(value=1.0, size=64):
  params = {'network': {'w': jnp.full((size, size), value), 'b': jnp.zeros(3)}, 'loss': {}}
  return init_state(params, optax.adam(1e-3), loss_state=jnp.arange(4.0), averages=('0.99',))


def equal(one, two):
  return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), one, two)))


@pytest.fixture
def filled(tmp_path):
  """A folder with checkpoints of steps 10, 20 and 30, in which every weight is the step."""
  with Checkpoints(tmp_path, keep=3) as checkpoints:
    for step in (10, 20, 30):
      checkpoints.save(step, state(float(step)), RECORD)
  return tmp_path


def test_a_state_comes_back_as_it_was_with_its_record(filled):
  with Checkpoints(filled) as checkpoints:
    assert checkpoints.steps() == [10, 20, 30]
    assert checkpoints.latest_step() == 30
    restored, record = checkpoints.restore(20, jax.eval_shape(state))
  assert jax.tree.structure(restored) == jax.tree.structure(state())
  assert equal(restored, state(20.0))
  assert record == RECORD


def test_a_branch_is_read_without_the_rest(filled):
  like = {'ema': {'0.99': jax.eval_shape(state).params}}
  with Checkpoints(filled) as checkpoints:
    part = checkpoints.restore_part(30, like)
  assert list(part) == ['ema']
  assert equal(part['ema']['0.99'], state(30.0).params)


def test_only_the_newest_are_kept(tmp_path):
  with Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 3, 4):
      checkpoints.save(step, state(), {})
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
  assert sorted(path.name for path in tmp_path.iterdir()) == ['3', '4']


def truncate(folder):
  """Halves the largest file, as a full disk would."""
  largest = max((p for p in folder.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
  data = largest.read_bytes()
  largest.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
  ('step', 'damage', 'mend'),
  [
    (30, truncate, 'delete that folder to go on from step 20'),
    (10, truncate, 'delete that folder to start anew'),
    (30, lambda folder: (folder / 'record' / 'metadata').write_text('{"da'), 'from step 20'),
    (30, lambda folder: (folder / 'state' / '_METADATA').unlink(), 'from step 20'),
  ],
)
def test_a_damaged_checkpoint_is_named_with_its_mend_and_left_alone(
  filled, capfd, step, damage, mend
):
  damage(filled / str(step))
  before = {path: path.read_bytes() for path in filled.rglob('*') if path.is_file()}
  with Checkpoints(filled, keep=3) as checkpoints, pytest.raises(InputError) as caught:
    checkpoints.restore(step, jax.eval_shape(state))
  message = str(caught.value)
  assert message.startswith(str(filled / str(step)))
  assert mend in message and '\n' not in message
  assert before == {path: path.read_bytes() for path in filled.rglob('*') if path.is_file()}
  del caught
  assert capfd.readouterr().err == ''


def test_after_the_mend_the_one_before_is_restored(filled):
  truncate(filled / '30')
  for path in sorted((filled / '30').rglob('*'), reverse=True):
    path.rmdir() if path.is_dir() else path.unlink()
  (filled / '30').rmdir()
  with Checkpoints(filled, keep=3) as checkpoints:
    restored, _ = checkpoints.restore(checkpoints.latest_step(), jax.eval_shape(state))
  assert equal(restored, state(20.0))


def test_donating_steps_do_not_disturb_a_save_under_way(tmp_path):
  scramble = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  with Checkpoints(tmp_path, keep=5) as checkpoints:
    for step in range(1, 5):
      current = state(float(step), size=1024)
      checkpoints.save(step, current, {})
      for _ in range(5):
        donated, current = current, scramble(current)
      assert donated.params['network']['w'].is_deleted()
    checkpoints.wait()
    like = jax.eval_shape(lambda: state(size=1024))
    for step in range(1, 5):
      restored, _ = checkpoints.restore(step, like)
      assert equal(restored, state(float(step), size=1024))


def test_a_signal_while_it_is_read_is_no_damage(filled, monkeypatch):
  def end(*args, **kwargs):
    raise Interrupted(signal.SIGTERM, 'ended by SIGTERM')

  monkeypatch.setattr(ocp.CheckpointManager, 'restore', end)
  with Checkpoints(filled) as checkpoints, pytest.raises(Interrupted):
    checkpoints.restore(30, jax.eval_shape(state))


def test_the_record_keeps_every_digit(tmp_path):
  values = [float(np.nextafter(x, 2 * x)) for x in (0.1, 1e-300, 3e5)]
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, {'x': jnp.zeros(2)}, {'values': values})
    checkpoints.wait()
    _, record = checkpoints.restore(1, {'x': jnp.zeros(2)})
  assert record == {'values': values}


def flip(path, position):
  """Turns one bit of a file; returns what undoes it."""
  before = path.read_bytes()
  after = bytearray(before)
  after[position // 8] ^= 1 << position % 8
  path.write_bytes(after)
  return lambda: path.write_bytes(before)


def some_bits(path, count):
  """Positions of bits: the first, the last, and others at random."""
  size = 8 * path.stat().st_size
  return {0, size - 1, *np.random.default_rng(0).integers(0, size, count).tolist()}


def parts(folder):
  """The files that a checkpoint's values come from, and notes on when and how it was written."""
  paths = [path for path in folder.rglob('*') if path.is_file()]
  notes = [path for path in paths if path.name in ('_CHECKPOINT_METADATA', 'commit_success.txt')]
  return [path for path in paths if path not in notes], notes


@pytest.mark.parametrize('read', ['restore', 'restore_part'])
def test_a_flipped_bit_is_named_wherever_it_is(filled, read):
  like = {'params': jax.eval_shape(state).params} if read == 'restore_part' else state()
  paths, _ = parts(filled / '30')
  largest = max(paths, key=lambda path: path.stat().st_size)
  with Checkpoints(filled) as checkpoints:
    for path in paths:
      for bit in some_bits(path, 60 if path == largest else 3):
        mend = flip(path, bit)
        with pytest.raises(InputError) as caught:
          getattr(checkpoints, read)(30, like)
        mend()
        message, item = str(caught.value), path.relative_to(filled / '30').parts[0]
        assert message.startswith(f'{filled}/30: cannot be read ({item}'), message
        assert 'delete that folder to go on from step 20' in message and '\n' not in message
        assert path != largest or f'/{path.name} is not as it was written' in message
    getattr(checkpoints, read)(30, like)


def test_a_flipped_bit_in_the_notes_changes_nothing_that_is_read(filled):
  for path in parts(filled / '30')[1]:
    for bit in some_bits(path, 0):
      mend = flip(path, bit)
      with Checkpoints(filled) as checkpoints:
        restored, record = checkpoints.restore(30, jax.eval_shape(state))
      assert equal(restored, state(30.0)) and record == RECORD, (path, bit)
      mend()


def test_a_file_that_is_gone_is_named(filled):
  for path in parts(filled / '30')[0]:
    before = path.read_bytes()
    path.unlink()
    if path.name != checksums.MANIFEST:
      assert path.name in checksums.damage(filled / '30')
    path.write_bytes(before)
  assert checksums.damage(filled / '30') is None


def test_a_checkpoint_without_checksums_is_read_and_said_to_have_none(filled, caplog):
  for path in (filled / '30').rglob(checksums.MANIFEST):
    path.unlink()
  with Checkpoints(filled) as checkpoints:
    restored, _ = checkpoints.restore(30, jax.eval_shape(state))
    checkpoints.restore(20, jax.eval_shape(state))
  assert equal(restored, state(30.0))
  (line,) = [record.getMessage() for record in caplog.records if 'checksums' in record.getMessage()]
  assert line.startswith(f'{filled}/30: has no checksums')


def test_a_save_does_not_ask_in_the_place_of_the_loop_whether_the_run_is_to_end(
  tmp_path, monkeypatch
):
  asked = []
  monkeypatch.setattr(multihost_utils, 'reached_preemption_sync_point', asked.append)
  with Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state(), {})
    checkpoints.wait()
  assert asked == []
