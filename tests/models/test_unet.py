import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.condition import labels
from ddpm_jax.models import UNet, init_network, make_network, null_cond, num_params
from tests.models.test_layers import keys, noise_like, quick_jit

SMALL = {
  'channels': 8,
  'multipliers': (1, 2),
  'num_res_blocks': 1,
  'attention_resolutions': (8,),
  'spec': labels(10),
  'out_channels': 1,
}
BATCH = 4


@pytest.fixture(scope='module')
def params():
  """Of the small network, all leaves random: at its own start the output is zero."""
  return noise_like(init_network(UNet(**SMALL), jax.random.key(0), (8, 8, 1)))


def inputs(size=8, scale=1.0):
  x = scale * jax.random.normal(jax.random.key(2), (BATCH, size, size, 1))
  cond = {'label': jnp.arange(BATCH, dtype=jnp.int32)}
  return x, jnp.array([0.5, 20.0, 300.0, 999.0]), cond


def apply(params, *args, keys=None, **changes):
  return quick_jit(make_network(UNet(**SMALL | changes)))(params, *args, keys=keys)


def shapes(module, image_shape):
  return jax.eval_shape(lambda key: init_network(module, key, image_shape), jax.random.key(0))


def conv(inputs, outputs, size=3):
  return size * size * inputs * outputs + outputs


def norm(channels):
  return 2 * channels


def res_block(inputs, outputs, embedding=512):
  total = norm(inputs) + conv(inputs, outputs) + norm(outputs) + conv(outputs, outputs)
  shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
  return total + embedding * outputs + outputs + shortcut


def attention(channels):
  return norm(channels) + 4 * conv(channels, channels, 1)


def test_cifar10_network_has_the_parameters_of_the_original():
  """Counted from the paper's architecture: levels 32² (128 channels), 16², 8², 4² (256)."""
  embedding = 128 * 512 + 512 + 512 * 512 + 512
  down = [
    conv(3, 128) + 2 * res_block(128, 128) + conv(128, 128),
    res_block(128, 256) + res_block(256, 256) + 2 * attention(256) + conv(256, 256),
    2 * res_block(256, 256) + conv(256, 256),
    2 * res_block(256, 256),
  ]
  middle = 2 * res_block(256, 256) + attention(256)
  # Each block also takes one activation of the way down; a level's last one that of its entry.
  up = [
    3 * res_block(256 + 256, 256) + conv(256, 256),
    3 * res_block(256 + 256, 256) + conv(256, 256),
    2 * res_block(256 + 256, 256) + res_block(256 + 128, 256) + 3 * attention(256) + conv(256, 256),
    res_block(256 + 128, 128) + 2 * res_block(128 + 128, 128),
  ]
  end = norm(128) + conv(128, 3)
  assert embedding + sum(down) + middle + sum(up) + end == 35_746_307
  assert num_params(shapes(UNet(), (32, 32, 3))) == 35_746_307


def test_class_conditioning_adds_a_row_for_each_class_and_one_for_none():
  added = num_params(shapes(UNet(spec=labels(10)), (32, 32, 3))) - 35_746_307
  assert added == 11 * 512


def test_output_is_zero_at_the_start():
  start = init_network(UNet(**SMALL), jax.random.key(0), (8, 8, 1))
  np.testing.assert_array_equal(apply(start, *inputs()), 0)


def test_learn_variance_doubles_the_channels():
  image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
  label = jax.ShapeDtypeStruct((2,), jnp.float32)
  module = UNet(learn_variance=True)
  params = shapes(module, (32, 32, 3))
  output = jax.eval_shape(lambda *args: make_network(module)(*args, {}), params, image, label)
  assert output.shape == (2, 32, 32, 6)


def test_gradient_reaches_every_parameter(params):
  x, noise_label, cond = inputs()
  network = make_network(UNet(**SMALL))
  gradient = quick_jit(jax.grad(lambda p: jnp.sum(network(p, x, noise_label, cond) ** 2)))(params)
  rows = gradient['conditioning']['label'].pop('embedding')
  assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
  np.testing.assert_array_equal(jnp.any(rows != 0, axis=-1), jnp.arange(11) < BATCH)


def test_examples_do_not_see_each_other(params):
  x, noise_label, cond = inputs()
  network = make_network(UNet(**SMALL))
  gradient = quick_jit(
    jax.grad(lambda x: jnp.sum(network(params, x, noise_label, cond, keys=keys(BATCH))[0] ** 2))
  )(x)
  assert jnp.any(gradient[0] != 0)
  np.testing.assert_array_equal(gradient[1:], 0)


def test_training_output_of_an_example_is_the_same_in_any_batch(params):
  x, noise_label, cond = inputs()
  training = {'dropout': 0.5, 'label_dropout': 0.5}
  whole = apply(params, x, noise_label, cond, keys=keys(BATCH), **training)
  for i in (0, BATCH - 1):
    one = slice(i, i + 1)
    label = {'label': cond['label'][one]}
    alone = apply(params, x[one], noise_label[one], label, keys=keys(BATCH)[one], **training)
    np.testing.assert_allclose(alone[0], whole[i], rtol=1e-4, atol=1e-4)
  evaluated = apply(params, x, noise_label, cond, **training)
  assert jnp.abs(whole - evaluated).max() > 0.1


def test_labels_are_dropped_at_the_rate_asked_for(params):
  """A dropped label gives the null label's output, exactly; all else is kept equal."""
  number, rate = 400, 0.25
  ones = jnp.ones(number)
  x = jnp.broadcast_to(inputs()[0][:1], (number, 8, 8, 1))
  cond = {'label': jnp.full(number, 3)}
  null = null_cond(UNet(**SMALL), number)
  settings = {'dropout': 0.0, 'label_dropout': rate}
  drawn = apply(params, x, ones, cond, keys=keys(number), **settings)
  with_label, without = apply(params, x, ones, cond), apply(params, x, ones, null)
  dropped = np.isclose(drawn, without, atol=1e-5).all((1, 2, 3))
  kept = np.isclose(drawn, with_label, atol=1e-5).all((1, 2, 3))
  np.testing.assert_array_equal(dropped, ~kept)
  assert abs(dropped.mean() - rate) < 4 * np.sqrt(rate * (1 - rate) / number)


@pytest.mark.slow
def test_remat_keeps_less_for_the_same_gradient(params):
  """What the backward pass keeps are the leaves of the function that `jax.vjp` returns."""
  x, noise_label, cond = inputs()

  def output(remat):
    network = make_network(UNet(**SMALL, dropout=0.5, remat=remat))
    return lambda p: network(p, x, noise_label, cond, keys=keys(BATCH))

  def kept(remat):
    backward = jax.eval_shape(lambda p: jax.vjp(output(remat), p)[1], params)
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  def gradient(remat):
    return quick_jit(jax.grad(lambda p: jnp.sum(output(remat)(p) ** 2)))(params)

  activations = [kept(remat) - num_params(params) for remat in (False, True)]
  assert activations[1] < activations[0] / 2
  pairs = zip(*(jax.tree.leaves(gradient(remat)) for remat in (False, True)), strict=True)
  for plain, again in pairs:
    np.testing.assert_allclose(again, plain, rtol=1e-3, atol=1e-4 * jnp.abs(plain).max())


def test_bfloat16_is_close_and_gives_float32(params):
  x, noise_label, cond = inputs()
  exact = apply(params, x, noise_label, cond)
  rounded = apply(params, x, noise_label, cond, dtype='bfloat16')
  assert rounded.dtype == jnp.float32
  error = jnp.sqrt(jnp.mean((rounded - exact) ** 2) / jnp.mean(exact**2))
  assert 1e-5 < error < 0.03


def test_bfloat16_keeps_neighboring_noise_labels_apart(params):
  """999 and 1000 are one number in bfloat16."""
  x, _, cond = inputs()
  first, second = (
    apply(params, x, jnp.full(BATCH, label), cond, dtype='bfloat16') for label in (999.0, 1000.0)
  )
  assert jnp.abs(first - second).max() > 0.01


def test_parameters_stay_float32_under_bfloat16():
  params = shapes(UNet(dtype='bfloat16'), (32, 32, 3))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(
  'changes, size, message',
  [
    ({'multipliers': (1, 1, 1)}, 6, r'^multipliers: 3 levels .* 6x6; give 2 or'),
    ({'multipliers': (1, 1)}, 7, r'^multipliers: 2 levels .* 7x7; give 1 or'),
    ({'channels': 30}, 8, r'^channels: 30 is not a multiple of 4'),
    ({'dtype': 'bfloat'}, 8, r"^dtype: 'bfloat' .* did you mean 'bfloat16'"),
  ],
)
def test_settings_that_cannot_work_are_named(changes, size, message):
  with pytest.raises(ValueError, match=message):
    shapes(UNet(**SMALL | changes), (size, size, 1))


def test_the_number_of_levels_that_an_error_suggests_works():
  shapes(UNet(**SMALL | {'multipliers': (1, 1)}), (6, 6, 1))
