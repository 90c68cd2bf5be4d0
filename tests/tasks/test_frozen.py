"""What a run reads and does not train: its record names a teacher, and its state has none."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import load_run
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.train import make_job, train
from ddpm_jax.training.advance import make_step
from ddpm_jax.training.checkpoint import Checkpoints, record_of
from ddpm_jax.training.state import new_state
from ddpm_jax.training.task import digest, refuse_changed

SHORT = {'evaluation.every_steps': 100, 'logging.preview_every_steps': 100}
FEW = {'training.num_steps': 4, 'checkpoint.every_steps': 2, **SHORT}


def student(teacher, **settings):
  """A config that learns two steps of the sampler from four of the teacher's."""
  taught = {'training.init_from': str(teacher), 'loss.name': 'progressive', 'loss.num_steps': 2}
  return tiny(**FEW | taught | settings)


@pytest.fixture(scope='module')
def distilled(tmp_path_factory):
  """The folders of a teacher and of its student."""
  folder = tmp_path_factory.mktemp('distilled')
  teacher, taught = folder / 'teacher', folder / 'student'
  train(tiny(**FEW), teacher)
  train(student(teacher), taught, plugins=('tiny',))
  return teacher, taught


def copied(distilled, folder):
  """The student in a folder of its own; its teacher stays where the config says."""
  return distilled[0], shutil.copytree(distilled[1], folder / 'student')


def test_both_records_name_the_teacher_and_the_hash_of_its_parameters(distilled):
  teacher, taught = distilled
  named = json.loads((taught / 'config.json').read_text())['frozen']
  params = load_run(teacher, plugins=('tiny',)).params
  assert named == {'teacher': {'source': str(teacher), 'xxh128': digest(params)}}
  for step in (2, 4):
    assert record_of(taught / 'checkpoints', step)['frozen'] == named
  # A codec without parameters has nothing to be named for.
  assert json.loads((teacher / 'config.json').read_text())['frozen'] == {}
  assert record_of(teacher / 'checkpoints', 4)['frozen'] == {}


def test_a_hash_is_that_of_names_types_shapes_and_every_value():
  tree = {'a': np.arange(6, dtype=np.float32), 'b': {'c': np.ones(2, np.float32)}}
  same = {'b': {'c': jnp.ones(2)}, 'a': jnp.arange(6, dtype=jnp.float32)}
  assert digest(same) == digest(tree)
  others = [
    {**tree, 'a': tree['a'].reshape(2, 3)},
    {**tree, 'a': tree['a'].view(np.int32)},
    {**tree, 'a': np.nextafter(tree['a'], 9, dtype=np.float32)},
    {**tree, 'a': tree['a'][::-1]},
    {'d': tree['a'], 'b': tree['b']},
    {'a': tree['a']},
  ]
  assert len({digest(other) for other in [tree, *others]}) == 7


def test_a_student_goes_on_with_its_own_teacher_and_is_refused_another(distilled, tmp_path):
  teacher, taught = copied(distilled, tmp_path)
  before = record_of(taught / 'checkpoints', 4)['frozen']
  train(student(teacher, **{'training.num_steps': 6}), taught, plugins=('tiny',))
  assert record_of(taught / 'checkpoints', 6)['frozen'] == before
  kept = shutil.copytree(teacher, tmp_path / 'kept')
  train(tiny(**FEW | {'training.num_steps': 6}), teacher)
  try:
    with pytest.raises(InputError) as caught:
      train(student(teacher, **{'training.num_steps': 8}), taught, plugins=('tiny',))
    assert str(caught.value) == (
      f'{teacher}: the teacher that the run was trained with has changed since; restore it, or '
      'give another --workdir'
    )
    assert not (taught / 'checkpoints' / '8').exists()
  finally:
    shutil.rmtree(teacher)
    shutil.copytree(kept, teacher)
  train(student(teacher, **{'training.num_steps': 8}), taught, plugins=('tiny',))
  assert record_of(taught / 'checkpoints', 8)['frozen'] == before


def test_a_record_without_a_teacher_is_one_of_before_or_of_another():
  now = {'teacher': {'source': '/there', 'xxh128': 'ab'}}
  refuse_changed(None, now)
  refuse_changed(dict(now), now)
  for before in ({}, {'teacher': {'source': '/there', 'xxh128': 'ac'}}):
    with pytest.raises(InputError, match='^/there: the teacher that the run was trained with has'):
      refuse_changed(before, now)


def leaves(tree):
  found = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def test_a_teacher_is_neither_averaged_nor_in_a_checkpoint(distilled):
  """A checkpoint of a student has the same arrays as that of its teacher, and none is frozen."""
  teacher, taught = distilled
  folders = [folder / 'checkpoints' for folder in (teacher, taught)]
  jobs = [make_job(build(config)) for config in (tiny(**FEW), student(teacher))]
  states = []
  for folder, job in zip(folders, jobs, strict=True):
    with Checkpoints(folder) as checkpoints:
      # Both are read as a state of the run without a teacher: names and shapes must be the same.
      states.append(leaves(checkpoints.restore(4, jobs[0].shapes)[0]))
    assert {name: leaf.shape for name, leaf in leaves(job.shapes).items()} == {
      name: leaf.shape for name, leaf in leaves(jobs[0].shapes).items()
    }
  assert states[0].keys() == states[1].keys()
  frozen = [leaf for leaf in jax.tree.leaves(jobs[1].frozen) if leaf.ndim == 2]
  assert frozen
  for leaf in states[1].values():
    assert not any(np.array_equal(leaf, array) for array in frozen)


def test_what_training_begins_with_is_a_copy_of_the_teacher(distilled):
  """A step donates its state, and the teacher must outlive that."""
  job = make_job(build(student(distilled[0])))
  first, teacher = leaves(job.given()['network']), leaves(job.frozen['teacher'])
  assert first.keys() == teacher.keys()
  for name, leaf in first.items():
    np.testing.assert_array_equal(leaf, teacher[name])
    assert not np.shares_memory(np.asarray(leaf), np.asarray(teacher[name])), name


def test_another_teacher_is_another_loss_of_the_same_program(distilled, caplog):
  """The compiled step's loss is that of the task's own loss, called with the same teacher."""
  job = make_job(build(student(distilled[0])))
  dataset, parallel, found = job.dataset, job.parallel, []
  size = job.config.dataset.batch_size
  batch = {**dataset.read(dataset.train, np.arange(size)), 'index': np.arange(size, dtype=np.int32)}
  step, key = parallel.compile(make_step(job)), step_key(job.config.seed, 0)
  keys = Keys(key, example_keys(key, batch['index']))
  for shift in (0.0, 0.1, -0.2):
    frozen = jax.tree.map(lambda leaf, by=shift: np.asarray(leaf) + np.float32(by), job.frozen)
    state = new_state(job.task, job.config, job.given())
    expected = job.task.loss(state.params, state.loss_state, frozen, batch, keys, lambda x: x)
    arguments = [parallel.place_state(state), parallel.place_state(frozen)]
    rows = parallel.place_batch(batch)
    caplog.clear()
    with jax.log_compiles():
      _, metrics = step(*arguments, rows)
    compilations = sum('XLA compilation of' in line for line in caplog.messages)
    found.append((float(metrics['loss']), compilations))
    np.testing.assert_allclose(found[-1][0], np.mean(expected.values), rtol=1e-4)
  losses, compiled = zip(*found, strict=True)
  assert len({round(loss, 3) for loss in losses}) == 3
  assert compiled[0] > 0 and compiled[1:] == (0, 0)
