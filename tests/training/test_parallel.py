"""What the ways of running a step hold where, and what they send to whom."""

import re
import types

import jax
import numpy as np
import optax
import pytest
import test_step
from test_step import DECAYS, WAYS, batch, make, make_bare, new_params
from tiny import tiny

from ddpm_jax.errors import InputError
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import remarks
from ddpm_jax.tasks.train import train
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.parallel import hsdp, in_slices, make_parallel
from ddpm_jax.training.state import init_state

ITEM = {'f32': 4, 'u32': 4, 's32': 4, 'pred': 1}


def device(slice_index, process_index=0):
  return types.SimpleNamespace(slice_index=slice_index, process_index=process_index)


def test_slices_are_those_that_devices_name_or_equal_parts():
  devices = [device(number) for number in (3, 3, 0, 0)]
  assert [[each.slice_index for each in row] for row in in_slices(devices)] == [[3, 3], [0, 0]]
  assert in_slices(devices, 4).shape == (4, 1)
  assert in_slices([object()] * 4).shape == (1, 4)


@pytest.mark.parametrize(
  ('numbers', 'slices', 'words'),
  [
    ((0, 0, 1), None, "'hsdp' needs slices of equally many devices, and they have 2, 1"),
    ((0, 1, 0, 1), None, "'hsdp' needs hosts in the order of their slices, which are 0, 1, 0, 1"),
    ((0,) * 8, 3, 'config.parallel.slices: 3 slices .* of 8 devices; use one of 1, 2, 4, 8'),
    ((0,), 2, 'config.parallel.slices: 2 slices cannot be made of 1 devices; use one of 1'),
  ],
)
def test_slices_that_do_not_fit_are_refused(numbers, slices, words):
  with pytest.raises(InputError, match=words):
    in_slices([device(number) for number in numbers], slices)


def test_only_hsdp_takes_slices():
  with pytest.raises(InputError, match="config.parallel.slices: 2 is set, but 'jit' makes no use"):
    make_parallel('jit', jax.devices(), slices=2)


def test_slices_are_refused_before_anything_is_made(tmp_path):
  with pytest.raises(InputError, match='config.parallel.slices: 3 slices'):
    train(tiny(**{'parallel.mode': 'hsdp', 'parallel.slices': 3}), tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_one_slice_is_said_to_be_fsdp():
  for slices, expected in ((None, 1), (2, 0)):
    settings = {'parallel.mode': 'hsdp', 'parallel.slices': slices}
    found = [line for line in remarks(build(tiny(**settings))) if "'hsdp' is 'fsdp'" in line]
    assert len(found) == expected


@pytest.mark.parametrize('count', [4, 8])
def test_slices_hold_the_same_pieces(count):
  """Of two slices each has the whole state, in pieces as large as its devices are many."""
  parallel = hsdp(jax.devices()[:count], 2)
  kernel = parallel.place_state({'kernel': np.arange(2048.0).reshape(16, 128)})['kernel']
  pieces = {shard.device.id: np.asarray(shard.data) for shard in kernel.addressable_shards}
  half = count // 2
  for n in range(half):
    expected = np.arange(2048.0).reshape(16, half, -1)[:, n]
    np.testing.assert_array_equal(pieces[n], expected)
    np.testing.assert_array_equal(pieces[half + n], expected)


def trained(name, count):
  """A state after three steps of plain gradient descent, on the host, and their losses."""
  step, state, parallel = make(name, count, optimizer=optax.sgd(0.1))
  losses = []
  for n in range(3):
    state, metrics = step(state, {}, parallel.place_batch(batch(n)))
    losses.append(float(metrics['loss']))
  return jax.device_get(state), losses


def test_slices_train_as_all_other_ways_do():
  """Gradient descent hands rounding on as it is, where Adam enlarges that of small gradients."""
  expected, curve = trained('pmap', 1)
  for name, count in (('jit', 8), ('fsdp', 8), ('hsdp', 4), ('hsdp', 8)):
    state, losses = trained(name, count)
    np.testing.assert_allclose(losses, curve, rtol=2e-7)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=2e-7)


def test_a_checkpoint_of_slices_restores_in_any_way_and_any_in_slices(tmp_path):
  optimizer = optax.adam(1e-2)
  state = init_state(new_params(), optimizer, (), tuple(DECAYS))
  ways = {name: make_way(jax.devices()[:4]) for name, make_way in WAYS.items()}
  for name, parallel in ways.items():
    with Checkpoints(tmp_path / name) as checkpoints:
      checkpoints.save(1, parallel.for_checkpoint(parallel.place_state(state)), {})
      checkpoints.wait()
      for other in ways if name == 'hsdp' else ['hsdp']:
        like = ways[other].layout(jax.eval_shape(lambda: state))
        restored, _ = checkpoints.restore(1, like)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
          np.testing.assert_array_equal(a, b, err_msg=f'{name} in {other}')


def collectives(text, count):
  """(operation, bytes of its results on a device, its groups of devices) of a compiled program."""
  operation = r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  for line in text.splitlines():
    if found := re.search(rf'{operation}(?:-start)?\(.*?(replica_groups=.*)', line):
      arrays = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
      size = sum(ITEM[kind] * np.prod(integers(shape), dtype=int) for kind, shape in arrays)
      yield found[2], size, groups(found[3], count)


def groups(text, count):
  """The groups of devices, (groups, members), in each of the forms in which XLA writes them."""
  if found := re.match(r'replica_groups=\{(\{.*?\})\}', text):
    return np.array([integers(row) for row in re.findall(r'\{(.*?)\}', found[1])])
  order = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if found := re.match(rf'replica_groups=\[([\d,]+)\]<={order}', text):
    return arranged(found[2], found[3]).reshape(integers(found[1]))
  form = rf'replica_groups=mesh\[(.*?)\](?:, device_ids=\({order}\))? \{{([^:]*?)\}}'
  axes, shape, turned, summed = re.match(form, text).groups()
  sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
  ids = arranged(shape or str(count), turned).reshape([*sizes.values()])
  over = [[*sizes].index(name) for name in re.findall(r"'(\w+)'", summed)]
  ids = np.moveaxis(ids, over, range(-len(over), 0))
  return ids.reshape(-1, np.prod(ids.shape[-len(over) :], dtype=int))


def arranged(shape, turned):
  """Numbers in this order: of '2,4' and '1,0' those of a (4, 2) array, column by column."""
  ids = np.arange(np.prod(integers(shape))).reshape(integers(shape))
  return ids.transpose(integers(turned)) if turned else ids


def integers(text):
  return [int(number) for number in text.split(',') if number]


@pytest.mark.parametrize('count', [4, 8])
def test_only_the_sum_of_each_devices_piece_of_the_gradient_goes_between_slices(count, monkeypatch):
  """The compiled step's own words: groups that hold devices of both slices, and what they send."""
  parallel = hsdp(jax.devices()[:count], 2)
  monkeypatch.setitem(test_step.WAYS, 'these', lambda devices: parallel)
  optimizer = optax.adam(1e-2)
  state = parallel.place_state(init_state(new_params(), optimizer, (), tuple(DECAYS)))
  step = parallel.compile(make_bare('these', count, optimizer=optimizer))
  text = step.lower(state, {}, parallel.place_batch(batch())).compile().as_text()
  found = [*collectives(text, count)]
  crossing = [
    (name, size) for name, size, rows in found if np.ptp(rows // (count // 2), axis=1).any()
  ]
  assert any(name == 'all-gather' for name, _, _ in found)
  assert {name for name, _ in crossing} == {'all-reduce'}
  sent = sum(size for _, size in crossing)
  parameters = 4 * sum(leaf.size for leaf in jax.tree.leaves(new_params()))
  vector = 4 * 128  # too small to be divided
  assert parameters / (count // 2) <= sent <= parameters / (count // 2) + vector + 64
