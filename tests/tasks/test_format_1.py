"""Runs of before: their records have no task, no codec and nothing frozen, and they go on."""

import json
import shutil

import jax
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import load_run
from ddpm_jax.config import base_config, from_config_dict
from ddpm_jax.errors import InputError
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.identity import identify
from ddpm_jax.tasks.ownership import refuse_foreign
from ddpm_jax.tasks.train import make_job, train
from ddpm_jax.training.checkpoint import Checkpoints, record_of

LENGTH = {
  'training.num_steps': 8,
  'checkpoint.every_steps': 4,
  'checkpoint.keep': 2,
  'evaluation.every_steps': 8,
  'logging.every_steps': 2,
  'logging.preview_every_steps': 100,
}


def coder(folder, **settings):
  """A small autoencoder of images without classes."""
  del folder
  tree = base_config()
  tree.dataset.name, tree.dataset.batch_size, tree.dataset.conditional = 'digits', 16, False
  tree.task.name, tree.loss.name = 'autoencoding', 'elbo'
  tree.model.name, tree.model.latents, tree.model.widths = 'autoencoder', 2, (8,)
  tree.optimizer.name, tree.optimizer.learning_rate = 'adam', 1e-3
  tree.ema.decay, tree.evaluation.batch_size = 0.9, 8
  for path, value in (LENGTH | settings).items():
    group, name = path.split('.')
    tree[group][name] = value
  return from_config_dict(tree)


def denoiser(folder, **settings):
  """The tiny run."""
  del folder
  return tiny(**LENGTH | settings)


def student(folder, **settings):
  """A run that learns from one in the folder beside."""
  taught = {'loss.name': 'progressive', 'loss.num_steps': 2}
  return tiny(**LENGTH | taught | {'training.init_from': str(folder / 'teacher')} | settings)


CONFIGS = {'a denoiser': denoiser, 'an autoencoder': coder, 'a student': student}


def settings_of(tree):
  """The settings, a tree or dotted leaves, without those of a task and a codec."""
  return {
    name: value for name, value in tree.items() if name.split('.')[0] not in ('task', 'codec')
  }


def rewrite_record(path):
  """Makes a config.json one of format 1."""
  tree = json.loads(path.read_text())
  label = tree['data'].pop('cond').get('label', {'num_classes': None, 'classes': None})
  tree['data'] |= {name: label[name] for name in ('num_classes', 'classes')}
  assert {'task', 'codec'} <= tree['config'].keys()
  del tree['frozen']
  path.write_text(json.dumps(tree | {'format': 1, 'config': settings_of(tree['config'])}))


def rewrite_checkpoint(workdir, job, step):
  """Leaves one checkpoint, as format 1 has it: a teacher is in the loss's state."""
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    state, record = checkpoints.restore(step, job.shapes)
  del record['frozen']
  record['experiment']['config'] = settings_of(record['experiment']['config'])
  if 'teacher' in job.frozen:
    state = state.replace(loss_state={'teacher': jax.tree.map(np.asarray, job.frozen['teacher'])})
  shutil.rmtree(workdir / 'checkpoints')
  with Checkpoints(workdir / 'checkpoints', keep=2) as checkpoints:
    checkpoints.save(step, state, record)


@pytest.fixture(scope='module', params=CONFIGS)
def earlier(request, tmp_path_factory):
  """config(**settings), the folder of a whole run, and the same cut off and of format 1."""
  folder = tmp_path_factory.mktemp('earlier')
  make = CONFIGS[request.param]
  if make is student:
    train(denoiser(folder), folder / 'teacher')

  def config(**settings):
    return make(folder, **settings)

  train(config(), folder / 'whole', plugins=('tiny',))
  shutil.copytree(folder / 'whole', folder / 'format_1')
  rewrite_record(folder / 'format_1' / 'config.json')
  rewrite_checkpoint(folder / 'format_1', make_job(build(config()), ('tiny',)), 4)
  return config, folder / 'whole', folder / 'format_1'


def restored(workdir, config, step):
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    return checkpoints.restore(step, make_job(build(config), ('tiny',)).shapes)


def test_it_is_loaded_as_it_was_trained(earlier):
  config, whole, before = earlier
  run, same = (load_run(folder, step=4, plugins=('tiny',)) for folder in (before, whole))
  assert run.config == same.config == config()
  assert run.experiment.dataset.cond == same.experiment.dataset.cond
  assert jax.tree.all(jax.tree.map(np.array_equal, run.trained, same.trained))


def test_it_goes_on_bit_by_bit_as_one_of_today(earlier, tmp_path):
  config, whole, before = earlier
  workdir = shutil.copytree(before, tmp_path / 'run')
  assert 'frozen' not in record_of(workdir / 'checkpoints', 4)
  train(config(), workdir, plugins=('tiny',))
  state, record = restored(workdir, config(), 8)
  expected, written = restored(whole, config(), 8)
  assert record == written
  for (path, leaf), other in zip(
    jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))
  assert (workdir / 'metrics.jsonl').read_text() == (whole / 'metrics.jsonl').read_text()
  # Its record is one of today from then on.
  for name in ('format', 'config', 'data', 'frozen'):
    one, other = (json.loads((run / 'config.json').read_text())[name] for run in (workdir, whole))
    assert one == other


def test_another_experiment_is_refused_its_folder_and_its_checkpoints(earlier, tmp_path):
  config, _, before = earlier
  refuse_foreign(before, identify(config()))
  refuse_foreign(before, identify(config(**{'training.num_steps': 100})))
  other = config(**{'ema.decay': 0.5})
  with pytest.raises(InputError, match=r'holds another experiment, which differs in config\.\w+\.'):
    refuse_foreign(before, identify(other))
  # The checkpoint says it itself, where the folder's record is of another.
  shutil.copytree(before / 'checkpoints', tmp_path / 'run' / 'checkpoints')
  record = json.loads((before / 'config.json').read_text())
  record['config']['ema']['decay'] = 0.5
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(record))
  with pytest.raises(InputError, match=r'the checkpoint of step 4 is of another .* config\.ema\.d'):
    refuse_foreign(tmp_path / 'run', identify(other))
