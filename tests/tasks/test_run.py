import functools
import importlib
import json
import logging
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import data, load_run
from ddpm_jax.diffusion import make_denoiser
from ddpm_jax.errors import InputError
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training
from ddpm_jax.tasks.identity import identify
from ddpm_jax.tasks.ownership import refuse_foreign
from ddpm_jax.tasks.run import Run, check_teacher, read_record, write_record
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.state import new_state


def shifted(tree, by):
  return jax.tree.map(lambda leaf: leaf + by, tree)


def first_params(experiment, plugins=()):
  """What training begins with of another run; None where it begins from the seed."""
  given = make_job(experiment, plugins).given
  return None if given is None else given()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A run with checkpoints 10 and 20; its averages are its parameters plus the step."""
  workdir = tmp_path_factory.mktemp('run')
  experiment = build(tiny())
  write_record(workdir, experiment, {})
  state = new_state(make_task(experiment), experiment.config)
  with Checkpoints(workdir / 'checkpoints', keep=2) as checkpoints:
    for step in (10, 20):
      checkpoints.save(step, state.replace(ema=shifted(state.ema, step)), {})
  return workdir, state


def same(one, two):
  return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, two)))


@pytest.mark.parametrize(
  ('arguments', 'step', 'by'), [({}, 20, 20), ({'step': 10}, 10, 10), ({'ema': False}, 20, 0)]
)
def test_the_parameters_asked_for_are_loaded(saved, arguments, step, by):
  workdir, state = saved
  run = load_run(str(workdir), plugins=('tiny',), **arguments)
  assert run.step == step
  assert same(run.params, shifted(state.params['network'], by))


def test_a_run_is_loaded_without_its_data(saved, monkeypatch):
  monkeypatch.setitem(data.DATASETS, 'digits', lambda: pytest.fail('the data was opened'))
  run = load_run(saved[0], plugins=('tiny',))
  assert run.experiment.dataset.image_shape == (8, 8, 1)
  assert run.config == tiny()


@pytest.mark.parametrize('version', [1, 2])
def test_the_record_knows_which_classes_have_examples(tmp_path, version):
  image = np.zeros((6, 8, 8, 1), np.uint8)
  split = data.Arrays(image, {'label': np.array([0, 2, 2, 0, 2, 0])})
  dataset = data.Dataset('mine', split, split, (8, 8, 1), 17, data.labeled(4, split, split))
  write_record(tmp_path, build(tiny(), dataset), {})
  record = tmp_path / 'config.json'

  def known(**changed):
    tree = json.loads(record.read_text())
    if version == 1 and 'cond' in tree['data']:
      field = tree['data'].pop('cond')['label']
      tree['data'] |= {name: field[name] for name in ('num_classes', 'classes')}
    (tree['data'] if version == 1 else tree['data']['cond']['label']).update(changed)
    record.write_text(json.dumps(tree))
    return read_record(tmp_path)['data']['cond']['label'].classes

  assert known() == (0, 2)
  # Records of before have none: all of them.
  assert known(classes=None) == (0, 1, 2, 3)
  for wrong in ([4], [-1], ['a'], [0.5], 'all', {'0': 1}):
    words = r'config\.json: data\..*classes: .* not (all numbers|a list)'
    with pytest.raises(InputError, match=words):
      known(classes=wrong)


def test_the_denoiser_refuses_what_it_does_not_know(saved):
  run = load_run(saved[0], plugins=('tiny',))
  with pytest.raises(InputError, match=r'^cond: label 11 is no class: there are 0 to 9'):
    run.denoiser({'label': np.array([0, 11])})
  denoiser = run.denoiser({'label': np.array([0, 10])})
  with pytest.raises(IndexError, match='t = 21 is outside the chain 0 … 20'):
    denoiser(jnp.zeros((2, 8, 8, 1)), 21)
  assert np.isfinite(denoiser(jnp.zeros((2, 8, 8, 1)), 20).x0).all()


def test_the_denoiser_is_that_of_the_parameters(saved):
  run = load_run(saved[0], ema=False, plugins=('tiny',))
  cond = {'label': jnp.array([1, 2])}
  xt = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
  by_hand = make_denoiser(run.network, run.params, run.schedule, run.parameterization, cond)
  np.testing.assert_array_equal(run.denoiser(cond)(xt, 5).x0, by_hand(xt, 5).x0)


def test_a_sample_depends_on_its_own_key_and_label_alone(saved):
  run = load_run(saved[0], ema=False, plugins=('tiny',))
  draw = jax.jit(lambda cond, keys: run.use.generate(run.trained, run.frozen, cond, keys))
  keys = jax.random.split(jax.random.key(1), 4)
  label = jnp.array([3, 1, 4, 1])
  both = draw({'label': label}, keys)
  turned = draw({'label': label[::-1]}, keys[::-1])
  assert both.shape == (4, 8, 8, 1)
  np.testing.assert_allclose(both, turned[::-1], atol=1e-5)
  assert float(jnp.abs(both).max()) <= 1


def test_what_is_not_there_is_said(saved, tmp_path):
  workdir, _ = saved
  with pytest.raises(InputError, match='nowhere: not the folder of a run'):
    load_run(tmp_path / 'nowhere')
  with pytest.raises(InputError, match=r'no checkpoint of step 15; there are \[10, 20\]'):
    load_run(workdir, step=15, plugins=('tiny',))
  (tmp_path / 'config.json').write_text((workdir / 'config.json').read_text())
  with pytest.raises(InputError, match='holds no checkpoint yet'):
    load_run(tmp_path, plugins=('tiny',))


@pytest.fixture
def written(tmp_path, monkeypatch):
  """Rewrites `my_losses.py` beside a run's folder, and the run's record by the code there."""
  monkeypatch.syspath_prepend(tmp_path)

  def write(code, **settings):
    (tmp_path / 'my_losses.py').write_text(code)
    importlib.invalidate_caches()
    sys.modules.pop('my_losses', None)
    return tiny(**settings)

  yield write
  sys.modules.pop('my_losses', None)


def weight(factor, comment=''):
  return f'def weight(schedule, t):{comment}\n  return {factor}\n'


def test_a_run_goes_on_by_the_code_that_it_began_with(written, tmp_path):
  run, settings = tmp_path / 'run', {'loss.weight': 'my_losses:weight'}
  config = written(weight(1.0), **settings)
  write_record(run, build(config), {})
  (run / 'metrics.jsonl').write_text('{"step": 1}\n')  # something to lose
  refuse_foreign(run, identify(config))
  refuse_foreign(run, identify(written(weight(1.0, '  # of every time alike'), **settings)))
  config = written(weight(2.0), **settings)
  with pytest.raises(InputError) as error:
    refuse_foreign(run, identify(config))
  assert str(error.value) == (
    f'{run}: holds a run of other code: my_losses has changed since; restore it, or give another '
    '--workdir'
  )
  record = json.loads((run / 'config.json').read_text())
  assert set(record['provenance'].pop('plugins')) == {'my_losses', 'tiny'}
  (run / 'config.json').write_text(json.dumps(record))
  refuse_foreign(run, identify(config))  # Nothing is known of the code of a run from before.


def test_other_code_of_the_sampler_does_not_keep_a_run_from_going_on(written, tmp_path):
  sampler = 'from ddpm_jax.samplers import ddim as mine\n'
  settings = {'sampler.name': 'my_losses:mine', 'sampler.num_steps': 2}
  write_record(tmp_path / 'run', build(written(sampler, **settings)), {})
  (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 1}\n')
  refuse_foreign(tmp_path / 'run', identify(written(sampler + 'more = 1\n', **settings)))


def test_a_run_whose_code_has_changed_is_loaded_with_a_word(saved, written, tmp_path, caplog):
  shutil.copytree(saved[0], tmp_path / 'run')
  settings, plugins = {'loss.weight': 'my_losses:weight'}, ('tiny', 'my_losses')
  write_record(tmp_path / 'run', build(written(weight(1.0), **settings)), {})
  with caplog.at_level(logging.WARNING, logger='absl'):
    load_run(tmp_path / 'run', plugins=plugins)
    assert not caplog.records
    written(weight(2.0), **settings)
    load_run(tmp_path / 'run', plugins=plugins)
  (record,) = caplog.records
  assert record.getMessage().endswith('run: the code of my_losses has changed since training')


def spoil(workdir, group, **settings):
  """Puts other settings into the record of a run."""
  record = json.loads((workdir / 'config.json').read_text())
  record['config'][group] |= settings
  (workdir / 'config.json').write_text(json.dumps(record))


PAYLOAD = 'open({!r}, "w")\ndef weight(schedule, t):\n  return 1.0\n'


def test_what_a_folder_names_is_neither_imported_to_compare_nor_to_load_it(
  saved, written, tmp_path
):
  run, mark = tmp_path / 'run', tmp_path / 'MARK'
  shutil.copytree(saved[0], run)
  spoil(run, 'loss', weight='my_losses:weight')
  (tmp_path / 'my_losses.py').write_text(PAYLOAD.format(str(mark)))
  with pytest.raises(InputError, match='run: holds another experiment, .* in config.loss.weight;'):
    refuse_foreign(run, identify(tiny()))
  with pytest.raises(InputError, match=r"config.json: needs code .*'my_losses:weight' \(config.lo"):
    load_run(run, plugins=('tiny',))
  with pytest.raises(InputError, match='config.training.init_from: .*--plugins=my_losses'):
    first_params(build(tiny(**{'training.init_from': str(run)})))
  assert not mark.exists()
  own = build(tiny(**{'training.init_from': str(run)}))
  assert first_params(own, plugins=('my_losses',)) and mark.exists()


def test_a_teacher_may_name_what_its_student_names(saved, written, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(saved[0], run)
  spoil(run, 'loss', weight='my_losses:weight')
  settings = {'training.init_from': str(run), 'loss.timestep_distribution': 'my_losses:law'}
  law = 'from ddpm_jax.losses.timestep_distributions import uniform as law\n'
  assert first_params(build(written(weight(1.0) + law, **settings)))


def test_a_later_format_is_named_and_none_is_of_today(saved, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(saved[0], run)
  record = json.loads((run / 'config.json').read_text())
  for version, message in ((3, 'written by a later version'), ('1', 'cannot be read')):
    (run / 'config.json').write_text(json.dumps(record | {'format': version}))
    with pytest.raises(InputError, match=f'config.json: .*{message}'):
      load_run(run, plugins=('tiny',))
  assert record.pop('format') == 2
  (run / 'config.json').write_text(json.dumps(record))
  assert load_run(run, plugins=('tiny',)).step == 20


DEEP = '[' * 100_000 + ']' * 100_000
DAMAGE = {
  'nested too deep': lambda text: text.replace('"config":', f'"a": {DEEP}, "config":'),
  'a list': lambda text: '[]',
  'a number': lambda text: '3',
  'not UTF-8': lambda text: text.encode().replace(b'config', b'c\xffnfig', 1),
  'no config': lambda text: '{"config": 3, "data": {}}',
  'no data': lambda text: text.replace('"data"', '"date"'),
  'data of another type': lambda text: text.replace('"data": {', '"data": 3, "date": {'),
  'a shape that is a number': lambda text: with_data(text, 'image_shape', 8),
  'a shape of strings': lambda text: with_data(text, 'image_shape', ['8', '8', '1']),
  'a shape of two': lambda text: with_data(text, 'image_shape', [8, 8]),
  'no levels': lambda text: with_data(text, 'num_levels', 0),
  'levels in words': lambda text: with_data(text, 'num_levels', 'many'),
  'levels beyond any': lambda text: with_data(text, 'num_levels', 10**30),
  'a side beyond any': lambda text: with_data(text, 'image_shape', [10**30, 1, 1]),
  'classes below zero': lambda text: with_label(text, 'num_classes', -1),
  'a condition that is a list': lambda text: with_data(text, 'cond', ['label']),
  'a label that is a number': lambda text: with_data(text, 'cond', {'label': 10}),
  'a label with parts of its own': lambda text: with_label(text, 'size', 3),
  'a label of a shape below zero': lambda text: with_label(text, 'shape', [-1]),
  'a label of no known type': lambda text: with_label(text, 'dtype', 'object'),
  'a null in words': lambda text: with_label(text, 'null', 'none'),
  'a name that is none': lambda text: with_data(text, 'name', [1]),
}


def with_data(text, name, value):
  record = json.loads(text)
  record['data'][name] = value
  return json.dumps(record)


def with_label(text, name, value):
  record = json.loads(text)
  record['data']['cond']['label'][name] = value
  return json.dumps(record)


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_record_is_named_in_one_line(saved, tmp_path, damage):
  found = DAMAGE[damage]((saved[0] / 'config.json').read_text())
  (tmp_path / 'config.json').write_bytes(found if isinstance(found, bytes) else found.encode())
  with pytest.raises(InputError) as caught:
    read_record(tmp_path)
  assert str(caught.value).startswith(f'{tmp_path}/config.json: ')
  assert '\n' not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize('args', [5, [1], 'x', {'deep': 700}])
def test_arguments_of_another_form_are_named_in_one_line(saved, tmp_path, args):
  record = json.loads((saved[0] / 'config.json').read_text())
  if isinstance(args, dict):  # json reads what is nested so deep, and Python walks no such tree
    args = functools.reduce(lambda tree, _: {'a': tree}, range(args['deep']), {})
  record['config']['model']['args'] = args
  (tmp_path / 'config.json').write_text(json.dumps(record))
  with pytest.raises(InputError, match=f'^{tmp_path}/config.json: ') as caught:
    load_run(tmp_path, plugins=('tiny',))
  assert '\n' not in str(caught.value)


def test_init_from_takes_the_averages_of_another_run(saved):
  workdir, state = saved
  experiment = build(tiny(**{'training.init_from': str(workdir), 'loss.weight': 'output'}))
  params = first_params(experiment)
  assert same(params['network'], shifted(state.params['network'], 20))
  fresh = new_state(make_task(experiment), experiment.config, params)
  assert int(fresh.step) == 0
  assert same(fresh.params, {**params, 'loss': {}})
  assert same(fresh.ema, {'0.9': fresh.params})


def test_init_from_refuses_another_network_and_a_missing_run(saved, tmp_path):
  workdir, _ = saved
  other = build(tiny(**{'training.init_from': str(workdir), 'model.args.width': 8}))
  with pytest.raises(InputError, match='config.training.init_from: .* other names or shapes'):
    first_params(other)
  missing = build(tiny(**{'training.init_from': str(tmp_path)}))
  with pytest.raises(InputError, match='config.training.init_from: .* not the folder of a run'):
    first_params(missing)


def test_without_init_from_training_begins_from_the_seed():
  assert first_params(build(tiny())) is None
  one, two, three = (make_task(build(tiny(seed=seed))).init(None)[0] for seed in (0, 0, 1))
  assert same(one, two) and not same(one, three)


@pytest.mark.parametrize(
  ('settings', 'teacher', 'field'),
  [
    ({'loss.name': 'simple'}, {'schedule.name': 'linear'}, None),
    ({'loss.name': 'progressive'}, {}, None),
    ({'loss.name': 'progressive'}, {'schedule.name': 'linear'}, 'schedule'),
    ({'loss.name': 'progressive'}, {'schedule.num_steps': 30}, 'schedule'),
    ({'loss.name': 'progressive'}, {'parameterization.name': 'v'}, 'parameterization'),
    ({'loss.name': 'consistency_distillation'}, {'parameterization.name': 'edm'}, None),
    ({'loss.name': 'consistency_distillation'}, {}, 'parameterization'),
  ],
)
def test_a_teacher_is_on_the_same_path_and_says_what_the_loss_reads(settings, teacher, field):
  config = tiny(**settings, **{'training.init_from': 'there'})
  if field is None:
    return check_teacher(config, tiny(**teacher))
  with pytest.raises(InputError, match=rf'config\.training\.init_from: .*config\.{field} of'):
    check_teacher(config, tiny(**teacher))


GUIDED = {
  'dataset.name': 'mixture',
  'model.name': 'mlp',
  'model.width': 8,
  'model.label_dropout': 0.0,
  'sampler.guidance': 2.0,
}


@pytest.mark.parametrize('guidance', [0.0, 2.0])
def test_guidance_by_a_null_label_that_is_never_trained_is_refused(guidance):
  settings = GUIDED | {'sampler.guidance': guidance}
  experiment = build(tiny(**settings))
  task = make_task(experiment)
  trained, cond = task.init(None)[0], {'label': jnp.zeros(1, jnp.int32)}
  run = Run(experiment, task, task.use, 0, trained, {})
  keys = jax.random.split(jax.random.key(0), 1)
  for use in (
    lambda: check_training(experiment, make_job(experiment)),
    lambda: run.rebuild(experiment.config),
    lambda: run.use.generate(trained, {}, cond, keys),
  ):
    with pytest.raises(
      InputError, match=r'^config\.sampler\.guidance: .*config\.model\.label_dropout=0'
    ):
      use()
  free = {'sampler.guidance': 1.0, 'model.label_dropout': 0.1, 'dataset.conditional': False}
  for name, value in free.items():
    other = build(tiny(**settings | {name: value}))
    check_training(other, make_job(other))
