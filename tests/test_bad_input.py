"""Whatever is written where a setting stands gives a run that works, or one line that names it.

Every setting, and every argument of every entry of every table, is given zero, a negative, a huge
number, a wrong type and nothing.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.bounds import describe
from ddpm_jax.config import CLASSES, all_tables, base_config, from_config_dict, settings
from ddpm_jax.config.signatures import keywords
from ddpm_jax.data import DATASETS
from ddpm_jax.errors import InputError
from ddpm_jax.keys import example_keys
from ddpm_jax.training.checks import check_training
from ddpm_jax.training.experiment import batch_and_keys, build, generate, make_step, new_state
from ddpm_jax.training.parallel import PARALLEL

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
CONSISTENT = {'parameterization.name': 'consistency', 'schedule.name': 'edm'}
UNREAD = {'schedule.name': None, 'parameterization.name': None, 'sampler.name': None}
# What else an entry needs, or a factor.
COMPANY = {
  ('model', 'unet'): {
    'model.width': None,
    'model.depth': None,
    'model.channels': 4,
    'model.multipliers': (1,),
    'model.num_res_blocks': 1,
  },
  ('model', 'autoencoder'): UNREAD
  | {'model.width': None, 'model.depth': None, 'loss.name': 'elbo'},
  ('parameterization', 'consistency'): CONSISTENT,
  ('loss', 'hybrid'): VARIANCE,
  ('loss', 'elbo'): {'model.name': 'autoencoder', 'model.width': None, 'model.depth': None}
  | UNREAD,
  ('loss', 'consistency_training'): CONSISTENT,
  ('loss', 'consistency_distillation'): CONSISTENT | {'training.init_from': 'elsewhere'},
  ('loss', 'progressive'): {'training.init_from': 'elsewhere'},
}


def places():
  """(field, entry's group and name or None) of every setting and every entry's arguments."""
  yield 'seed', None
  for group, cls in CLASSES.items():
    for name in settings(cls):
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


def check(field, entry, value, data=mixture):
  """The experiment that a value of a field gives, up to the compiler; InputError, or it works."""
  changes = BASE | SMALL
  if entry:
    changes |= {f'{entry[0]}.name': entry[1]} | COMPANY.get(entry, {})
  if entry and entry[0] == 'dataset':
    changes |= {'dataset.num_train': None, 'dataset.num_test': None}
  config = read(changes | {field: value})
  experiment = build(config, None if field.startswith('dataset.') and entry else data())
  check_training(experiment)
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


@pytest.mark.parametrize(('field', 'entry'), places(), ids=str)
def test_a_setting_works_or_is_refused_in_one_line(field, entry):
  for value in VALUES:
    line = complaint_of(field, entry, value)
    if line is not None:
      assert f'config.{field}' in line, (value, line)
      assert '\n' not in line and ' object at 0x' not in line, (value, line)
