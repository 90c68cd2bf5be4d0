import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddpm_jax.training.optimizers import LR_SCHEDULES, OPTIMIZERS, clipped, learning_rate


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name):
  center = jnp.array([1.0, -2.0, 0.5])
  optimizer = OPTIMIZERS[name](optax.cosine_decay_schedule(0.1, 300))
  params = jnp.zeros(3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    updates, state = optimizer.update(params - center, state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(300):
    params, state = step(params, state)
  np.testing.assert_allclose(params, center, atol=0.03)


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_every_argument_of_an_optimizer_has_a_type_and_a_default(name):
  first, *others = inspect.signature(OPTIMIZERS[name]).parameters.values()
  assert first.name == 'learning_rate'
  assert all(p.annotation is not p.empty and p.default is not p.empty for p in others)


@pytest.mark.parametrize('name', LR_SCHEDULES)
def test_warm_up_is_a_line_from_zero_to_the_peak(name):
  rate = learning_rate(name, 4e-4, warmup_steps=8, num_steps=100)
  np.testing.assert_allclose(
    [rate(n) for n in range(9)], [4e-4 * n / 8 for n in range(9)], rtol=1e-5
  )


@pytest.mark.parametrize('name', LR_SCHEDULES)
def test_without_warm_up_the_rate_begins_at_the_peak_and_never_grows(name):
  rate = learning_rate(name, 1e-3, warmup_steps=0, num_steps=50)
  values = np.array([rate(n) for n in range(51)])
  assert values[0] == pytest.approx(1e-3, rel=1e-6)
  assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize(
  ('name', 'step', 'share'),
  [
    ('constant', 110, 1.0),
    ('linear', 60, 0.5),
    ('linear', 110, 0.0),
    ('cosine', 60, 0.5),
    ('cosine', 110, 0.0),
    ('inverse_sqrt', 40, 0.5),
    ('inverse_sqrt', 90, 1 / 3),
  ],
)
def test_the_rate_after_ten_steps_of_warm_up(name, step, share):
  rate = learning_rate(name, 2.0, warmup_steps=10, num_steps=110)
  assert float(rate(step)) == pytest.approx(2 * share, abs=1e-6)


@pytest.mark.parametrize('scale', [0.1, 1.0, 25.0])
def test_clipping_bounds_the_global_norm_and_keeps_the_direction(scale):
  grads = {'a': jnp.array([3.0, 0.0]) * scale, 'b': jnp.array([[4.0]]) * scale}
  optimizer = clipped(OPTIMIZERS['sgd'](1.0), 2.0)
  updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
  flat = np.concatenate([np.ravel(u) for u in jax.tree.leaves(updates)])
  np.testing.assert_allclose(flat, -min(5 * scale, 2) * np.array([0.6, 0, 0.8]), rtol=1e-6)
