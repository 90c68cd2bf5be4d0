import dataclasses
import logging

import jax
import numpy as np
import pytest

from ddpm_jax.condition import Field, class_field, labels
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.sampling import (
  Samples,
  cond_of,
  draw_samples,
  load_samples,
  samples_of,
  save_samples,
)
from ddpm_jax.tasks.building import build

RECORD = {'step': 7, 'seed': 0, 'evaluations': 3, 'sampler': {'guidance': 1.0}}


def with_sampler(experiment, **changes):
  sampler = dataclasses.replace(experiment.config.sampler, **changes)
  return dataclasses.replace(
    experiment, config=dataclasses.replace(experiment.config, sampler=sampler)
  )


def label(values):
  return {'label': np.asarray(values, np.int32)}


def test_a_sample_depends_on_its_number_and_not_on_its_batch(as_run, experiment, params):
  run = as_run(experiment, params)

  def draw(num, size):
    cond = label(np.arange(num) % 10)
    return draw_samples(run, num, cond, seed=3, batch_size=size).astype(int)

  whole = draw(24, 24)
  assert whole.std() > 10, 'samples differ from each other'
  # To rounding: a value just at a half may fall to either side.
  assert np.abs(draw(24, 8) - whole).max() <= 1
  assert np.abs(draw(5, 24) - whole[:5]).max() <= 1


def test_a_sampler_that_blows_up_is_told_of_with_its_samples(as_run, experiment, params, caplog):
  bad = build(with_sampler(experiment, name='heun', grid='linspace').config, experiment.dataset)
  with caplog.at_level(logging.WARNING, logger='absl'):
    draw_samples(as_run(bad, params), 2, label([0, 0]), seed=0, batch_size=2)
  (line,) = [message for message in caplog.messages if 'blows up' in message]
  assert line.startswith("config.sampler: 'heun' over 'linspace'")
  assert "the grid 'leading'" in line


def test_the_seed_the_label_and_the_guidance_matter(as_run, experiment, params):
  def draw(experiment, asked, seed):
    run = as_run(experiment, params)
    return draw_samples(run, 8, label([asked] * 8), seed=seed, batch_size=8)

  base = draw(experiment, 0, 0)
  assert (draw(experiment, 0, 1) != base).mean() > 0.5
  assert (draw(experiment, 1, 0) != base).any()
  assert (draw(with_sampler(experiment, guidance=1.0), 0, 0) != base).any()


def test_evaluations_are_counted_where_the_network_is_called(as_run, experiment, params):
  """A network that counts its rows at run time."""
  rows = []
  network = experiment.network

  def counting(params, x, noise_label, cond):
    jax.debug.callback(lambda: rows.append(x.shape[0]))
    return network(params, x, noise_label, cond)

  for guidance in (1.0, 2.0):
    rows.clear()
    counted = dataclasses.replace(with_sampler(experiment, guidance=guidance), network=counting)
    run = as_run(counted, params)
    draw_samples(run, 8, label([0] * 8), seed=0, batch_size=8)
    jax.effects_barrier()
    assert sum(rows) == 8 * run.use.evaluations()


@pytest.mark.parametrize('labels', [np.arange(3, dtype=np.int32), None])
def test_the_file_follows_adm(tmp_path, labels):
  images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 1), np.uint8)
  path = tmp_path / 'samples.npz'
  save_samples(path, Samples(images, labels, RECORD))
  assert list(tmp_path.iterdir()) == [path]
  with np.load(path) as file:
    assert file['arr_0'].dtype == np.uint8
    np.testing.assert_array_equal(file['arr_0'], images)
    assert ('arr_1' in file) == (labels is not None)
  read = load_samples(path)
  assert read.record == RECORD and read.free and str(read) == '3 free samples'
  np.testing.assert_array_equal(read.labels, labels)


IMAGES = np.zeros((3, 4, 4, 1), np.uint8)
MASK = np.array([[True, False], [True, True], [False, False]])
CAPTION = np.arange(6, dtype=np.float32).reshape(3, 2)
# Specifications, a condition of three examples, and the arrays of the file that hold it.
CONDITIONS = {
  'a label': (labels(10), {'label': np.array([1, 0, 9], np.int32)}, {'arr_1': 'label'}),
  'a class by another name': (
    {'digit': class_field(10)},
    {'digit': np.array([1, 0, 9], np.int32)},
    {'arr_1': 'digit'},
  ),
  'a label and others': (
    labels(10) | {'text': Field((2,)), 'mask': Field((2,), 'bool')},
    {'label': np.array([1, 0, 9], np.int32), 'text': CAPTION, 'mask': MASK},
    {'arr_1': 'label', 'cond_text': 'text', 'cond_mask': 'mask'},
  ),
  'no class': ({'text': Field((2,))}, {'text': CAPTION}, {'cond_text': 'text'}),
  'two classes': (
    {'a': class_field(3), 'b': class_field(4)},
    {'a': np.array([0, 1, 2], np.int32), 'b': np.array([3, 3, 0], np.int32)},
    {'cond_a': 'a', 'cond_b': 'b'},
  ),
  'nothing': ({}, {}, {}),
}


@pytest.mark.parametrize('case', CONDITIONS)
def test_conditions_come_back_from_the_file(tmp_path, case):
  """The one class, if any, is arr_1; every other entry is cond_NAME; none is there twice."""
  spec, cond, arrays = CONDITIONS[case]
  path = tmp_path / 'samples.npz'
  save_samples(path, samples_of(IMAGES, cond, spec, RECORD))
  with np.load(path) as file:
    assert set(file.files) == {'arr_0', 'record', *arrays}
    for array, name in arrays.items():
      np.testing.assert_array_equal(file[array], cond[name])
  read = cond_of(load_samples(path), spec)
  assert set(read) == set(cond)
  for name, values in cond.items():
    assert read[name].dtype == values.dtype
    np.testing.assert_array_equal(read[name], values)


@pytest.mark.parametrize(
  ('samples', 'word'),
  [
    (Samples(IMAGES.astype(float), None, RECORD), 'arr_0 is float64'),
    (Samples(IMAGES[:0], None, RECORD), 'arr_0 is uint8 .0, 4'),
    (Samples(IMAGES, np.zeros(2, int), RECORD), 'arr_1 is int64 .2,.*not 3 integers'),
    (Samples(IMAGES, np.zeros(3), RECORD), 'arr_1 is float64'),
    (Samples(IMAGES, None, RECORD, {'text': CAPTION[:2]}), 'cond_text has shape .2, 2.*3 samples'),
    (Samples(IMAGES, None, RECORD, {'text': np.float32(1)}), 'cond_text has shape'),
    (Samples(IMAGES, None, {}), "no 'step'"),
    (Samples(IMAGES, None, []), 'something else'),
    (Samples(IMAGES, None, RECORD | {'kind': 'painted'}), 'something else'),
    (Samples(IMAGES, None, RECORD | {'sampler': 3}), "no 'sampler'"),
    (Samples(IMAGES, None, RECORD | {'sampler': {}}), "no 'guidance'"),
  ],
)
def test_a_file_of_something_else_is_refused(tmp_path, samples, word):
  path = tmp_path / 'samples.npz'
  save_samples(path, samples)
  with pytest.raises(InputError, match=rf'samples\.npz: cannot be read .*{word}.*draw it anew by'):
    load_samples(path)


def test_a_record_of_earlier_versions_is_read(tmp_path):
  sampler = {'name': 'ddim', 'arguments': {'eta': 0.5}, 'group': 'sampler', 'guidance': 1.0}
  save_samples(tmp_path / 'a.npz', Samples(IMAGES, None, RECORD | {'sampler': sampler}))
  read = load_samples(tmp_path / 'a.npz').record['sampler']
  assert read == {'name': 'ddim', 'eta': 0.5, 'guidance': 1.0}


@pytest.mark.parametrize('kind', [[3], {}, None, 'sketch'])
def test_an_unknown_kind_is_refused(tmp_path, kind):
  save_samples(tmp_path / 'a.npz', Samples(IMAGES, None, RECORD | {'kind': kind}))
  with pytest.raises(InputError, match='its record is of something else'):
    load_samples(tmp_path / 'a.npz')


def test_samples_around_a_picture_are_not_free():
  record = RECORD | {'kind': 'inpainting', 'init_image': {'path': 'a.png', 'sha256': '0'}}
  samples = Samples(IMAGES, None, record)
  assert not samples.free and str(samples) == '3 samples drawn around a picture'


@pytest.mark.parametrize('content', [None, b'', b'not an archive'])
def test_a_bad_file_is_told_with_the_command_that_makes_it(tmp_path, content):
  path = tmp_path / 'samples.npz'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=r'samples\.npz.*python -m experiments\.sample --workdir='):
    load_samples(path)
