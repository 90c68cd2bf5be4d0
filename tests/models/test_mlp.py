"""The residual network of dense layers, and what it and the U-Net may be told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.models import MLP, UNet, init_network, make_network
from tests.models.test_layers import keys, noise_like, quick_jit

SHAPE = (4, 4, 1)
SMALL = {
  'mlp': lambda **told: MLP(width=8, depth=2, **told),
  'unet': lambda **told: UNet(
    channels=8, multipliers=(1,), num_res_blocks=1, dropout=0.0, out_channels=1, **told
  ),
}


def made(name, **told):
  module = SMALL[name](**told)
  params = noise_like(init_network(module, jax.random.key(0), SHAPE))
  return params, quick_jit(make_network(module))


def images(count=3):
  return jax.random.normal(jax.random.key(1), (count, *SHAPE)), jnp.arange(count) * 100.0


def test_an_untrained_mlp_says_nothing_and_is_told_the_noise():
  module = MLP(width=8, depth=2)
  params = init_network(module, jax.random.key(0), SHAPE)
  x, label = images()
  assert not make_network(module)(params, x, label, {}).any()
  network, params = quick_jit(make_network(module)), noise_like(params)
  assert np.abs(network(params, x, label, {}) - network(params, x, label + 50, {})).max() > 1e-3


def test_an_mlps_examples_are_their_own_and_dropout_is_theirs():
  params, network = made('mlp', dropout=0.5)
  x, label = images(4)
  together = network(params, x, label, {}, keys=keys(4))
  alone = network(params, x[1:3], label[1:3], {}, keys=keys(4)[1:3])
  np.testing.assert_allclose(alone, together[1:3], atol=1e-5)
  assert np.abs(network(params, x, label, {}) - together).max() > 1e-3


def test_a_learned_variance_doubles_an_mlps_channels():
  params, network = made('mlp', learn_variance=True)
  assert network(params, *images(), {}).shape == (3, 4, 4, 2)


def test_a_width_that_has_no_sinusoid_is_refused():
  with pytest.raises(ValueError, match=r'^width: 6'):
    init_network(MLP(width=6), jax.random.key(0), SHAPE)


@pytest.mark.parametrize('name', SMALL)
def test_what_is_not_told_is_zero(name):
  params, network = made(name, self_condition=True, augmented=True)
  x, label = images()
  plain = network(params, x, label, {})
  zeros = {'x0': jnp.zeros_like(x), 'augmentation': jnp.zeros((3, 9))}
  np.testing.assert_allclose(network(params, x, label, zeros), plain, atol=1e-6)
  for told in zeros:
    changed = network(params, x, label, {told: zeros[told] + 0.5})
    assert np.abs(changed - plain).max() > 1e-3, told


@pytest.mark.parametrize('name', SMALL)
def test_a_network_that_is_to_be_told_nothing_has_no_parameters_for_it(name):
  names = {'conv_in', 'dense_in'}
  plain, told = made(name)[0], made(name, self_condition=True, augmented=True)[0]
  assert 'augmentation' not in plain['conditioning']
  assert set(told['conditioning']) - set(plain['conditioning']) == {'augmentation'}
  (first,) = names & set(plain)
  assert told[first]['kernel'].size == 2 * plain[first]['kernel'].size
