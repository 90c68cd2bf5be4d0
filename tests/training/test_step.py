import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax import data
from ddpm_jax.codec import pixels
from ddpm_jax.diffusion import PARAMETERIZATIONS, SCHEDULES
from ddpm_jax.errors import InputError
from ddpm_jax.keys import for_purpose, step_key
from ddpm_jax.losses import LOSSES, TIMESTEP_DISTRIBUTIONS, LossContext, LossOutput, make_factors
from ddpm_jax.losses.timestep_distributions import memory
from ddpm_jax.training.parallel import PARALLEL, check_batch_size, hsdp
from ddpm_jax.training.state import init_state
from ddpm_jax.training.step import make_train_step, several
from ddpm_jax.training.task import Task

SHAPE, BATCH, LEVELS = (4, 4, 1), 16, 17
DECAYS = {'0.9': 0.9}
# In one process 'hsdp' finds one slice, in which it is 'fsdp': here it is told of two.
WAYS = PARALLEL | {'hsdp': lambda devices: hsdp(devices, min(2, len(devices)))}


def network(params, x, noise_label, cond, index=None, keys=None):
  """Two dense layers with dropout between them."""
  del cond, index
  flat = x.reshape(x.shape[0], -1)
  hidden = jnp.tanh(flat @ params['in'] + jnp.outer(jnp.log1p(noise_label), params['time']))
  if keys is not None:
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 0.7, hidden.shape[1:]))(
      for_purpose(keys, 'dropout')
    )
    hidden = hidden * kept / 0.7
  return (hidden @ params['out']).reshape(x.shape)


def new_params():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

  network = {'in': draw(16, 128), 'time': draw(128), 'out': draw(128, 16)}
  return {'network': network, 'schedule': {}, 'loss': {}}


def batch(step=0):
  rng = np.random.default_rng(step)
  return {
    'x': rng.integers(0, LEVELS, (BATCH, *SHAPE)).astype(np.uint8),
    'cond': {'label': rng.integers(0, 10, BATCH).astype(np.int32)},
    'index': step * BATCH + np.arange(BATCH),
  }


CONTEXT = LossContext(
  network,
  SCHEDULES['cosine'](50),
  PARAMETERIZATIONS['eps'](),
  make_factors('simple'),
  BATCH,
)


def task_of(loss, optimizer, context=CONTEXT, flip=True):
  """Training by a loss on pixels, mirrored or not."""
  codec = pixels(SHAPE, LEVELS)

  def of_batch(params, state, frozen, batch, keys, gather):
    x = batch['x']
    if flip:
      x = data.random_flip(x, for_purpose(keys.examples, 'flip'))
    bound = dataclasses.replace(context, gather=gather, frozen=frozen)
    return loss(bound, params, state, {**batch, 'x': codec.encode({}, x)}, keys)

  return Task(lambda given: (new_params(), ()), of_batch, optimizer)


def make_bare(mode, num_devices, loss=LOSSES['simple'], optimizer=None, flip=True, **options):
  """The step, not compiled."""
  parallel = WAYS[mode](jax.devices()[:num_devices])
  return make_train_step(
    task_of(loss, optimizer or optax.adam(1e-2), flip=flip),
    decays=DECAYS,
    ema_warmup=False,
    seed=3,
    mean=parallel.mean,
    gather=parallel.gather,
    **options,
  )


def make(mode, num_devices, loss=LOSSES['simple'], optimizer=None, loss_state=(), **options):
  """The compiled step on so many devices, a state for it, and the way."""
  parallel = WAYS[mode](jax.devices()[:num_devices])
  step = make_bare(mode, num_devices, loss, optimizer, **options)
  state = init_state(new_params(), optimizer or optax.adam(1e-2), loss_state, tuple(DECAYS))
  return parallel.compile(step), parallel.place_state(state), parallel


def run(mode, num_devices, num_steps):
  step, state, parallel = make(mode, num_devices)
  losses = []
  for n in range(num_steps):
    state, metrics = step(state, {}, parallel.place_batch(batch(n)))
    losses.append(float(metrics['loss']))
  return np.array(losses), state


@pytest.mark.parametrize('mode', WAYS)
def test_the_number_of_devices_changes_nothing_but_rounding(mode):
  one, _ = run(mode, 1, 50)
  assert np.ptp(one) > 0.01
  for num_devices in (2, 8):
    several, _ = run(mode, num_devices, 50)
    np.testing.assert_allclose(several, one, rtol=1e-5)


@pytest.mark.parametrize('mode', WAYS)
@pytest.mark.parametrize('num_devices', [1, 2, 8])
def test_gradients_are_those_of_the_mean_over_all_examples(mode, num_devices):
  """Against plain gradient descent on the linear loss <w, x_i>, whose gradient is mean x_i."""

  def linear(context, params, state, batch, keys):
    del context, keys
    rows = batch['x'].reshape(batch['x'].shape[0], -1)
    return LossOutput(rows @ params['w'], {'first': rows[:, 0]}, state)

  optimizer = optax.sgd(1.0)
  step, _, parallel = make(mode, num_devices, linear, optimizer, flip=False)
  params = {'w': jnp.zeros(16), 'schedule': {}}
  state = parallel.place_state(init_state(params, optimizer, averages=tuple(DECAYS)))
  state, metrics = step(state, {}, parallel.place_batch(batch()))
  rows = 2 * batch()['x'].reshape(BATCH, -1) / (LEVELS - 1) - 1
  np.testing.assert_allclose(state.params['w'], -rows.mean(0), atol=1e-6)
  np.testing.assert_allclose(state.ema['0.9']['w'], -0.1 * rows.mean(0), atol=1e-6)
  assert float(metrics['grad_norm']) == pytest.approx(np.linalg.norm(rows.mean(0)), rel=1e-5)
  assert float(metrics['first']) == pytest.approx(rows[:, 0].mean(), abs=1e-6)
  assert int(state.step) == 1


@pytest.mark.parametrize('mode', WAYS)
def test_the_state_is_donated_and_nothing_is_compiled_or_moved_twice(mode, caplog):
  step, state, parallel = make(mode, 8)
  with warnings.catch_warnings(), jax.log_compiles():
    warnings.simplefilter('error')
    for n in range(3):
      compiled = sum('XLA compilation of' in line for line in caplog.messages)
      old = state
      state, _ = step(old, {}, parallel.place_batch(batch(n)))
      assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))
  assert compiled == sum('XLA compilation of' in line for line in caplog.messages) > 0


@pytest.mark.parametrize('mode', WAYS)
def test_what_is_frozen_is_an_argument_and_no_constant_of_the_program(mode, caplog):
  """Gradient descent with rate 1/2 on |w - f|² goes to f, whatever f is."""

  def distance(context, params, state, batch, keys):
    off = params['w'] - context.frozen['teacher']['goal']
    return LossOutput(jnp.sum(off**2) + 0.0 * batch['index'], {}, state)

  optimizer, rng = optax.sgd(0.5), np.random.default_rng(5)
  step, _, parallel = make(mode, 2, distance, optimizer)
  start, compiled = rng.normal(size=16).astype(np.float32), []
  goals = rng.normal(size=(3, 16)).astype(np.float32)
  with jax.log_compiles():
    for goal in goals:
      first = init_state({'w': jnp.asarray(start)}, optimizer, averages=tuple(DECAYS))
      names = [str(path) for path, _ in jax.tree_util.tree_leaves_with_path(first)]
      assert not any('teacher' in name or 'goal' in name for name in names)
      state, frozen = (parallel.place_state(tree) for tree in (first, {'teacher': {'goal': goal}}))
      rows = parallel.place_batch(batch())
      before = sum('XLA compilation of' in line for line in caplog.messages)
      state, metrics = step(state, frozen, rows)
      compiled.append(sum('XLA compilation of' in line for line in caplog.messages) - before)
      np.testing.assert_allclose(metrics['loss'], np.sum((start - goal) ** 2), rtol=1e-5)
      np.testing.assert_allclose(state.params['w'], goal, atol=1e-6)
      # The average moves a tenth of the way from the start, and the frozen array stays as it is.
      np.testing.assert_allclose(state.ema['0.9']['w'], 0.9 * start + 0.1 * goal, atol=1e-6)
      np.testing.assert_array_equal(jax.tree.leaves(frozen)[0], goal)
  assert compiled[0] > 0 and compiled[1:] == [0, 0]


@pytest.mark.parametrize('mode', WAYS)
def test_a_loss_may_gather_what_all_devices_hold(mode):
  def ranks(context, params, state, batch, keys):
    del state, keys
    values = batch['index'] + 0 * jnp.sum(params['network']['out'])
    return LossOutput(values, {}, context.gather(values))

  optimizer = optax.sgd(0.1)
  step, _, parallel = make(mode, 4, ranks, optimizer)
  state = init_state(new_params(), optimizer, jnp.zeros(BATCH), tuple(DECAYS))
  state, _ = step(parallel.place_state(state), {}, parallel.place_batch(batch(2)))
  np.testing.assert_array_equal(state.loss_state, batch(2)['index'])


def test_what_importance_remembers_is_the_same_on_any_number_of_devices():
  distribution = functools.partial(TIMESTEP_DISTRIBUTIONS['importance'], history=2)
  context = dataclasses.replace(
    CONTEXT,
    schedule=SCHEDULES['cosine'](4),
    factors=make_factors('simple', timestep_distribution=distribution),
  )
  optimizer, found = optax.sgd(0.1), []
  for devices in (1, 2):
    parallel = PARALLEL['pmap'](jax.devices()[:devices])
    step = make_train_step(
      task_of(LOSSES['simple'], optimizer, context, flip=False),
      decays={},
      ema_warmup=False,
      seed=3,
      mean=parallel.mean,
      gather=parallel.gather,
    )
    history = memory(distribution).init(context.schedule)
    state = parallel.place_state(init_state(new_params(), optimizer, history))
    compiled = parallel.compile(step)
    for n in range(4):
      state, _ = compiled(state, {}, parallel.place_batch(batch(n)))
    found.append(jax.device_get(state.loss_state))
  one, two = found
  assert one['count'].sum() == 4 * BATCH and (one['count'] >= 2).all()
  np.testing.assert_array_equal(one['count'], two['count'])
  np.testing.assert_allclose(one['losses'], two['losses'], rtol=1e-5)


@pytest.mark.parametrize('mode', WAYS)
@pytest.mark.parametrize('num_devices', [1, 2])
def test_microbatches_change_nothing_but_rounding(mode, num_devices):
  found = []
  for microbatches in (1, 4):
    step, state, parallel = make(mode, num_devices, microbatches=microbatches)
    for n in range(5):
      state, metrics = step(state, {}, parallel.place_batch(batch(n)))
    found.append((jax.device_get(state.params), float(metrics['loss'])))
  (params, loss), (others, other) = found
  assert other == pytest.approx(loss, rel=1e-5)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(others), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize('mode', WAYS)
def test_several_steps_at_one_call_are_those_steps(mode):
  parallel = WAYS[mode](jax.devices()[:2])
  _, state, _ = make(mode, 2)
  by_one = []
  step, other, _ = make(mode, 2)
  for n in range(3):
    other, metrics = step(other, {}, parallel.place_batch(batch(n)))
    by_one.append(float(metrics['loss']))
  stacked = jax.tree.map(lambda *rows: np.stack(rows), *map(batch, range(3)))
  at_once = parallel.compile(several(make_bare(mode, 2)))
  state, metrics = at_once(state, {}, parallel.place_batch(stacked, axis=1))
  np.testing.assert_allclose(metrics['loss'], by_one, rtol=1e-6)
  assert int(state.step) == 3
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize('mode', WAYS)
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_step_that_is_not_finite_changes_nothing_but_its_number(mode, bad):
  """One example of one device at fault, at the second of three steps."""

  def fails(context, params, state, batch, keys):
    output = LOSSES['simple'](context, params, (), batch, keys)
    values = jnp.where(batch['index'] == BATCH + 3, bad, output.values)
    return LossOutput(values, {}, state + 1)

  step, state, parallel = make(mode, 2, fails, loss_state=jnp.zeros(()))
  states, skipped = [jax.device_get(state)], []
  for n in range(3):
    state, metrics = step(state, {}, parallel.place_batch(batch(n)))
    states.append(jax.device_get(state))
    skipped.append(float(metrics['skipped']))
  assert skipped == [0, 1, 0]
  assert [int(state.step) for state in states] == [0, 1, 2, 3]
  _, before, after, last = states
  for a, b in zip(
    *map(jax.tree.leaves, (before.replace(step=0), after.replace(step=0))), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  assert float(last.loss_state) == 2
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(last))
  assert not np.array_equal(last.params['network']['in'], after.params['network']['in'])


def test_keys_follow_from_seed_step_and_index_alone():
  """The loss sees exactly the keys of the design: fold_in(fold_in(key(seed), step), index)."""

  def spy(context, params, state, batch, keys):
    del context, state
    told = jax.random.key_data(keys.examples)
    values = jnp.zeros(BATCH) + 0 * jnp.sum(params['network']['out'])
    return LossOutput(values, {}, (told, jax.random.key_data(keys.step)))

  optimizer = optax.sgd(0.1)
  nothing = jnp.zeros((BATCH, 2), jnp.uint32), jnp.zeros(2, jnp.uint32)
  step, state, parallel = make('pmap', 1, spy, optimizer, loss_state=nothing)
  first, _ = step(state, {}, parallel.place_batch(batch(5)))
  examples, key = first.loss_state
  for n, index in enumerate(batch(5)['index']):
    by_hand = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), index)
    np.testing.assert_array_equal(examples[n], jax.random.key_data(by_hand))
  np.testing.assert_array_equal(key, jax.random.key_data(step_key(3, 0)))


def test_the_loss_is_given_scaled_and_flipped_images():
  def look(context, params, state, batch, keys):
    del context, state, keys
    values = jnp.zeros(BATCH) + 0 * jnp.sum(params['network']['out'])
    return LossOutput(values, {}, batch['x'])

  optimizer = optax.sgd(0.1)
  step, state, parallel = make('pmap', 1, look, optimizer, loss_state=jnp.zeros((BATCH, *SHAPE)))
  seen = np.asarray(step(state, {}, parallel.place_batch(batch()))[0].loss_state)
  straight = 2 * batch()['x'] / (LEVELS - 1) - 1
  same = [np.allclose(a, b, atol=1e-6) for a, b in zip(seen, straight, strict=True)]
  mirrored = [np.allclose(a, b[:, ::-1], atol=1e-6) for a, b in zip(seen, straight, strict=True)]
  assert all(np.logical_xor(same, mirrored)) and 2 <= sum(mirrored) <= 14


@pytest.mark.parametrize(
  ('batch_size', 'devices', 'options'), [(7, 2, 'use 6 or 8'), (3, 4, 'use 4')]
)
def test_a_batch_that_does_not_divide_is_refused_with_sizes_that_do(batch_size, devices, options):
  with pytest.raises(InputError, match=f'config.dataset.batch_size: {batch_size} .* {options}$'):
    check_batch_size(batch_size, devices)
  check_batch_size(2 * devices, devices)
