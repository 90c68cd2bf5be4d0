import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ddpm_jax.models import layers

# These functions run once or twice: compiling them is most of the time.
quick_jit = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def keys(number, seed=0):
  return jax.random.split(jax.random.key(seed), number)


def noise_like(params, seed=0):
  """Parameters of the same shapes, none of them zero."""
  leaves, tree = jax.tree.flatten(params)
  draws = [
    0.3 * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys(len(leaves), seed), leaves, strict=True)
  ]
  return jax.tree.unflatten(tree, draws)


def test_sinusoid_rotates_as_the_noise_label_moves():
  """sin and cos of a sum: a shift of the label turns every (sin, cos) pair by a fixed angle."""
  size, shift = 16, 3.0
  label = jnp.array([0.0, 1.0, 17.5, 990.0])
  sin, cos = np.split(np.asarray(layers.sinusoid(label, size), np.float64), 2, axis=-1)
  moved_sin, moved_cos = np.split(np.asarray(layers.sinusoid(label + shift, size)), 2, axis=-1)
  angle = shift * np.geomspace(1, 1e-4, size // 2)
  np.testing.assert_allclose(moved_sin, sin * np.cos(angle) + cos * np.sin(angle), atol=2e-4)
  np.testing.assert_allclose(moved_cos, cos * np.cos(angle) - sin * np.sin(angle), atol=2e-4)


def test_sinusoid_tells_neighboring_times_apart_in_any_dtype():
  labels = jnp.arange(992, 1001, dtype=jnp.int32)
  embedding = layers.sinusoid(labels, 128)
  assert embedding.dtype == jnp.float32
  distance = jnp.linalg.norm(embedding[1:] - embedding[:-1], axis=-1)
  np.testing.assert_allclose(distance, distance[0], rtol=1e-2)


@pytest.mark.parametrize('rate', [0.1, 0.5])
def test_dropout_has_its_rate_and_keeps_the_mean(rate):
  x = jnp.ones((64, 8, 8, 16))
  y = np.asarray(layers.Dropout(rate).apply({}, x, keys(64)), np.float64)
  error = np.sqrt(rate * (1 - rate) / x.size)
  assert abs((y == 0).mean() - rate) < 4 * error + 2**-17
  assert abs(y.mean() - 1) < 4 * error / (1 - rate)
  assert len(np.unique(y)) == 2


def test_dropout_draws_are_independent_across_pixels_and_examples():
  y = np.asarray(layers.Dropout(0.5).apply({}, jnp.ones((64, 8, 8, 16)), keys(64))) - 1
  pairs = {
    'examples': y[1:] * y[:-1],
    'rows': y[:, 1:] * y[:, :-1],
    'columns': y[:, :, 1:] * y[:, :, :-1],
    'channels': y[..., 1:] * y[..., :-1],
  }
  for name, products in pairs.items():
    assert abs(products.mean()) < 4 / np.sqrt(products.size), name


def test_dropout_of_an_example_is_the_same_in_any_batch():
  x = jax.random.normal(jax.random.key(1), (6, 3, 5, 7))  # an odd number of entries
  dropout = layers.Dropout(0.3)
  whole = dropout.apply({}, x, keys(6))
  order = jnp.array([4, 0, 5, 2, 1, 3])
  np.testing.assert_array_equal(dropout.apply({}, x[order], keys(6)[order]), whole[order])
  for i in range(6):
    one = slice(i, i + 1)
    np.testing.assert_array_equal(dropout.apply({}, x[one], keys(6)[one]), whole[one])
  assert not np.array_equal(whole[0] == 0, whole[1] == 0)


def test_dropout_differs_from_layer_to_layer():
  class Pair(layers.nn.Module):
    @layers.nn.compact
    def __call__(self, x, keys):
      return layers.Dropout(0.5, name='a')(x, keys), layers.Dropout(0.5, name='b')(x, keys)

  a, b = Pair().apply({}, jnp.ones((32, 8, 8, 8)), keys(32))
  assert abs(np.mean((a - 1) * (b - 1))) < 4 / np.sqrt(a.size)


def test_dropout_without_keys_is_the_identity():
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  np.testing.assert_array_equal(layers.Dropout(0.5).apply({}, x, None), x)


@pytest.mark.parametrize('channels', [4, 32, 48, 64, 96, 128, 144, 160, 256, 384, 512])
def test_groups_divide_the_channels_into_four_or_more(channels):
  groups = layers.num_groups(channels)
  assert channels % groups == 0
  assert channels // groups >= 4
  assert groups == 32 or channels < 128 or channels % 32


def test_groups_are_the_papers_32_for_its_channels():
  assert [layers.num_groups(channels) for channels in (128, 256, 384, 512)] == [32] * 4


@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 2e-3), (jnp.bfloat16, 1e-2)])
def test_group_norm_standardizes_each_group_even_far_from_zero(dtype, tolerance):
  """At 300 bfloat16 has steps of 2: statistics taken in it would be off by as much."""
  x = 300 + 20 * jax.random.normal(jax.random.key(0), (3, 8, 8, 32))
  x = x.astype(dtype)
  norm = layers.GroupNorm(dtype)
  y = norm.apply(norm.init(jax.random.key(1), x), x)
  assert y.dtype == dtype
  groups = np.asarray(y, np.float64).reshape(3, 64, layers.num_groups(32), -1)
  np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=tolerance)
  np.testing.assert_allclose(groups.var((1, 3)), 1, atol=tolerance)


def test_group_norm_variance_survives_a_mean_of_a_thousand_deviations():
  x = 1000 + jax.random.normal(jax.random.key(0), (2, 8, 8, 32))
  norm = layers.GroupNorm()
  params = norm.init(jax.random.key(1), x)
  groups = np.asarray(norm.apply(params, x)).reshape(2, 64, layers.num_groups(32), -1)
  np.testing.assert_allclose(groups.var((1, 3)), 1, atol=1e-3)


@pytest.mark.parametrize('num_heads', [1, 4])
def test_self_attention_is_the_softmax_of_every_pair(num_heads):
  x = jax.random.normal(jax.random.key(0), (2, 3, 5, 16))
  block = layers.SelfAttention(num_heads)
  params = noise_like(block.init(jax.random.key(1), x)['params'])
  norm = layers.GroupNorm().apply({'params': params['norm']}, x)
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  expected = np.zeros(x.shape)
  size = 16 // num_heads
  for b in range(2):
    tokens = np.asarray(norm[b], np.float64).reshape(15, 16)
    qkv = tokens @ p['qkv']['kernel'] + p['qkv']['bias']
    mixed = np.zeros((15, 16))
    for head in range(num_heads):
      q, k, v = (qkv[:, start + head * size :][:, :size] for start in (0, 16, 32))
      for i in range(15):
        weights = np.array([np.exp(q[i] @ k[j] / np.sqrt(size)) for j in range(15)])
        mixed[i, head * size :][:size] = weights @ v / weights.sum()
    out = mixed @ p['projection']['kernel'] + p['projection']['bias']
    expected[b] = np.asarray(x[b]) + out.reshape(3, 5, 16)
  np.testing.assert_allclose(block.apply({'params': params}, x), expected, atol=1e-4)


def test_the_joint_projection_starts_as_three_separate_ones():
  """Glorot: a C x C matrix has variance 1 / C."""
  params = layers.SelfAttention().init(jax.random.key(0), jnp.zeros((1, 2, 2, 128)))['params']
  for kernel in np.split(params['qkv']['kernel'], 3, axis=-1):
    np.testing.assert_allclose(kernel.var() * 128, 1, atol=0.05)


def test_heads_must_divide_the_channels():
  with pytest.raises(ValueError, match=r'^num_heads: 3 .* 16 channels'):
    layers.SelfAttention(3).init(jax.random.key(0), jnp.zeros((1, 2, 2, 16)))


def test_upsample_repeats_each_pixel():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 4))
  kernel = jnp.zeros((3, 3, 4, 4)).at[1, 1].set(jnp.eye(4))
  params = {'conv': {'kernel': kernel, 'bias': jnp.zeros(4)}}
  y = layers.Upsample().apply({'params': params}, x)
  np.testing.assert_array_equal(y, np.asarray(x).repeat(2, axis=1).repeat(2, axis=2))


def test_downsample_takes_every_other_pixel():
  x = jax.random.normal(jax.random.key(0), (2, 4, 6, 4))
  kernel = jnp.zeros((3, 3, 4, 4)).at[0, 0].set(jnp.eye(4))
  params = {'conv': {'kernel': kernel, 'bias': jnp.zeros(4)}}
  y = layers.Downsample().apply({'params': params}, x)
  np.testing.assert_array_equal(y, x[:, ::2, ::2])


def test_a_condition_is_dropped_whole_at_its_rate_and_by_one_draw():
  count, rate = 4000, 0.3
  cond = {'words': jnp.ones((count, 3, 2)), 'mask': jnp.ones((count, 3), bool)}
  null = {'words': 7.0, 'mask': jnp.zeros((count, 3), bool)}
  found = layers.drop_cond(cond, null, keys(count), rate)
  dropped = np.asarray(found['words'] == 7)
  assert (dropped == dropped[:, :1, :1]).all()
  dropped = dropped[:, 0, 0]
  np.testing.assert_array_equal(found['mask'], np.repeat(~dropped[:, None], 3, axis=1))
  assert found['mask'].dtype == bool
  assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / count)
  less = np.asarray(layers.drop_cond(jnp.ones(count), 7.0, keys(count), rate / 2) == 7)
  assert (dropped | ~less).all() and 0 < less.sum() < dropped.sum()
  for same in (layers.drop_cond(cond, null, None, rate), layers.drop_cond(cond, null, keys(1), 0)):
    assert same is cond


@pytest.mark.parametrize('num_heads', [1, 2])
def test_the_map_of_attention_can_be_intercepted(num_heads):
  """By the identity, what is left is x + projection(v), with v a linear map of the norm."""
  module = layers.SelfAttention(num_heads)
  x = jax.random.normal(jax.random.key(1), (2, 3, 3, 8))
  params = noise_like(module.init(jax.random.key(0), x)['params'])

  def identity(call, args, kwargs, context):
    return args[2] if context.method_name == 'attend' else call(*args, **kwargs)

  with nn.intercept_methods(identity):
    found = module.apply({'params': params}, x)
  normed = layers.GroupNorm().apply({'params': params['norm']}, x)
  v = normed @ params['qkv']['kernel'][:, 16:] + params['qkv']['bias'][16:].reshape(1, 1, 1, -1)
  out = v @ params['projection']['kernel'] + params['projection']['bias'].reshape(1, 1, 1, -1)
  np.testing.assert_allclose(found, x + out, atol=1e-4)
  assert np.abs(found - module.apply({'params': params}, x)).max() > 0.1
