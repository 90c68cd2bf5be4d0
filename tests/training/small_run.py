"""A network small enough to compile in seconds, with random parameters."""

import jax
import pytest

from ddpm_jax import data
from ddpm_jax.config import base_config, from_config_dict
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.run import Run, used
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training.task import load_frozen


@pytest.fixture(scope='session')
def digits():
  return data.load('digits')


@pytest.fixture(scope='session')
def experiment(digits):
  """The digits with a network of one level."""
  tree = base_config()
  tree.dataset.name = 'digits'
  tree.model.name = 'unet'
  tree.model.channels = 8
  tree.model.multipliers = (1,)
  tree.model.num_res_blocks = 1
  tree.model.attention_resolutions = ()
  tree.schedule.name = 'cosine'
  tree.schedule.num_steps = 100
  tree.parameterization.name = 'v'
  tree.loss.name = 'simple'
  tree.optimizer.name = 'adam'
  tree.sampler.name = 'ddim'
  tree.sampler.num_steps = 4
  tree.sampler.guidance = 2.0
  return build(from_config_dict(tree), digits)


@pytest.fixture(scope='session')
def params(experiment):
  """Random, the zero-initialized layers too: else no output would depend on any input."""
  leaves, tree = jax.tree.flatten(make_task(experiment).init(None)[0]['network'])
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
  return jax.tree.unflatten(tree, noisy)


def run_of(experiment, network):
  """A run of the experiment whose network has these parameters."""
  task = make_task(experiment)
  trained = {'network': network, 'schedule': {}, 'loss': {}}
  return Run(experiment, task, used(task).bind(trained), 0, trained, load_frozen(task))


@pytest.fixture(scope='session')
def as_run():
  """The function as_run(experiment, network) -> Run."""
  return run_of
