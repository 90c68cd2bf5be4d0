"""What a network is told beside its input: its last estimate, and how an image was augmented."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import data
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, for_purpose, step_key
from ddpm_jax.losses.context import apply_network
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.denoising import make_context
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training.advance import make_step
from ddpm_jax.training.parallel import PARALLEL
from ddpm_jax.training.state import new_state

SETTINGS = {
  'dataset.name': 'mixture',
  'dataset.flip': False,
  'model.name': 'mlp',
  'model.width': 8,
  'model.depth': 1,
  'model.self_condition': True,
  'parameterization.name': 'x0',
  'sampler.num_steps': 4,
}


def keys(count):
  return example_keys(jax.random.key(4), jnp.arange(count))


def experiment(**settings):
  return build(tiny(**SETTINGS | settings))


def with_network(found, network):
  return dataclasses.replace(found, network=network)


def generate(found, params, cond, keys):
  """Samples of the network with these parameters."""
  return make_task(found).use.generate({'network': params}, {'codec': {}}, cond, keys)


def counting(params, x, noise_label, cond, index=None, keys=None):
  """An output that tells how often the network has seen itself: a quarter more than it is told."""
  return 0.25 + cond.get('x0', jnp.zeros_like(x))


@pytest.mark.parametrize('guidance', [1.0, 2.0])
@pytest.mark.parametrize('sampler', ['ddim', 'dpmpp_2m', 'heun'])
def test_a_sampler_tells_the_last_prediction(sampler, guidance):
  found = with_network(
    experiment(**{'sampler.name': sampler, 'sampler.guidance': guidance}), counting
  )
  cond = {'label': jnp.arange(3)}
  # Of 4 times the last is the step to data: each prediction is a quarter above the one before.
  np.testing.assert_allclose(generate(found, {}, cond, keys(3)), 1.0, atol=1e-6)


def test_a_network_that_does_not_listen_draws_the_same_samples():
  def deaf(params, x, noise_label, cond, index=None, keys=None):
    return 0.5 * jnp.tanh(x) * (1 + cond['label'].reshape(-1, 1, 1, 1))

  settings = {'sampler.guidance': 1.5}
  telling, silent = (
    with_network(experiment(**settings | {'model.self_condition': told}), deaf)
    for told in (True, False)
  )
  cond = {'label': jnp.arange(4)}
  samples = [generate(found, {}, cond, keys(4)) for found in (telling, silent)]
  np.testing.assert_array_equal(*samples)
  half = generate(telling, {}, {'label': jnp.arange(2, 4)}, keys(4)[2:])
  np.testing.assert_allclose(half, samples[0][2:], atol=1e-6)


def told_in_training(count, index=None, train=True):
  """What the network is told of x0 on its second call, of an output that is 0.7 on the first."""
  calls = []

  def network(params, x, noise_label, cond, index=None, keys=None):
    calls.append(cond)
    return params * jnp.ones_like(x)

  context = make_context(with_network(experiment(), network))
  index = jnp.arange(count) if index is None else index
  key = step_key(0, 0)
  batch = {'index': index, 'cond': {'label': index * 0}}
  context = dataclasses.replace(context, train=train)
  params, x = {'network': jnp.asarray(0.7)}, jnp.ones((index.size, 1, 2, 1))
  apply_network(context, params, x, index * 0 + 5, batch, Keys(key, example_keys(key, index)))
  return [call.get('x0') for call in calls]


def test_training_tells_half_of_the_examples_their_estimate():
  first, second = told_in_training(4000)
  assert first is None
  assert set(np.unique(second)) == {np.float32(0.0), np.float32(0.7)}
  share = np.mean(np.asarray(second)[:, 0, 0, 0] > 0)
  assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(4000)
  assert (np.ptp(second, axis=(1, 2, 3)) == 0).all()
  np.testing.assert_array_equal(told_in_training(4, jnp.arange(5, 9))[1], second[5:9])


def test_evaluation_makes_one_call_and_tells_nothing():
  assert told_in_training(4, train=False) == [None]


def test_the_estimate_has_no_gradient():
  def network(params, x, noise_label, cond, index=None, keys=None):
    return params * x if 'x0' not in cond else cond['x0']

  context = make_context(with_network(experiment(), network))
  index, key = jnp.arange(4), step_key(0, 0)
  told = Keys(key, example_keys(key, index))
  batch, x = {'index': index, 'cond': {'label': index * 0}}, jnp.ones((4, 1, 2, 1))

  def total(params):
    return jnp.sum(apply_network(context, {'network': params}, x, index * 0 + 5, batch, told))

  assert jax.grad(total)(0.3) == 0 and total(0.3) != total(0.4)


def test_augmented_images_come_with_their_labels():
  calls = {}

  def network(params, x, noise_label, cond, index=None, keys=None):
    calls.update(cond)
    return params['w'] * x

  settings = {
    'dataset.name': 'digits',
    'dataset.augment': 0.5,
    'model.augmented': True,
    'model.self_condition': False,
  }
  found = with_network(experiment(**settings), network)
  parallel = PARALLEL['pmap'](jax.devices()[:1])
  job = make_job(found)._replace(parallel=parallel._replace(mean=lambda tree: tree))

  params = {'network': {'w': jnp.ones(())}, 'schedule': {}}
  batch = {**found.dataset.train[:8], 'index': np.arange(8)}
  make_step(job)(new_state(job.task, job.config, params), job.frozen, batch)
  own = for_purpose(example_keys(step_key(0, 0), jnp.arange(8)), 'augment')
  labels = jax.vmap(data.augmentation.draw_label, (0, None))(own, 0.5)
  np.testing.assert_array_equal(calls['augmentation'], labels)
  assert np.asarray(labels).any()
  # At sampling there is none.
  calls.clear()
  generate(found, params['network'], {'label': jnp.arange(2)}, keys(2))
  assert 'augmentation' not in calls


def test_augmentation_that_the_network_is_not_told_of_is_refused():
  with pytest.raises(InputError, match=r'config\.dataset\.augment: .*config\.model\.augmented'):
    experiment(**{'dataset.augment': 0.1})


@pytest.mark.parametrize('loss', ['progressive', 'consistency_distillation'])
def test_a_distillation_without_a_teacher_is_refused(loss):
  with pytest.raises(InputError, match=r'config\.training\.init_from: unset'):
    make_task(experiment(**{'loss.name': loss}))


def test_devices_change_nothing():
  settings = {
    'dataset.batch_size': 8,
    'dataset.augment': 0.5,
    'model.augmented': True,
    'loss.noise_distribution': 'transport',
  }
  found, updated = experiment(**settings), []
  for count in (1, 2):
    parallel = PARALLEL['pmap'](jax.devices()[:count])
    job = make_job(found)._replace(parallel=parallel)
    step, frozen = parallel.compile(make_step(job)), parallel.place_state(job.frozen)
    batch = {**found.dataset.train[:8], 'index': np.arange(8, dtype=np.int32)}
    state = parallel.place_state(new_state(job.task, job.config))
    _, metrics = step(state, frozen, parallel.place_batch(batch))
    updated.append([float(metrics['loss']), float(metrics['grad_norm'])])
  np.testing.assert_allclose(updated[1], updated[0], rtol=1e-4)
