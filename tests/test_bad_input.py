"""Whatever is written where a setting stands gives a run that works, or one line that names it.

Every setting, and every argument of every entry of every table, is given zero, a negative, a huge
number, a wrong type and nothing.
"""

import contextlib
import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.bounds import alternatives, describe
from ddpm_jax.config import CLASSES, all_tables, base_config, from_config_dict, setting_fields
from ddpm_jax.config.signatures import keywords
from ddpm_jax.data import DATASETS
from ddpm_jax.diffusion.schedules import parameters
from ddpm_jax.errors import InputError
from ddpm_jax.keys import example_keys
from ddpm_jax.models import init_network
from ddpm_jax.tasks import checks, train
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training, remarks
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training.advance import make_step
from ddpm_jax.training.parallel import PARALLEL
from ddpm_jax.training.state import new_state

VALUES = (0, -1, 2**70, 'wrong', '', ())
TABLES = all_tables()

# A run of a moment. None leaves a setting unset.
BASE = {
  'dataset.name': 'mixture',
  'dataset.num_train': 64,
  'dataset.num_test': 8,
  'dataset.batch_size': 8,
  'model.name': 'mlp',
  'schedule.name': 'cosine',
  'parameterization.name': 'v',
  'loss.name': 'simple',
  'optimizer.name': 'adam',
  'optimizer.warmup_steps': 2,
  'sampler.name': 'ddim',
  'sampler.num_steps': 4,
  'training.num_steps': 10,
  'evaluation.batch_size': 8,
}
SMALL = {'model.width': 8, 'model.depth': 1}
VARIANCE = {
  'model.learn_variance': True,
  'sampler.name': 'ancestral',
  'sampler.variance': 'fraction',
}
BASE_RUN = 'elsewhere'
CONSISTENT = {'parameterization.name': 'consistency', 'schedule.name': 'edm'}
UNREAD = {'schedule.name': None, 'parameterization.name': None, 'sampler.name': None}
CODER = {
  'task.name': 'autoencoding',
  'model.name': 'autoencoder',
  'model.width': None,
  'model.depth': None,
  'loss.name': 'elbo',
} | UNREAD
# What else an entry needs, or a factor.
COMPANY = {
  ('dataset', 'folder'): {'dataset.path': 'nowhere', 'dataset.image_size': 8},
  ('model', 'unet'): {
    'model.width': None,
    'model.depth': None,
    'model.channels': 4,
    'model.multipliers': (1,),
    'model.num_res_blocks': 1,
  },
  ('task', 'autoencoding'): CODER,
  ('model', 'autoencoder'): CODER,
  ('parameterization', 'consistency'): CONSISTENT,
  ('loss', 'hybrid'): VARIANCE,
  ('loss', 'elbo'): CODER,
  ('loss', 'consistency_training'): CONSISTENT,
  ('loss', 'consistency_distillation'): CONSISTENT | {'training.init_from': BASE_RUN},
  ('loss', 'progressive'): {'training.init_from': BASE_RUN},
}


def places():
  """(field, entry's group and name or None) of every setting and every entry's arguments."""
  yield 'seed', None
  for group, cls in CLASSES.items():
    for name in setting_fields(cls):
      yield f'{group}.{name}', None
    for entry, function in TABLES.groups[group].table.items() if group in TABLES.groups else ():
      for name in keywords(function, TABLES.groups[group].supplied):
        yield f'{group}.{name}', (group, entry)


def expressions():
  """(field, entry, argument) of every argument of the loss's factors."""
  for field, table in TABLES.factors.items():
    for entry, function in table.items():
      for name, parameter in keywords(function, frozenset()).items():
        if parameter.default is not parameter.empty:
          yield field, entry, name


@pytest.fixture(autouse=True)
def teacher(monkeypatch):
  """What stands for the run that `training.init_from` names here."""

  def fresh(config, plugins):
    experiment = build(config, mixture())
    network = init_network(experiment.module, jax.random.key(0), experiment.codec.shape)
    return {'network': network, 'schedule': parameters(experiment.schedule)}

  load = train.init_from

  def found(config, plugins):
    known = config.training.init_from == BASE_RUN
    return fresh(config, plugins) if known else load(config, plugins)

  monkeypatch.setattr(train, 'init_from', found)


@functools.cache
def mixture():
  return DATASETS['mixture'](64, 8)


def read(changes):
  """The config of the base with changes, each checked as one that a file sets."""
  tree = base_config(TABLES).to_dict()
  for field, value in changes.items():
    *groups, name = field.split('.')
    functools.reduce(dict.__getitem__, groups, tree)[name] = value
  return from_config_dict(tree, tables=TABLES)


def check(field, entry, value):
  """The experiment that a value of a field gives, up to the compiler; InputError, or it works."""
  changes = BASE | SMALL
  if entry:
    changes |= {f'{entry[0]}.name': entry[1]} | COMPANY.get(entry, {})
  if entry and entry[0] == 'dataset':
    changes |= {'dataset.num_train': None, 'dataset.num_test': None}
  config = read(changes | {field: value})
  return begun(build(config, None if field.startswith('dataset.') and entry else mixture()))


def begun(experiment):
  """The experiment, once it is found that its training may begin."""
  check_training(experiment, make_job(experiment))
  return experiment


def complaint_of(field, entry, value):
  """The line with which a value is refused; None where it is not, and the run may begin."""
  try:
    check(field, entry, value)
  except InputError as error:
    return str(error)
  return None


def test_every_number_of_an_entry_has_bounds():
  """All have an upper end, but one whose default is infinity."""
  unbounded = []
  functions = {
    (group, name): (function, row.supplied)
    for group, row in TABLES.groups.items()
    for name, function in row.table.items()
  }
  functions |= {
    (field, name): (function, frozenset())
    for field, table in TABLES.factors.items()
    for name, function in table.items()
  }
  for place, (function, supplied) in functions.items():
    for name, parameter in keywords(function, supplied).items():
      number = type(parameter.default) in (int, float)
      if number and not describe(parameter.annotation).startswith(('in [', 'in (', 'one of')):
        unbounded.append((*place, name))
  assert unbounded == [('sampler', 'edm', 'noise_max')]


@pytest.mark.parametrize(('field', 'entry'), list(places()), ids=str)
def test_a_setting_works_or_is_refused_in_one_line(field, entry):
  for value in VALUES:
    line = complaint_of(field, entry, value)
    if line is not None:
      assert f'config.{field}' in line, (value, line)
      assert '\n' not in line and ' object at 0x' not in line, (value, line)


@pytest.mark.parametrize(('field', 'entry', 'name'), list(expressions()), ids=str)
def test_an_argument_of_a_factor_works_or_is_refused_in_one_line(field, entry, name):
  for value in VALUES:
    line = complaint_of(field, None, f'{entry}({name}={value!r})')
    if line is not None:
      assert f'config.{field}: ' in line and (name in line or entry in line), (value, line)
      assert '\n' not in line and ' object at 0x' not in line, (value, line)


class Own(nn.Module):
  """A network of one's own."""

  spec: Any
  out_channels: int
  width: int
  label_dropout: float = 0.1


class Blind(nn.Module):
  """One that forgets what the program gives it."""

  width: int = 4


UNET = {
  'dataset.name': 'digits',
  'dataset.num_train': None,
  'dataset.num_test': None,
  'model.name': 'unet',
  'model.channels': 4,
  'model.multipliers': (1, 2),
  'model.num_res_blocks': 1,
}
CASES = [
  (UNET | {'model.multipliers': ()}, 'config.model.multipliers: () is empty'),
  (
    UNET | {'model.multipliers': (1, 0)},
    'config.model.multipliers: 0 is outside [1, 64], in (1, 0)',
  ),
  (UNET | {'model.multipliers': (-2,)}, 'config.model.multipliers: -2 is outside'),
  (UNET | {'model.multipliers': (1,) * 5}, 'config.model.multipliers: 5 levels need image sides'),
  (UNET | {'model.num_heads': 0}, 'config.model.num_heads: 0 is outside [1, 1024]'),
  (UNET | {'model.num_heads': 3}, 'config.model.num_heads: 3 does not divide the 8 channels'),
  (UNET | {'model.num_res_blocks': 0}, 'config.model.num_res_blocks: 0 is outside [1, 100]'),
  (UNET | {'model.num_res_blocks': -1}, 'config.model.num_res_blocks: -1 is outside'),
  (
    UNET | {'model.attention_resolutions': (8, 7)},
    'config.model.attention_resolutions: no level has images 7 high; they halve to 8, 4, 2, 1',
  ),
  (UNET | {'model.dropout': 1.0}, 'config.model.dropout: 1.0 is outside [0, 1)'),
  (UNET | {'model.dropout': 1.5}, 'config.model.dropout: 1.5 is outside [0, 1)'),
  (UNET | {'model.dropout': -0.1}, 'config.model.dropout: -0.1 is outside [0, 1)'),
  (UNET | {'model.label_dropout': 7}, 'config.model.label_dropout: 7.0 is outside [0, 1]'),
  ({'model.dropout': 1.0}, 'config.model.dropout: 1.0 is outside [0, 1)'),
  ({'model.width': 6}, 'config.model.width: 6 is not a multiple of 4'),
  ({'schedule.num_steps': 10**12}, 'config.schedule.num_steps: 1000000000000 is outside'),
  ({'schedule.num_steps': 1}, 'config.schedule.num_steps: 1 is outside [2, 1000000]'),
  ({'schedule.num_steps': 3}, "config.sampler.num_steps: 4 is more than the chain's 3"),
  ({'dataset.batch_size': 10**11}, 'config.dataset.batch_size: 100000000000 is outside'),
  ({'loss.distance': 'huber(delta=0)'}, 'config.loss.distance: delta: 0.0 is outside'),
  (
    {'loss.noise_distribution': 'offset(scale=-1)'},
    'config.loss.noise_distribution: scale: -1.0 is outside',
  ),
  ({'optimizer.warmup_steps': -1}, 'config.optimizer.warmup_steps: -1 is outside'),
  ({'optimizer.b1': 2.0}, 'config.optimizer.b1: 2.0 is outside [0, 0.999999]'),
  ({'optimizer.b1': -0.5}, 'config.optimizer.b1: -0.5 is outside'),
  ({'optimizer.b2': -1}, 'config.optimizer.b2: -1.0 is outside'),
  ({'optimizer.b2': 1.5}, 'config.optimizer.b2: 1.5 is outside'),
  ({'optimizer.eps': -1}, 'config.optimizer.eps: -1.0 is outside (0, 1]'),
  ({'optimizer.eps': 0}, 'config.optimizer.eps: 0.0 is outside (0, 1]'),
  ({'sampler.eta': 2}, 'config.sampler.eta: 2.0 is outside [0, 1]'),
  ({'sampler.name': 'dpm++'}, "did you mean 'dpmpp_2m'?"),
  ({'sampler.interval': (2.0, 1.0)}, 'config.sampler.interval: low < high is wanted'),
  ({'schedule.name': 've', 'schedule.sigma_max': 1e-3}, 'config.schedule.sigma_max: '),
  ({'loss.name': 'consistency_training'}, 'config.parameterization: a consistency loss needs'),
  (
    {'loss.name': 'consistency_training', 'parameterization.name': 'consistency'},
    'config.schedule.continuous: a consistency loss moves between',
  ),
  (
    {'dataset.name': 'folder', 'dataset.path': 'x'},
    "config.dataset.image_size: unset, and 'folder' has no default for it; give one of type int",
  ),
  (
    {'model.name': f'{__name__}:Blind', 'model.label_dropout': None},
    f"config.model.name: '{__name__}:Blind' does not take out_channels and spec",
  ),
  (
    {'model.name': f'{__name__}:Own', 'model.label_dropout': 0.2},
    f"config.model.width: unset, and '{__name__}:Own' has no default for it; give one of type int",
  ),
  (
    {'model.name': f'{__name__}:Own', 'model.args': {'width': 'wide'}},
    "config.model.args.width: 'wide' is not of type int",
  ),
  ({'optimizer.learning_rate': 10**400}, 'config.optimizer.learning_rate: inf is outside (0, 100]'),
]


@pytest.mark.parametrize(('changes', 'words'), CASES, ids=[words for _, words in CASES])
def test_what_was_tried(changes, words):
  if changes.get('dataset.name', 'mixture') != 'mixture':
    changes = {'dataset.num_train': None, 'dataset.num_test': None} | changes
  small = {} if 'model.name' in changes else SMALL
  with pytest.raises(InputError) as caught:
    begun(build(read(BASE | small | changes)))
  assert words in str(caught.value)
  assert '\n' not in str(caught.value)


def test_what_a_run_leaves_aside_is_said():
  """Images 8 high halve to 4 and 2, of which a network of two levels has the first."""
  assert not list(remarks(build(read(BASE | SMALL | {'optimizer.warmup_steps': 10}), mixture())))
  (line,) = remarks(build(read(BASE | SMALL | {'optimizer.warmup_steps': 40}), mixture()))
  assert line == (
    'config.optimizer.warmup_steps: 40 is beyond the run of 10 steps, which ends at 0.25 of its '
    'learning rate'
  )
  experiment = build(read(BASE | UNET | {'model.attention_resolutions': (8, 4, 2)}))
  begun(experiment)
  assert list(remarks(experiment)) == [
    'config.model.attention_resolutions: no level has images 2 high; they are 8, 4 high'
  ]


def test_a_state_or_a_batch_beyond_the_memory_is_refused(monkeypatch):
  """A batch of 10^6 images of 2 numbers takes a million bytes of each of 8 devices."""
  experiment = build(read(BASE | SMALL), mixture())
  monkeypatch.setattr(checks, 'memory_limit', lambda: 900_000)
  begun(experiment)
  with pytest.raises(InputError, match=r'^config\.dataset\.batch_size: 1000000 examples take '):
    begun(build(read(BASE | SMALL | {'dataset.batch_size': 10**6}), mixture()))
  with pytest.raises(InputError, match=r'^config\.model: parameters, gradients, averages and '):
    begun(build(read(BASE | {'model.width': 256, 'model.depth': 1}), mixture()))


def works(experiment):
  """Whether a step changes the parameters to finite ones, of which samples are finite."""
  job = make_job(experiment)._replace(parallel=PARALLEL['jit'](jax.devices()[:1]))
  step, dataset = jax.jit(make_step(job)), experiment.dataset
  batch = {**dataset.read(dataset.train, np.arange(8)), 'index': np.arange(8)}
  state, metrics = step(new_state(job.task, job.config), job.frozen, batch)
  keys = example_keys(jax.random.key(0), jnp.arange(2))
  use = job.task.use.bind(state.params)
  images = use.generate(state.params, job.frozen, dataset.some_cond(2), keys)
  finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, images)))
  return finite and not metrics['skipped']


def ends(field, entry):
  """The least and the largest float that an argument of an entry may be."""
  if entry is None:
    return []
  function, supplied = TABLES.groups[entry[0]].table[entry[1]], TABLES.groups[entry[0]].supplied
  hint = keywords(function, supplied)[field.partition('.')[2]].annotation
  found = [float(end) for end in re.findall(r'-?\d[\d.e+-]*', describe(hint))]
  return found if float in alternatives(hint) else []


@pytest.mark.slow
@pytest.mark.parametrize(('field', 'entry'), list(places()), ids=str)
def test_what_is_not_refused_trains_and_samples(field, entry):
  """After a step of each run that is let through, parameters and samples are finite.

  The values are those of the sweep, and both ends of each float's bounds.
  """
  failed = []
  for value in (*VALUES, *ends(field, entry)):
    with contextlib.suppress(InputError):
      if not works(check(field, entry, value)):
        failed.append(value)
  assert failed == []
