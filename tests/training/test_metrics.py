import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import metrics
from ddpm_jax.training.metrics import Display, MetricWriter, Window


def test_a_step_is_complete_when_two_later_ones_are_under_way():
  window = Window()
  complete = [list(window.add(step, {'loss': jnp.float32(step)})) for step in (1, 2, 3, 4)]
  assert complete == [[], [], [1], [2]]
  assert window.mean() == {'loss': 1.5, 'skipped': 0}
  assert list(window.flush()) == [3, 4]
  assert window.mean() == {'loss': 3.5, 'skipped': 0}


def test_a_window_goes_on_from_its_record_bit_for_bit():
  losses = np.random.default_rng(0).uniform(size=9).astype(np.float32)
  whole, half = Window(), Window()
  for step, loss in enumerate(losses):
    list(whole.add(step, {'loss': jax.device_put(loss)}))
    if step == 5:
      list(half.flush())
      half = Window(json.loads(json.dumps(half.record())))
    list(half.add(step, {'loss': jax.device_put(loss)}))
  assert list(whole.flush()) and list(half.flush())
  assert whole.mean() == half.mean()


def write(workdir, steps, start=0):
  writer = MetricWriter(workdir, start)
  for step in steps:
    writer.write(step, {'loss': 1 / step})


def test_a_line_holds_a_step_and_its_scalars_but_no_clock(tmp_path):
  write(tmp_path, [10, 20])
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert rows == [{'step': 10, 'loss': 0.1}, {'step': 20, 'loss': 0.05}]


def test_each_line_is_closed_with_its_file_as_a_mounted_bucket_wants(tmp_path):
  path, writer = tmp_path / 'metrics.jsonl', MetricWriter(tmp_path)
  writer.write(1, {'loss': 1.0})
  path.rename(tmp_path / 'before.jsonl')
  writer.write(2, {'loss': 2.0})  # would follow a file that is open
  assert [row['step'] for row in metrics.read(path)] == [2]


def test_what_a_killed_run_wrote_after_its_checkpoint_is_dropped(tmp_path):
  write(tmp_path, range(1, 31))
  path = tmp_path / 'metrics.jsonl'
  path.write_text(path.read_text() + '{"step": 31, "lo')
  write(tmp_path, range(21, 41), start=20)
  once = tmp_path / 'once'
  once.mkdir()
  write(once, range(1, 41))
  assert path.read_bytes() == (once / 'metrics.jsonl').read_bytes()


def test_read_leaves_out_a_line_cut_short(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  assert metrics.read(path) == []
  path.write_text('{"step": 1, "loss": NaN}\n{"step": 2')
  (row,) = metrics.read(path)
  assert row['step'] == 1 and np.isnan(row['loss'])


@pytest.mark.parametrize(
  'broken',
  [
    b'{"step": 2, "loss": 0.\xff}',
    b'{"step": 2, "lo',
    b'[]',
    b'null',
    b'{"loss": 1}',
    b'{"step": "2"}',
    b'{"step": 2, "loss": [1]}',
    b'[' * 100_000,
  ],
)
def test_a_broken_line_is_named_and_the_others_are_kept(tmp_path, caplog, broken):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(b'{"step": 1}\n' + broken + b'\n{"step": 3}\n{"step": 4}\n')
  assert metrics.read(path) == [{'step': 1}, {'step': 3}, {'step': 4}]
  (record,) = caplog.records
  assert record.getMessage().startswith(f'{path}, line 2: cannot be read (')
  metrics.cut(path, 3)
  assert path.read_bytes() == b'{"step": 1}\n{"step": 3}\n'


def test_without_a_terminal_lines_come_now_and_then(capsys, monkeypatch):
  clock = iter(np.arange(0.0, 100.0, 4.0))
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(clock))
  display = Display(step=0, num_steps=50, batch_size=128, seconds=10.0)
  rates = [display.update(step, loss=0.25) for step in (10, 20, 30, 40, 50)]
  lines = capsys.readouterr().out.splitlines()
  assert rates == pytest.approx([10 * 128 / 4] * 5)
  assert [line.split()[1] for line in lines] == ['30/50', '50/50']
  assert '320 images/s' in lines[0] and '8 s left' in lines[0] and 'loss 0.2500' in lines[0]
