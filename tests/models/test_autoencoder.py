"""The autoencoder's networks, its loss, and a small run of it by the common loop."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.config import base_config, from_config_dict, from_json, to_json
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.evidence import BOUNDS, make_evidence_bits, pairs
from ddpm_jax.keys import Keys, example_keys
from ddpm_jax.losses.evidence import evidence_of
from ddpm_jax.models import Autoencoder, init_network, make_coder, make_network
from ddpm_jax.training import build, generate, load_run, train
from ddpm_jax.training.metrics import read

SHAPE = (3, 2, 1)


def filled(**settings):
  tree = base_config()
  tree.dataset.name, tree.dataset.batch_size = 'digits', 64
  tree.dataset.conditional = False
  tree.model.name, tree.model.latents, tree.model.widths = 'autoencoder', 4, (32,)
  tree.loss.name = 'elbo'
  tree.optimizer.name, tree.optimizer.learning_rate = 'adam', 3e-3
  tree.ema.decay = 0.9
  tree.training.num_steps = 120
  tree.evaluation.batch_size = 64
  tree.logging.every_steps = 10
  for path, value in settings.items():
    group, name = path.split('__')
    tree[group][name] = value
  return tree


def small(num_classes=None):
  """A coder for images of six values, and its parameters."""
  module = Autoencoder(latents=2, widths=(5,), num_classes=num_classes, out_channels=1)
  return make_coder(module), init_network(module, jax.random.key(0), SHAPE)


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


def test_as_a_network_it_reconstructs():
  module = Autoencoder(latents=2, widths=(5,), out_channels=1)
  coder, params = small()
  x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
  by_hand, _ = coder.decode(params, coder.encode(params, x, {})[0], {}, SHAPE)
  np.testing.assert_allclose(make_network(module)(params, x, jnp.ones(4), {}), by_hand, rtol=1e-6)


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


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A small run by the common loop."""
  workdir = tmp_path_factory.mktemp('runs') / 'vae'
  train(from_config_dict(filled()), workdir)
  return workdir


def test_the_common_loop_trains_it(run):
  rows = read(run / 'metrics.jsonl')
  losses = [row['loss'] for row in rows if 'loss' in row]
  heldout = [row['heldout/loss'] for row in rows if 'heldout/loss' in row]
  # log2 17 = 4.09 bits: what every level at equal odds would cost.
  assert losses[-1] < losses[0] and heldout[-1] < 3.5
  assert next(iter((run / 'samples').glob('*.png'))).stat().st_size > 1000


def test_its_importance_weighted_bits_are_no_more_than_its_elbos(run):
  loaded = load_run(run)
  experiment = build(loaded.config)
  batch = experiment.dataset.test[np.arange(48)]
  batch['index'] = np.arange(48)
  found = {
    name: np.asarray(
      make_evidence_bits(experiment, name, 50)(loaded.params, jax.random.key(0), batch)
    )
    for name in BOUNDS
  }
  assert found['elbo'].shape == (48,)
  assert found['iwae'].mean() < found['elbo'].mean()
  # The loss is the same bound, from one draw: over the batch it agrees within its error.
  image = 2 * jnp.asarray(batch['image'], jnp.float32) / 16 - 1
  index = jnp.arange(48)
  keys = Keys(jax.random.key(1), example_keys(jax.random.key(1), index))
  batch = {'image': image, 'label': jnp.asarray(batch['label']), 'index': index}
  output = experiment.loss(experiment.problem, {'network': loaded.params}, None, batch, keys)
  error = np.asarray(output.values - found['elbo'])
  assert abs(error.mean()) < 5 * error.std() / np.sqrt(48)
  assert (np.asarray(output.metrics['kl']) > 0).all()


def test_samples_belong_to_their_keys_and_pairs_to_their_images(run):
  loaded = load_run(run)
  experiment = build(loaded.config)
  keys = example_keys(jax.random.key(3), jnp.arange(6))
  images = generate(experiment, loaded.params, {}, keys)
  assert images.shape == (6, 8, 8, 1)
  alone = generate(experiment, loaded.params, {}, keys[2:3])
  np.testing.assert_allclose(alone, images[2:3], rtol=1e-4, atol=1e-5)
  batch = experiment.dataset.test[np.arange(6)]
  rows = pairs(experiment, loaded.params, batch, 3).reshape(2, 2, 3, 8, 8, 1)
  pictures = batch['image'] * 255.0 / 16
  np.testing.assert_allclose(rows[:, 0].reshape(6, 8, 8, 1), pictures, atol=0.51)
  again = rows[:, 1].reshape(6, 8, 8, 1)
  distances = np.abs(again[:, None] - pictures[None]).mean((2, 3, 4))
  assert np.diag(distances).mean() < distances.mean()


def test_an_unset_choice_comes_back_from_json():
  config = from_config_dict(filled())
  assert config.schedule.name == config.sampler.name == ''
  assert from_json(json.loads(json.dumps(to_json(config)))) == config


MISTAKES = {
  'a schedule': ({'schedule__name': 'linear'}, r"^config\.schedule\.name: 'linear' is set, but"),
  'a chain': ({'schedule__num_steps': 5}, r'^config\.schedule\.num_steps: 5 is set, but'),
  "a denoiser's loss": ({'loss__name': 'simple'}, r"^config\.loss\.name: 'simple' trains no auto"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_what_an_autoencoder_has_no_use_for_is_refused(mistake):
  settings, message = MISTAKES[mistake]
  with pytest.raises(InputError, match=message):
    build(from_config_dict(filled(**settings)))
