"""Conditions of any form, from the data to the samples, by runs that are trained for six steps."""

import dataclasses
import functools
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import condition_toys as toys
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from condition_toys import toy
from etils import epath
from flax import linen as nn
from PIL import Image

from ddpm_jax import load_run, models
from ddpm_jax.codec import to_uint8
from ddpm_jax.diffusion import PARAMETERIZATIONS
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.sampling import (
  cond_of,
  draw_samples,
  load_samples,
  samples_of,
  save_samples,
)
from ddpm_jax.evaluation.split_bits import split_bits
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.samplers import SAMPLERS, autoguidance, prior_sample, sample, time_grid
from ddpm_jax.tasks.building import build, make_dataset
from ddpm_jax.tasks.drawing import Guidance, guided
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job, train
from ddpm_jax.training.advance import make_step
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.loop import read_stream
from ddpm_jax.training.metrics import read
from ddpm_jax.training.parallel import all_devices, make_parallel
from ddpm_jax.training.state import new_state

ROOT = pathlib.Path(__file__).parents[2]


@functools.cache
def config_of(name):
  return toy(name, toys.TOYS[name])


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """name -> the folder of its run, trained when first asked for."""

  @functools.cache
  def trained(name):
    workdir = tmp_path_factory.mktemp(name) / 'run'
    train(config_of(name), workdir)
    return workdir

  return trained


@pytest.fixture(scope='module')
def loaded(folder):
  """name -> its run."""
  return functools.cache(lambda name: load_run(folder(name), plugins=('condition_toys',)))


@pytest.fixture(params=toys.TOYS)
def name(request):
  return request.param


def dataset_of(name):
  return make_dataset(config_of(name))


def held_out(name, count=16):
  """Held-out examples' conditions."""
  dataset = dataset_of(name)
  return dataset.read(dataset.test, np.arange(count))['cond']


def equal(one, other):
  """The same arrays of the same types, bit for bit."""
  assert jax.tree.structure(one) == jax.tree.structure(other)
  for path, leaf in jax.tree.leaves_with_path(one):
    found = dict(jax.tree.leaves_with_path(other))[path]
    assert leaf.dtype == found.dtype, path
    np.testing.assert_array_equal(leaf, found, err_msg=jax.tree_util.keystr(path))


def test_a_run_is_shown_and_judged(folder, name):
  workdir = folder(name)
  assert np.asarray(Image.open(workdir / 'samples' / 'step_0000006.png')).std() > 0
  rows = read(workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows if 'loss' in row] == [2, 4, 6]
  assert [row['step'] for row in rows if 'heldout/eps_mse' in row] == [3, 6]
  assert all(np.isfinite(value) for row in rows for value in row.values())


def state_in(workdir, config):
  task = make_task(build(config))
  like = jax.eval_shape(lambda: new_state(task, config))
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    return checkpoints.restore(checkpoints.latest_step(), like)


def test_a_run_that_was_killed_ends_as_one_that_was_not(folder, name, tmp_path):
  workdir = shutil.copytree(folder(name), tmp_path / 'run')
  shutil.rmtree(workdir / 'checkpoints' / '6')
  train(config_of(name), workdir)
  state, record = state_in(workdir, config_of(name))
  whole, whole_record = state_in(folder(name), config_of(name))
  equal(state, whole)
  assert record == whole_record and int(state.step) == 6
  assert (workdir / 'metrics.jsonl').read_bytes() == (folder(name) / 'metrics.jsonl').read_bytes()


def test_devices_change_nothing(name):
  job, ends = make_job(build(config_of(name))), []
  for count in (1, 2):
    parallel = make_parallel('pmap', all_devices()[:count])
    step = parallel.compile(make_step(job._replace(parallel=parallel)))
    state, stream = parallel.create(lambda: new_state(job.task, job.config)), read_stream(job)
    frozen = parallel.place_state(job.frozen)
    for _ in range(2):
      state, metrics = step(state, frozen, parallel.place_batch(next(stream)))
    ends.append([float(metrics['loss']), float(metrics['grad_norm'])])
    ends[-1] += [np.asarray(leaf) for leaf in jax.tree.leaves(parallel.on_one_device(state.params))]
  for one, two in zip(*ends, strict=True):
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)


# What comes to the network, and how.


def weights(spec):
  """A matrix (size, 16) for each entry: few conditions have the same products with them."""
  rng = np.random.default_rng(5)
  return {
    entry: rng.standard_normal((int(np.prod(field.shape)), 16)).astype(np.float32)
    for entry, field in sorted(spec.items())
  }


def echo(cond, by):
  """Pictures in (-1, 1) that tell conditions apart."""
  products = (
    jnp.asarray(cond[entry], jnp.float32).reshape(-1, len(rows)) @ rows
    for entry, rows in by.items()
  )
  return jnp.tanh(sum(products) / 4).reshape(-1, 4, 4, 1)


def echoing(run, record=None):
  """The run with a network whose x0 is an echo of its condition, and the echo's matrices."""
  by = weights(run.experiment.dataset.cond)

  def network(params, x, noise_label, cond, index=None, keys=None):
    if record is not None:
      record.append(cond)
    return echo(cond, by)

  built = build(run.config, run.experiment.dataset)
  experiment = dataclasses.replace(
    built, network=network, parameterization=PARAMETERIZATIONS['x0']()
  )
  task = make_task(experiment)
  return dataclasses.replace(run, experiment=experiment, task=task, use=task.use), by


def test_each_sample_is_told_its_own_condition(loaded, name):
  """12 samples in batches of 8 over 8 devices, the second of which is padded."""
  run, by = echoing(loaded(name))
  cond = held_out(name, 12)
  images = draw_samples(run, 12, cond, seed=3, batch_size=8, guidance=Guidance(scale=1.0))
  expected = np.asarray(to_uint8(echo(cond, by)))
  assert np.abs(images.astype(int) - expected).max() <= 1
  assert len({image.tobytes() for image in images}) == 12


def test_the_null_of_each_sample_is_its_own(loaded, name):
  """Guidance by 0 shows the null alone, by 1 the condition; a wrong pairing would show."""
  run, by = echoing(loaded(name))
  cond, null = held_out(name, 12), jax.tree.map(lambda leaf: leaf[::-1], held_out(name, 12))
  draw = functools.partial(draw_samples, run, 12, cond, seed=3, batch_size=8)
  images = draw(guidance=Guidance(null, 0.0))
  assert np.abs(images.astype(int) - np.asarray(to_uint8(echo(null, by)))).max() <= 1
  # The last step is to x0 itself, which is clipped.
  images = draw(guidance=Guidance(null, 1.5))
  mixed = echo(null, by) + 1.5 * (echo(cond, by) - echo(null, by))
  assert np.abs(images.astype(int) - np.asarray(to_uint8(mixed))).max() <= 1


def test_conditions_reach_the_loss_with_their_pictures_bit_for_bit(loaded, name):
  """Pictures are all different, so that one tells which condition belongs to it."""
  told = []
  run, _ = echoing(loaded(name), told)
  dataset = dataset_of(name)
  job = make_job(build(config_of(name)))._replace(task=run.task)
  stream = read_stream(job)
  next(stream)
  batch = next(stream)
  key = step_key(0, 1)
  keys = Keys(key, example_keys(key, jnp.asarray(batch['index'])))
  job.task.loss(run.trained, (), job.frozen, batch, keys, lambda values: values)
  (cond,) = told
  every = dataset.read(dataset.train, np.arange(64))
  rows = {picture.tobytes(): row for row, picture in enumerate(every['x'])}
  assert len(rows) == 64
  where = np.array([rows[picture.tobytes()] for picture in batch['x']])
  equal(cond, jax.tree.map(lambda leaf: leaf[where], every['cond']))


@pytest.mark.parametrize('setting', [{'dataset.flip': True}, {'dataset.augment': 0.5}])
def test_images_are_not_moved_away_from_those_in_their_conditions(setting):
  told = {'model.args': {'augmented': True}} if 'dataset.augment' in setting else {}
  with pytest.raises(InputError, match=rf"config\.{next(iter(setting))}: .* not the 'picture'"):
    build(toy('inpainting', 'Inpainting', **setting, **told))
  build(toy('tokens', 'Tokens', **{'dataset.flip': True}))


# Guidance, by trained networks.

T = 12


def noisy(count):
  return jax.random.normal(jax.random.key(1), (count, 4, 4, 1))


def x0(denoiser, count):
  return np.asarray(denoiser(noisy(count), T).x0)


def led(run, cond, null, scale):
  """x0 under guidance."""
  count = len(jax.tree.leaves(cond)[0])
  unlimited = dataclasses.replace(run.config.sampler, threshold='none')
  experiment = run.rebuild(dataclasses.replace(run.config, sampler=unlimited)).experiment
  denoiser = guided(experiment, run.params, run.schedule, cond, count, Guidance(null, scale))
  return x0(denoiser, count)


def null_of(run, count):
  return models.null_cond(run.experiment.module, count)


def test_guidance_is_the_formula_of_separate_denoisers(loaded, name):
  run, cond = loaded(name), held_out(name)
  negative = jax.tree.map(lambda leaf: leaf[::-1], cond)
  said, nothing, other = (x0(run.denoiser(each), 16) for each in (cond, null_of(run, 16), negative))
  assert np.abs(said - nothing).max() > 1e-3 and np.abs(said - other).max() > 1e-3
  np.testing.assert_allclose(led(run, cond, None, 3.0), nothing + 3 * (said - nothing), atol=1e-5)
  np.testing.assert_allclose(led(run, cond, negative, 3.0), other + 3 * (said - other), atol=1e-5)


def test_scale_zero_is_the_null_alone_and_one_the_condition(loaded, name):
  run, cond = loaded(name), held_out(name)
  negative = jax.tree.map(lambda leaf: leaf[::-1], cond)
  for null, told in ((None, null_of(run, 16)), (negative, negative)):
    np.testing.assert_array_equal(led(run, cond, null, 0.0), x0(run.denoiser(told), 16))
    np.testing.assert_array_equal(led(run, cond, null, 1.0), x0(run.denoiser(cond), 16))


def test_a_picture_and_a_class_have_scales_of_their_own(loaded):
  run, cond = loaded('inpainting'), held_out('inpainting')
  none = null_of(run, 16)
  picture_alone = {**cond, 'kind': none['kind']}
  both, picture, nothing = (x0(run.denoiser(each), 16) for each in (cond, picture_alone, none))
  found = led(run, cond, (picture_alone, none), (4.0, 1.5))
  expected = nothing + 1.5 * (picture - nothing) + 4.0 * (both - picture)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  np.testing.assert_array_equal(led(run, cond, (picture_alone, none), (1.0, 1.0)), both)
  np.testing.assert_array_equal(led(run, cond, (picture_alone, none), (0.0, 0.0)), nothing)
  # Samples, too: at 4 times, each of which evaluates three denoisers.
  guidance = Guidance((picture_alone, none), (4.0, 1.5))
  images = draw_samples(run, 16, cond, seed=0, batch_size=8, guidance=guidance)
  plain = draw_samples(run, 16, cond, seed=0, batch_size=8, guidance=Guidance(scale=1.0))
  assert (images != plain).any(axis=(1, 2, 3)).all()
  counts = [run.use.evaluations(guidance=each) for each in (guidance, None, Guidance(scale=1.0))]
  assert counts == [12, 8, 4]


def test_one_null_for_two_scales_is_refused(loaded):
  run, cond = loaded('inpainting'), held_out('inpainting')
  for null in (None, null_of(run, 16)):
    with pytest.raises(ValueError, match='null: a tuple of 2 conditions is wanted'):
      led(run, cond, null, (4.0, 1.5))


def test_a_scale_may_be_traced(loaded):
  """One program serves all scales."""
  run, cond = loaded('attributes'), held_out('attributes')
  traced = jax.jit(lambda scale: generated(run, cond, scale))
  for scale in (0.5, 3.0):
    np.testing.assert_allclose(traced(scale), generated(run, cond, scale), atol=1e-5)


def generated(run, cond, scale):
  keys = example_keys(jax.random.key(2), jnp.arange(16))
  return run.use.generate(run.trained, run.frozen, cond, keys, guidance=Guidance(scale=scale))


def test_what_is_masked_changes_nothing(loaded):
  run, cond = loaded('tokens'), held_out('tokens')
  there = cond['mask'][..., None]
  assert there.any() and not there.all()
  padded = {**cond, 'tokens': np.where(there, cond['tokens'], np.float32(1e3))}
  np.testing.assert_array_equal(x0(run.denoiser(cond), 16), x0(run.denoiser(padded), 16))
  changed = {**cond, 'tokens': np.where(there, cond['tokens'] + 1, cond['tokens'])}
  assert (x0(run.denoiser(cond), 16) != x0(run.denoiser(changed), 16)).any(axis=(1, 2, 3)).all()


def rows_alone(call, args, kwargs, context):
  """Intercepts methods: among the rows, the map of the attention is the identity."""
  if (context.module.name, context.method_name) == ('among_rows', 'weights'):
    return jnp.broadcast_to(jnp.eye(4), (len(args[0]), 4, 4))
  return call(*args, **kwargs)


def weakened(denoiser, by):
  """The same network with the same parameters, intercepted."""

  def weak(xt, t):
    with nn.intercept_methods(by):
      return denoiser(xt, t)

  return weak


def test_guidance_away_from_attention_that_is_switched_off(loaded):
  """By a network whose rows do not see each other, which its derivative shows."""
  run, cond = loaded('tokens'), held_out('tokens', 4)
  strong = run.denoiser(cond)
  weak = weakened(strong, rows_alone)
  alone = run.denoiser(jax.tree.map(lambda leaf: leaf[:1], cond))
  for denoiser, mixes in ((alone, True), (weakened(alone, rows_alone), False)):
    slope = jax.jit(jax.jacobian(lambda x, d=denoiser: d(x, T).x0[0, ..., 0]))
    slopes = slope(noisy(1))[:, :, 0, ..., 0]
    between = np.abs(slopes).sum((1, 3)) * (1 - np.eye(4))
    assert (between > 0).any() == mixes
  np.testing.assert_array_equal(x0(autoguidance(strong, weak, 1.0), 4), x0(strong, 4))
  mixed = x0(weak, 4) + 2.5 * (x0(strong, 4) - x0(weak, 4))
  np.testing.assert_allclose(x0(autoguidance(strong, weak, 2.5), 4), mixed, atol=1e-5)


def test_samples_under_it_are_those_of_the_recursion(loaded):
  """DDIM's step is alpha_s x0 + (sigma_s / sigma_t) (xt - alpha_t x0)."""
  run, cond = loaded('tokens'), held_out('tokens', 4)
  path, keys = run.schedule, example_keys(jax.random.key(2), jnp.arange(4))
  times = time_grid('trailing', path, 4)
  strong = run.denoiser(cond)
  denoiser = autoguidance(strong, weakened(strong, rows_alone), 2.5)
  x = xT = prior_sample(path, times[0], keys, (4, 4, 1))
  found = jax.jit(lambda xT: sample(SAMPLERS['ddim'](), denoiser, path, times, xT, keys))(xT)
  for t, s in itertools.pairwise(times):
    kept = path.sigma(s) / path.sigma(t)
    guess = denoiser(x, t).x0
    x = path.alpha(s) * guess + kept * (x - path.alpha(t) * guess)
  np.testing.assert_allclose(found, denoiser(x, times[-1]).x0, rtol=1e-4, atol=1e-4)
  plain = jax.jit(lambda xT: sample(SAMPLERS['ddim'](), strong, path, times, xT, keys))(xT)
  assert np.abs(found - plain).max() > 1e-3


# What is kept and measured.


def test_samples_are_kept_with_their_conditions(loaded, name, tmp_path):
  run, cond = loaded(name), held_out(name, 12)
  spec, record = run.experiment.dataset.cond, {'step': 6, 'seed': 0, 'evaluations': 8}
  record['sampler'] = {'guidance': 1.5}
  images = draw_samples(run, 12, cond, seed=0, batch_size=8)
  save_samples(epath.Path(tmp_path / 'samples.npz'), samples_of(images, cond, spec, record))
  again = load_samples(epath.Path(tmp_path / 'samples.npz'))
  equal(cond_of(again, spec), cond)
  np.testing.assert_array_equal(again.images, images)


def test_bits_are_those_given_the_condition(loaded, name):
  run, dataset = loaded(name), dataset_of(name)
  measure = run.use.bits()['chain']
  found = split_bits(
    measure, run.trained, run.frozen, dataset, dataset.test, seed=0, batch_size=16, most=2
  )
  assert np.isfinite([found.mean, found.error]).all() and found.error > 0
  batch = {**dataset.read(dataset.test, np.arange(16)), 'index': np.arange(16)}

  def bits(cond):
    return measure.bits(run.trained, run.frozen, jax.random.key(0), {**batch, 'cond': cond})

  given = np.asarray(bits(batch['cond']))
  # The last example keeps its condition, and all others have that of another.
  order = np.array([*np.roll(np.arange(15), 1), 15])
  other = np.asarray(bits(jax.tree.map(lambda leaf: leaf[order], batch['cond'])))
  moved = [
    any((leaf[row] != leaf[order[row]]).any() for leaf in jax.tree.leaves(batch['cond']))
    for row in range(16)
  ]
  np.testing.assert_array_equal(given != other, moved)
  assert not moved[15] and sum(moved) > 10


def test_the_commands_take_conditions_from_a_file(folder, loaded, tmp_path):
  workdir = shutil.copytree(folder('tokens'), tmp_path / 'run')
  cond = held_out('tokens', 5)
  np.savez(tmp_path / 'cond.npz', **cond)
  flags = [f'--workdir={workdir}', '--plugins=condition_toys']
  command('sample', *flags, f'--cond={tmp_path / "cond.npz"}', '--num=12', '--guidance=1.5')
  samples = load_samples(epath.Path(workdir / 'samples.npz'))
  in_turn = jax.tree.map(lambda leaf: leaf[np.arange(12) % 5], cond)
  equal(dict(samples.cond), in_turn)
  expected = draw_samples(loaded('tokens'), 12, in_turn, seed=0, batch_size=16)
  assert np.abs(samples.images.astype(int) - expected).max() <= 1
  said = command('evaluate', *flags)
  figures = json.loads((workdir / 'report.json').read_text())
  assert figures['finished'] and figures['bits_per_dim']['chain']['how'].endswith(
    'given the words, condition'
  )
  assert samples.record['cond'] == str(tmp_path / 'cond.npz') and 'report.json' in said


def command(name, *flags):
  here = pathlib.Path(__file__).parent
  paths = ':'.join(map(str, (here, here.parent / 'training', ROOT)))
  done = subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *flags],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1', 'PYTHONPATH': paths},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout
