import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.condition import Field, labels
from ddpm_jax.errors import InputError
from ddpm_jax.models import (
  MODELS,
  UNet,
  checked_cond,
  init_coder,
  init_network,
  make_coder,
  make_network,
  never_null,
  null_cond,
  num_params,
)
from tests.models.test_layers import keys, noise_like, quick_jit

MODULE = UNet(channels=8, multipliers=(1, 2), num_res_blocks=1, spec=labels(3), out_channels=1)


@pytest.fixture(scope='module')
def params():
  return noise_like(init_network(MODULE, jax.random.key(0), (4, 4, 1)))


def test_a_vmapped_network_is_the_batched_one(params):
  network = make_network(MODULE)
  x = jax.random.normal(jax.random.key(1), (4, 4, 4, 1))
  noise_label = jnp.arange(4) * 100.0
  cond = {'label': jnp.array([0, 1, 2, 3])}

  def single(x, noise_label, cond, key):
    cond = {'label': cond['label'][None]}
    return network(params, x[None], noise_label[None], cond, keys=key[None])[0]

  batched = quick_jit(network)(params, x, noise_label, cond, keys=keys(4))
  vmapped = quick_jit(jax.vmap(single))(x, noise_label, cond, keys(4))
  np.testing.assert_allclose(vmapped, batched, rtol=1e-4, atol=1e-4)


def test_a_conditional_network_asks_for_its_labels(params):
  with pytest.raises(InputError, match=r"cond: 'label' is missing.* int32 \(B\)}.*null_cond"):
    make_network(MODULE)(params, jnp.zeros((1, 4, 4, 1)), jnp.zeros(1), {})


LABELS = {
  'above': (np.array([0, 4]), 'label 4 is no class: there are 0 to 2, and 3 for no condition'),
  'on the device': (jnp.array([0, 4]), 'label 4 is no class'),
  'one': (4, 'label 4 is no class'),
  'below': (np.array([-1, 0]), 'label -1 is no class'),
  'far': (np.array([2**34]), 'label 17179869184 is no class'),
  'fractions': (np.array([0.2, 0.7]), r'label must be label, int32 \(B\), not float'),
  'vectors': (jnp.eye(2, dtype=int), r'label must be label, int32 \(B\), not int32 \(2, 2\)'),
}


@pytest.mark.parametrize(('label', 'message'), LABELS.values(), ids=LABELS)
def test_labels_that_are_no_classes_are_refused(label, message):
  with pytest.raises(InputError, match=f'^cond: {message}'):
    checked_cond(MODULE, {'label': label})
  assert checked_cond(UNet(), {'label': label})['label'] is label


def test_traced_labels_are_clamped_and_never_wrap(params):
  network = quick_jit(make_network(MODULE))
  x, noise_label = jnp.ones((4, 4, 4, 1)), jnp.ones(4)
  found, want = (
    network(params, x, noise_label, {'label': jnp.array(label)})
    for label in ([-1, -7, 4, 10**6], [0, 0, 3, 3])
  )
  np.testing.assert_array_equal(found, want)
  assert np.isfinite(found).all()


@pytest.mark.parametrize('name', MODELS)
def test_every_model_refuses_labels_that_are_no_classes(name):
  module = MODELS[name](out_channels=1, spec=labels(3))
  x, cond = jnp.zeros((2, 8, 8, 1)), {'label': jnp.array([0, 4])}
  network = make_coder(module).encode if name == 'autoencoder' else make_network(module)
  others = (cond,) if name == 'autoencoder' else (jnp.zeros(2), cond)
  with pytest.raises(InputError, match='^cond: label 4 is no class'):
    network({}, x, *others)


def test_null_condition_is_the_last_row_of_the_table():
  np.testing.assert_array_equal(null_cond(MODULE, 2)['label'], [3, 3])
  assert null_cond(UNet(), 2) == {}


def test_null_condition_ignores_the_rows_of_the_classes(params):
  network = quick_jit(make_network(MODULE))
  x, noise_label = jnp.ones((2, 4, 4, 1)), jnp.ones(2)
  table = params['conditioning']['label']['embedding']
  changed = jax.tree.map(lambda leaf: leaf, params)
  changed['conditioning']['label']['embedding'] = table.at[:3].add(1.0)
  before, after = (network(p, x, noise_label, null_cond(MODULE, 2)) for p in (params, changed))
  np.testing.assert_array_equal(before, after)
  label = {'label': jnp.zeros(2, jnp.int32)}
  assert jnp.abs(network(params, x, noise_label, label) - before).max() > 1e-3


def test_init_depends_on_the_key_alone(params):
  del params
  first, again, other = (
    init_network(MODULE, jax.random.key(seed), (4, 4, 1)) for seed in (0, 0, 1)
  )
  same = jax.tree.map(np.array_equal, first, again)
  assert all(jax.tree.leaves(same))
  kernel = [tree['conv_in']['kernel'] for tree in (first, other)]
  assert not np.array_equal(*kernel)


def test_num_params_counts_every_number():
  assert num_params({'a': jnp.zeros((2, 3)), 'b': {'c': jnp.zeros(4), 'd': jnp.zeros(())}}) == 11


@pytest.mark.parametrize('name', MODELS)
def test_every_model_takes_the_data_sets_channels_and_classes(name):
  module = MODELS[name](out_channels=1, spec=labels(5))
  autoencoder = name == 'autoencoder'
  init = init_coder if autoencoder else init_network
  params = jax.eval_shape(lambda: init(module, jax.random.key(0), (32, 32, 1)))
  x, cond = jnp.zeros((2, 32, 32, 1)), null_cond(module, 2)

  def run(params):
    if autoencoder:
      return module.apply({'params': params}, x, cond)
    return make_network(module)(params, x, jnp.zeros(2), cond, keys=keys(2))

  assert jax.eval_shape(run, params).shape == (2, 32, 32, 1)


@pytest.mark.parametrize('name', MODELS)
def test_every_model_refuses_what_it_does_not_read(name):
  module = MODELS[name](out_channels=1, spec={'vector': Field((3,))})
  init = init_coder if name == 'autoencoder' else init_network
  with pytest.raises(ValueError, match='reads a class.*the data set has vector: set config'):
    init(module, jax.random.key(0), (8, 8, 1))


class Own:
  """Stands for a module that knows its null."""

  spec = labels(3)

  def null_cond(self, batch_size):
    return {'label': jnp.full(batch_size, 7)}


def test_a_module_may_have_a_null_of_its_own():
  np.testing.assert_array_equal(null_cond(Own(), 2)['label'], [7, 7])


def test_a_null_that_is_never_trained_is_known():
  assert never_null(UNet(label_dropout=0.0)) == 'label_dropout'
  assert never_null(UNet(label_dropout=0.1)) is None
  assert never_null(Own()) is None
