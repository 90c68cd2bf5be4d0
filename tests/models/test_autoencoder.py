"""The autoencoder's networks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.condition import labels
from ddpm_jax.errors import InputError
from ddpm_jax.losses.evidence import evidence_of
from ddpm_jax.models import Autoencoder, init_coder, make_coder

SHAPE = (3, 2, 1)


def small(num_classes=None):
  """A coder for images of six values, and its parameters."""
  spec = {} if num_classes is None else labels(num_classes)
  module = Autoencoder(latents=2, widths=(5,), spec=spec, out_channels=1)
  return make_coder(module), init_coder(module, jax.random.key(0), SHAPE)


@pytest.mark.parametrize('num_classes', [None, 3])
def test_a_batch_is_its_examples(num_classes):
  coder, params = small(num_classes)
  x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
  cond = {} if num_classes is None else {'label': jnp.array([0, 2, 1, 3])}
  mean, variance = coder.encode(params, x, cond)
  image = coder.decode(params, mean, cond, SHAPE)
  for i in range(4):
    own = jax.tree.map(lambda leaf, i=i: leaf[i], cond)
    one = coder.encode(params, x[i], own)
    np.testing.assert_allclose(one, (mean[i], variance[i]), rtol=1e-5)
    again = coder.decode(params, one[0], own, SHAPE)
    np.testing.assert_allclose(again, [part[i] for part in image], rtol=1e-4, atol=1e-6)


def test_called_it_reconstructs_from_the_mean():
  module = Autoencoder(latents=2, widths=(5,), out_channels=1)
  coder, params = small()
  x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
  by_hand, _ = coder.decode(params, coder.encode(params, x, {})[0], {}, SHAPE)
  np.testing.assert_allclose(module.apply({'params': params}, x, {}), by_hand, rtol=1e-6)


def test_labels_reach_both_networks_and_the_null_label_is_no_class():
  coder, params = small(3)
  x, z = jnp.ones(SHAPE), jnp.ones(2)
  told = [
    (coder.encode(params, x, cond)[0], coder.decode(params, z, cond, SHAPE)[0])
    for cond in ({'label': jnp.array(label)} for label in range(4))
  ]
  for one, other in itertools.combinations(told, 2):
    assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(one, other, strict=True))
  with pytest.raises(InputError, match=r"cond: 'label' is missing"):
    coder.encode(params, x, {})


def test_the_decoder_is_a_probability_of_images():
  coder, params = small()
  images = jnp.asarray(list(itertools.product([-1.0, 0.0, 1.0], repeat=6))).reshape(-1, *SHAPE)
  z = jnp.array([0.4, -1.0])
  log_p = jax.vmap(lambda x: evidence_of(coder, params, x, {}, 3)[2](z))(images)
  assert float(jnp.sum(jnp.exp(log_p))) == pytest.approx(1, abs=1e-5)
