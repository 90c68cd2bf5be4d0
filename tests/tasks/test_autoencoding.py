"""The task of an autoencoder: a small run of it by the common loop."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import load_run
from ddpm_jax.config import base_config, from_config_dict, from_json, to_json
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.gallery import pairs
from ddpm_jax.keys import Keys, example_keys
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.evidence import BOUNDS, make_evidence_bits
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import train
from ddpm_jax.training.metrics import read


def filled(**settings):
  tree = base_config()
  tree.dataset.name, tree.dataset.batch_size = 'digits', 64
  tree.dataset.conditional = False
  tree.task.name = 'autoencoding'
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
  dataset = experiment.dataset
  batch = {**dataset.read(dataset.test, np.arange(48)), 'index': np.arange(48)}
  frozen, key = loaded.frozen, jax.random.key(0)
  found = {
    name: np.asarray(make_evidence_bits(experiment, name, 50)(loaded.trained, frozen, key, batch))
    for name in BOUNDS
  }
  assert found['elbo'].shape == (48,)
  assert found['iwae'].mean() < found['elbo'].mean()
  # The loss is the same bound, from one draw: over the batch it agrees within its error.
  keys = Keys(jax.random.key(1), example_keys(jax.random.key(1), jnp.arange(48)))
  output = loaded.task.loss(loaded.trained, (), frozen, batch, keys, lambda values: values)
  error = np.asarray(output.values - found['elbo'])
  assert abs(error.mean()) < 5 * error.std() / np.sqrt(48)
  assert (np.asarray(output.metrics['kl']) > 0).all()


def test_samples_belong_to_their_keys_and_pairs_to_their_images(run):
  loaded = load_run(run)
  experiment = build(loaded.config)
  keys = example_keys(jax.random.key(3), jnp.arange(6))
  images = loaded.use.generate(loaded.trained, loaded.frozen, {}, keys)
  assert images.shape == (6, 8, 8, 1)
  alone = loaded.use.generate(loaded.trained, loaded.frozen, {}, keys[2:3])
  np.testing.assert_allclose(alone, images[2:3], rtol=1e-4, atol=1e-5)
  batch = experiment.dataset.read(experiment.dataset.test, np.arange(6))
  rows = pairs(loaded, batch, 3).reshape(2, 2, 3, 8, 8, 1)
  pictures = batch['x'] * 255.0 / 16
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
  'a network without a code': (
    {'model__name': 'mlp', 'model__latents': None, 'model__widths': None},
    r"^config\.model\.name: 'mlp' has no encoder and decoder; take 'autoencoder', or set config.ta",
  ),
  "a denoiser's loss": ({'loss__name': 'simple'}, r"^config\.loss\.name: 'simple' trains no auto"),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_what_an_autoencoder_has_no_use_for_is_refused(mistake):
  settings, message = MISTAKES[mistake]
  with pytest.raises(InputError, match=message):
    make_task(build(from_config_dict(filled(**settings))))


def test_the_task_of_removing_noise_refuses_it():
  tree = filled(task__name='denoising', schedule__name='cosine', sampler__name='ddim')
  tree.parameterization.name = 'eps'
  with pytest.raises(
    InputError, match=r"^config\.model\.name: 'autoencoder' removes no noise; set"
  ):
    make_task(build(from_config_dict(tree)))


def test_it_has_no_path_to_begin_on():
  task = make_task(build(from_config_dict(filled())))
  (params, _), keys = task.init(None), jax.random.split(jax.random.key(0))
  with pytest.raises(InputError, match='has no path, and draws nothing by return_path'):
    task.use.generate(params, {'codec': {}}, {}, keys, return_path=True)
  assert task.use.denoiser is None
