"""docs/losses.md as it is shipped, plug-ins from a folder of one's own, and what is refused."""

import pathlib
import re
import sys

import numpy as np
import pytest

from ddpm_jax.errors import InputError
from ddpm_jax.losses import FACTORS, LOSSES, OF_TEACHERS, PRESETS
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training
from ddpm_jax.tasks.train import make_job, steps, train
from tests.training.tiny import tiny

PAGE = (pathlib.Path(__file__).parents[2] / 'docs' / 'losses.md').read_text()
(CODE,) = re.findall(r'```python\n(.*?)```', PAGE, re.DOTALL)

OTHERS = """
import jax.numpy as jnp
from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers import ddim

def schedule(num_steps: int = 20):
  return schedules.linear(num_steps, 0.01, 0.3)

def law(step_key, index, batch_size, schedule, state):
  return 1 + index % schedule.num_steps, jnp.ones(index.shape)

def distance(difference):
  return jnp.abs(difference) ** 1.5

def noise(context, batch, keys):
  eps = jnp.zeros_like(batch['x'])
  return eps, eps

def sampler():
  return ddim()

def short(schedule):
  return 1.0

def negative(schedule, t):
  return -1.0

def no_eps(context, batch, keys):
  return batch['x']

def of_images(context, params, state, batch, keys):
  return jnp.mean(batch['image'], (1, 2, 3))

def of_labels(context, params, state, batch, keys):
  return 1.0 * batch['label']

def label_noise(context, batch, keys):
  eps = 0 * batch['x'] + batch['label'][:, None, None, None]
  return eps, eps

def no_output(context, params, state, batch, keys):
  return 1.0

number = 3
"""


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
  (tmp_path / 'my_losses.py').write_text(CODE)
  (tmp_path / 'others.py').write_text(OTHERS)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[1] / 'training')
  yield
  for name in ('my_losses', 'others'):
    sys.modules.pop(name, None)


def test_the_pages_example_is_short_and_trains(tmp_path):
  assert len(CODE.splitlines()) <= 15
  settings = {
    'loss.name': 'my_losses:cubic',
    'loss.args': {'scale': 0.1},
    'loss.weight': 'my_losses:weight(power=0.25)',
    'schedule.name': 'others:schedule',
    'schedule.num_steps': None,
    'loss.timestep_distribution': 'others:law',
    'loss.distance': 'others:distance',
    'loss.noise_distribution': 'others:noise',
    'sampler.name': 'others:sampler',
    'training.num_steps': 2,
  }
  for _, state in steps(tiny(**settings), tmp_path / 'run'):
    assert all(np.isfinite(leaf).all() for leaf in state.params['network']['Dense_0'].values())


def test_the_page_names_every_entry():
  for name in (name for table in (LOSSES, *FACTORS.values()) for name in table):
    assert re.search(rf'[`( ]{name}[`( )]', PAGE), name


def check(config):
  experiment = build(config)
  check_training(experiment, make_job(experiment))


def test_a_plug_in_made_of_a_product_keeps_what_its_distribution_remembers():
  settings = {'loss.name': 'my_losses:cubic', 'loss.timestep_distribution': 'importance'}
  check(tiny(**settings))


@pytest.mark.parametrize('name', sorted(set(PRESETS) - {'hybrid'} - set(OF_TEACHERS)))
def test_every_preset_can_begin(name):
  check(tiny(**{'loss.name': name}))


def test_importance_and_uncertainty_train(tmp_path):
  settings = {'loss.name': 'uncertainty', 'loss.timestep_distribution': 'importance(history=1)'}
  for step, state in steps(tiny(**settings, **{'training.num_steps': 3}), tmp_path):
    assert state.loss_state['law']['count'].sum() == 16 * step
  assert np.any(state.params['loss']['amplitude'] != 0)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'loss.name': 'nowhere:f'}, "config.loss.name: 'nowhere:f' cannot be imported"),
    ({'loss.name': 'others:number'}, "config.loss.name: others: 'number' is not one of"),
    ({'loss.name': 'others:short'}, 'config.loss'),
    ({'loss.name': 'others:no_output'}, 'does not return LossOutput'),
    (
      {'loss.name': 'others:of_images'},
      "config.loss.name: 'others:of_images': KeyError: 'image'; it is batch['x'] now",
    ),
    (
      {'loss.name': 'others:of_labels'},
      "config.loss.name: 'others:of_labels': KeyError: 'label'; it is batch['cond']['label'] now",
    ),
    (
      {'loss.noise_distribution': 'others:label_noise'},
      "'others:label_noise': KeyError: 'label'; it is batch['cond']['label'] now",
    ),
    ({'loss.weight': 'others:short'}, "config.loss.weight: 'others:short' cannot be used"),
    ({'loss.weight': 'others:negative'}, "config.loss.weight: 'others:negative' gives"),
    (
      {'loss.noise_distribution': 'others:no_eps'},
      "config.loss.noise_distribution: 'others:no_eps' does not return",
    ),
    (
      {'loss.noise_distribution': 'others:short'},
      "config.loss.noise_distribution: 'others:short': TypeError",
    ),
    ({'loss.weight': 'min_snr(gamma=-1)'}, 'config.loss.weight'),
    ({'loss.timestep_distribution': 'importance(floor=2)'}, 'config.loss.timestep_distribution'),
    (
      {'loss.timestep_distribution': 'log_normal(mean=9)'},
      # They are N(-18, 2.4²), and the schedule's end at -12: 1 - Φ(2.5).
      "config.loss.timestep_distribution: only 0.6% of its log-SNRs are within the schedule's",
    ),
    ({'loss.distance': 'others:law'}, "config.loss.distance: 'others:law' cannot be used"),
    (
      {'loss.name': 'variational', 'loss.weight': 'simple'},
      "config.loss.weight: 'variational' is no product",
    ),
    (
      {'schedule.name': 'others:sampler', 'schedule.num_steps': None},
      "config.schedule.name: 'others:sampler' answers no t_min",
    ),
    ({'sampler.name': 'others:schedule'}, "'others:schedule' does not return a Sampler"),
    ({'loss.name': 'hybrid'}, 'set config.model.learn_variance'),
  ],
)
def test_what_makes_no_sense_is_one_line_before_training(settings, message, tmp_path):
  with pytest.raises(InputError) as caught:
    train(tiny(**settings), tmp_path / 'run')
  assert message in str(caught.value)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'run').exists()


UNET = {
  'model.name': 'unet',
  'model.channels': 4,
  'model.multipliers': (1,),
  'model.num_res_blocks': 1,
  'model.attention_resolutions': (),
  'model.learn_variance': True,
  'loss.name': 'hybrid',
  'sampler.name': 'ancestral',
  'sampler.variance': 'fraction',
}


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({}, None),
    ({'loss.timestep_distribution': 'importance'}, None),
    ({'parameterization.variance_head': 'raw', 'sampler.variance': 'optimal'}, None),
    ({'loss.timestep_distribution': 'log_normal'}, 'set (estimate=True)'),
    ({'loss.timestep_distribution': 'log_normal(estimate=True)'}, None),
    ({'loss.name': 'simple'}, "the loss 'simple' does not train it"),
    ({'sampler.name': 'ddim', 'sampler.variance': None}, "'ddim' as it is set ignores"),
    ({'parameterization.variance_head': 'raw'}, 'ignores the variance'),
    ({'schedule.name': 'vp', 'schedule.num_steps': None}, "continuous time has 'variational'"),
  ],
)
def test_a_learned_variance_is_trained_and_used_or_refused(settings, message):
  config = tiny(**{**UNET, **settings})
  if message is None:
    check(config)
    return
  with pytest.raises(InputError) as caught:
    check(config)
  assert message in str(caught.value)
