"""That tasks, conditions, codecs and frozen parts carry what is to come, by five toys."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from task_toys import CHANCES, TOYS, config_of, normal, tokens

from ddpm_jax import load_run
from ddpm_jax.codec import scale
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.sampling import draw_samples
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.samplers import prior_sample
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job, steps, train
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.loop import advance_all
from ddpm_jax.training.parallel import all_devices, make_parallel
from ddpm_jax.training.task import load_frozen

ENCODER = np.array([[6.0, 0, 2, 0], [0, 4, 0, 3]])
NOISE = 0.1


def write_codec(path, factor=1.0):
  matrices = {'encoder': factor * ENCODER, 'decoder': np.linalg.pinv(ENCODER)}
  np.savez(path, **{name: matrix.astype(np.float32) for name, matrix in matrices.items()})


@pytest.fixture(scope='module')
def codec(tmp_path_factory):
  path = tmp_path_factory.mktemp('codec') / 'linear.npz'
  write_codec(path)
  return {'codec.args': {'path': str(path)}}


@pytest.fixture(scope='module', params=TOYS)
def toy(request):
  return request.param


def config_for(toy, codec, **settings):
  return config_of(toy, **(codec if toy == 'latents' else {}), **settings)


@pytest.fixture(scope='module')
def folders(tmp_path_factory, codec):
  """The folder of each toy's run, trained where it is first asked for."""
  made = {}

  def folder(toy):
    if toy not in made:
      made[toy] = tmp_path_factory.mktemp('runs') / toy.replace(' ', '_')
      train(config_for(toy, codec), made[toy])
    return made[toy]

  return folder


def loaded(folder, **changes):
  return dataclasses.replace(load_run(folder, plugins=('task_toys',)), **changes)


def on_devices(config, workdir, count):
  """The last state of a run on so many devices."""
  job = make_job(build(config))
  task = job.task._replace(heldout=None, preview=None)
  job = job._replace(task=task, parallel=make_parallel('pmap', all_devices()[:count]))
  workdir = epath.Path(workdir)
  workdir.mkdir()
  with Checkpoints(workdir / 'checkpoints') as checkpoints:
    *_, (_, state) = advance_all(job, checkpoints, workdir)
  return jax.tree.map(np.asarray, state)


def losses(config, params, repeats=60):
  """The task's loss of every training example, each met by `repeats` draws of the noise."""
  experiment = build(config)
  task, split = make_task(experiment), experiment.dataset.train
  rows = np.tile(np.arange(len(split)), repeats)
  index = jnp.arange(len(rows))
  batch = {**experiment.dataset.read(split, rows), 'index': index}
  keys = Keys(step_key(7, 0), example_keys(step_key(7, 0), index))
  state = task.init(None)[1]

  @jax.jit
  def values(params, frozen, batch, keys):
    return task.loss(params, state, frozen, batch, keys, lambda x: x).values

  return np.asarray(values(params, load_frozen(task), batch, keys), np.float64)


def is_mean(values, expected):
  """Whether independent values have this mean, within four standard errors."""
  return abs(values.mean() - expected) < 4 * values.std() / len(values) ** 0.5


def has_moments(x, mean, covariance):
  """Whether normal rows have this mean and covariance, within five standard errors."""
  variances = np.diag(covariance)
  close = np.abs(x.mean(0) - mean) < 5 * np.sqrt(variances / len(x))
  error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(x))
  return close.all() and (np.abs(np.cov(x.T) - covariance) < 5 * error).all()


# ---------------------------------------------------------------- what holds for each


def test_a_killed_run_ends_bit_identical_to_one_that_was_not(toy, folders, codec, tmp_path):
  whole, config = folders(toy), config_for(toy, codec)
  shutil.copytree(whole, tmp_path / 'killed')
  (last,) = (tmp_path / 'killed' / 'checkpoints').glob('*6')
  shutil.rmtree(last)
  found = list(steps(config, tmp_path / 'killed'))
  assert [step for step, _ in found] == [5, 6]

  with Checkpoints(epath.Path(whole) / 'checkpoints') as checkpoints:
    expected, _ = checkpoints.restore(6, make_job(build(config)).shapes)
  jax.tree.map(np.testing.assert_array_equal, found[-1][1], expected)
  killed, undisturbed = (folder / 'metrics.jsonl' for folder in (tmp_path / 'killed', whole))
  assert killed.read_bytes() == undisturbed.read_bytes()


def test_one_and_two_devices_give_the_same_state(toy, codec, tmp_path):
  config = config_for(toy, codec)
  one, two = (on_devices(config, tmp_path / str(count), count) for count in (1, 2))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), one, two)
  first = make_task(build(config)).init(None)[0]
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), one.params, first)
  assert all(value > 1e-3 for value in jax.tree.leaves(moved)), 'every parameter is trained'


def test_a_folder_is_loaded_and_its_samples_follow_from_their_keys(toy, folders):
  run = loaded(folders(toy))
  assert run.step == 6
  drawn = (folders(toy) / 'samples').is_dir()
  assert drawn == (toy != 'contrastive'), 'a preview is there'
  if not drawn:
    with pytest.raises(InputError, match='config.task.name: the task draws nothing'):
      run.use.generate(run.trained, run.frozen, {}, None)
    return
  six = draw_samples(run, 6, {}, seed=3, batch_size=8)
  np.testing.assert_array_equal(six[:2], draw_samples(run, 2, {}, seed=3, batch_size=2))
  assert six.std() > 0


# ---------------------------------------------------------------- 1. latents


def moments():
  """The mean and covariance of the latents of the training pictures."""
  x = np.asarray(scale(normal().train[:]['x'], 256), np.float64).reshape(-1, 4)
  return ENCODER @ x.mean(0), ENCODER @ np.cov(x.T, ddof=0) @ ENCODER.T + NOISE**2 * np.eye(2)


def best_posterior():
  """The parameters of the closed-form denoiser of the latents."""
  mean, covariance = moments()
  variances, turn = np.linalg.eigh(covariance)
  network = {
    'mean': mean,
    'angle': np.arctan2(turn[1, 0], turn[0, 0]),
    'log_variances': np.log(variances),
  }
  network = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network)
  return {'network': network, 'schedule': {}, 'loss': {}}


def test_the_loss_of_the_exact_denoiser_of_latents_is_their_posterior_variance(codec, folders):
  config, best = config_for('latents', codec), best_posterior()
  t = (np.arange(4000) + 0.5) / 4000
  schedule = build(config).schedule
  alpha, sigma = (np.asarray(jax.vmap(f)(t), np.float64) for f in (schedule.alpha, schedule.sigma))
  variances = np.linalg.eigvalsh(moments()[1])[:, None]
  expected = np.mean(sigma**2 * variances / (alpha**2 * variances + sigma**2))
  least = losses(config, best)
  assert is_mean(least, expected)

  first = losses(config, make_task(build(config)).init(None)[0])
  trained = losses(config, loaded(folders('latents')).trained)
  assert 0 < (trained - least).mean() < 0.7 * (first - least).mean()


def test_the_exact_denoiser_of_latents_draws_by_their_flow(codec, folders):
  run = loaded(folders('latents'), trained=best_posterior())
  mean, covariance = moments()
  variances, turn = np.linalg.eigh(covariance)
  path, keys = run.schedule, example_keys(jax.random.key(5), jnp.arange(4000))
  z = jax.jit(run.use.generate)(run.trained, run.frozen, {}, keys).reshape(-1, 2)

  ends = (1.0, 0.0)  # the last step, from where there is hardly any noise, is to the data
  alpha, sigma = (np.array([float(f(t)) for t in ends]) for f in (path.alpha, path.sigma))
  scales = np.sqrt(alpha**2 * variances[:, None] + sigma**2)
  start = np.asarray(prior_sample(path, jnp.array(1.0), keys, (2,)), np.float64)
  gain = scales[:, 1] / scales[:, 0] * alpha[1] * variances / scales[:, 1] ** 2
  flown = mean + (start - alpha[0] * mean) @ turn * gain @ turn.T
  np.testing.assert_allclose(z, flown, atol=1e-4)  # an error of fourth order
  assert has_moments(np.asarray(z), mean, covariance)

  pictures = draw_samples(run, 4000, {}, seed=5, batch_size=4000).reshape(-1, 4)
  decoder = np.linalg.pinv(ENCODER)
  levels = 127.5 * (np.asarray(z) @ decoder.T + 1)
  assert np.abs(pictures - np.clip(levels, 0, 255)).max() < 0.51
  rounding = np.eye(4) / 12
  assert has_moments(
    pictures, 127.5 * (decoder @ mean + 1), 127.5**2 * decoder @ covariance @ decoder.T + rounding
  )


def test_what_a_lossy_codec_cannot_give_is_refused_and_its_latents_are_not_bounded(folders):
  run = loaded(folders('latents'), trained=best_posterior())
  with pytest.raises(InputError, match='^config.codec.name: bits/dim is a probability') as told:
    run.use.bits()
  assert '\n' not in str(told.value)
  keys = example_keys(jax.random.key(5), jnp.arange(50))

  def drawn(threshold):
    sampler = dataclasses.replace(run.config.sampler, threshold=threshold)
    other = run.rebuild(dataclasses.replace(run.config, sampler=sampler))
    return np.asarray(jax.jit(other.use.generate)(run.trained, run.frozen, {}, keys))

  free = drawn('none')
  assert np.abs(free).max() > 1.5
  np.testing.assert_array_equal(drawn('clip'), free)
  with pytest.raises(InputError, match="config.sampler.threshold: 'dynamic' is for data in"):
    drawn('dynamic')


def test_a_codecs_parameters_are_frozen(folders, codec, tmp_path):
  folder, path = folders('latents'), codec['codec.args']['path']
  run = loaded(folder)
  np.testing.assert_allclose(run.frozen['codec']['encoder'], ENCODER)
  job = make_job(run.experiment)
  sizes = {leaf.shape for leaf in jax.tree.leaves(job.shapes)}
  assert not sizes & {(2, 4), (4, 2)}, 'the state has no matrix of the codec'
  record = json.loads((folder / 'config.json').read_text())['frozen']
  assert record['codec']['source'] == path

  params, turned = run.trained, jax.tree.map(lambda leaf: -leaf, run.frozen)
  assert (job.task.preview(params, run.frozen) != job.task.preview(params, turned)).any()

  shutil.copytree(folder, tmp_path / 'run')
  write_codec(path, factor=2.0)
  try:
    longer = config_for('latents', codec, **{'training.num_steps': 8})
    with pytest.raises(InputError, match='the codec that the run was trained with has changed'):
      train(longer, tmp_path / 'run')
    with pytest.raises(InputError, match='the codec that the run was trained with has changed'):
      loaded(folder)
  finally:
    write_codec(path)


# ---------------------------------------------------------------- 2. an adversarial pair


def test_the_gradient_of_a_pair_is_those_of_both_and_each_moves_by_its_own_rate(tmp_path):
  rates = {'generator': 0.1, 'critic': 0.3}
  settings = {'optimizer.args': {'critic_rate': rates['critic']}, 'training.num_steps': 1}
  config = config_of('adversarial', **settings)
  experiment = build(config)
  task = make_task(experiment)
  size = config.dataset.batch_size
  batch = {**experiment.dataset.read(experiment.dataset.train, np.arange(size)), 'cond': {}}
  key = step_key(config.seed, 0)
  batch, keys = {**batch, 'index': np.arange(size)}, Keys(key, example_keys(key, jnp.arange(size)))
  params, state = task.init(None)

  def mean_of(params, name=None):
    output = task.loss(params, state, load_frozen(task), batch, keys, lambda x: x)
    return jnp.mean(output.metrics[name] if name else output.values)

  both = jax.grad(mean_of)(params)
  for name, branch in both.items():
    alone = jax.grad(lambda part, name=name: mean_of({**params, name: part}, name))(params[name])
    jax.tree.map(np.testing.assert_allclose, branch, alone)
  real = scale(batch['x'], 256).mean(0)
  fake = task.use.generate(params, {}, {}, keys.examples).mean(0)
  weight = params['critic']['weight']
  np.testing.assert_allclose(both['critic']['weight'], fake - real + weight, rtol=1e-5)
  np.testing.assert_allclose(both['generator']['shift'], -weight, rtol=1e-5)

  updates, _ = task.optimizer.update(both, task.optimizer.init(params), params)
  for name, rate in rates.items():
    jax.tree.map(
      lambda a, b, rate=rate: np.testing.assert_allclose(a, -rate * b, rtol=1e-5),
      updates[name],
      both[name],
    )
  *_, (_, after) = steps(config, tmp_path / 'run')
  np.testing.assert_allclose(after.params['generator']['shift'], 0.1 * weight, rtol=1e-5)


# ---------------------------------------------------------------- 3. a contrastive pair


def test_every_partner_of_the_whole_batch_is_a_rival(folders, tmp_path):
  config = config_of('contrastive')
  experiment = build(config)
  task, size = make_task(experiment), config.dataset.batch_size
  params, state = task.init(None)
  batch = experiment.dataset.read(experiment.dataset.train, np.arange(size))
  batch = {**batch, 'index': np.arange(size) + 48}
  key = step_key(0, 0)
  keys = Keys(key, example_keys(key, jnp.arange(size)))
  output = task.loss(params, state, load_frozen(task), batch, keys, lambda x: x)

  levels = experiment.dataset.num_levels
  image = (2 * batch['x'].reshape(size, -1) / (levels - 1) - 1) @ np.asarray(params['image'])
  label = np.asarray(params['label'])[batch['cond']['label']]
  for i in range(size):
    of_image = [np.exp(image[i] @ label[j]) for j in range(size)]
    of_label = [np.exp(image[j] @ label[i]) for j in range(size)]
    chance = of_image[i] / sum(of_image) * of_label[i] / sum(of_label)
    np.testing.assert_allclose(output.values[i], -np.log(chance) / 2, rtol=1e-4)

  parts = config_of('contrastive', **{'parallel.microbatches': 2})
  with pytest.raises(InputError, match='config.parallel.microbatches: this loss couples'):
    train(parts, tmp_path / 'run')


# ---------------------------------------------------------------- 4. two times


def best_velocity():
  """The parameters of the exact mean velocity, component by component."""
  x = np.asarray(scale(normal().train[:]['x'], 256), np.float64)
  network = {'mean': x.mean(0), 'log_variance': np.log(x.var(0))}
  network = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), network)
  return {'network': network, 'schedule': {}, 'loss': {}}


def test_the_exact_mean_velocity_leaves_what_the_noise_alone_decides():
  """u - target = -(r_s / r_t) (v - E[v | xt]), and Var[v | xt] = w / r_t², with r² = Var[xt]."""
  best = best_velocity()
  variance = np.exp(np.asarray(best['network']['log_variance'], np.float64)).reshape(-1, 1, 1)
  t = 1e-3 + (1 - 1e-3) * (np.arange(1000)[:, None] + 0.5) / 1000
  s = t * (np.arange(200) + 0.5) / 200
  squares = [(1 - u) ** 2 * variance + u**2 for u in (s, t)]
  expected = np.mean(squares[0] * variance / squares[1] ** 2)
  assert is_mean(losses(config_of('two times'), best), expected)


def test_the_mean_velocity_to_a_point_has_no_loss_at_all():
  config = config_of('two times', **{'dataset.args': {'deviation': 0.0}})
  mean = jnp.full((2, 2, 1), 2 * 140 / 255 - 1)
  network = {'mean': mean, 'log_variance': jnp.full((2, 2, 1), -60.0)}
  assert losses(config, {'network': network, 'schedule': {}, 'loss': {}}).max() < 1e-6


def test_one_step_to_time_zero_goes_as_far_as_many_small_ones(folders):
  many = loaded(folders('two times'), trained=best_velocity())
  sampler = dataclasses.replace(many.config.sampler, num_steps=1)
  once = many.rebuild(dataclasses.replace(many.config, sampler=sampler))
  keys = example_keys(jax.random.key(2), jnp.arange(30))
  start = np.asarray(prior_sample(many.schedule, jnp.array(1.0), keys, (2, 2, 1)))
  network = many.params
  expected = network['mean'][None] + np.exp(network['log_variance'] / 2)[None] * start

  leap = once.use.generate(many.trained, {'codec': {}}, {'s': jnp.zeros(30)}, keys)
  np.testing.assert_allclose(leap, np.clip(expected, -1, 1), atol=1e-5)
  walk = jax.jit(many.use.generate)(many.trained, {'codec': {}}, {}, keys)
  np.testing.assert_allclose(walk, np.clip(expected, -1, 1), atol=2e-3)


# ---------------------------------------------------------------- 5. tokens


def frequencies():
  x = tokens().train[:]['x'].reshape(-1, 4)
  return np.stack([(x == level).mean(0) for level in range(3)], axis=1)


def test_the_least_loss_of_masked_tokens_is_their_entropy():
  config, p = config_of('masking'), frequencies()
  zero = make_task(build(config)).init(None)[0]
  entropy = -np.sum(p * np.log(p), axis=1).mean()
  best = losses(config, {**zero, 'table': jnp.log(p)})
  assert is_mean(best, entropy)
  further = entropy + np.sum(p * np.log(p / CHANCES[::-1]), axis=1).mean()
  assert is_mean(losses(config, {**zero, 'table': jnp.log(CHANCES[::-1])}), further)


def test_generation_leaves_no_mask_and_draws_by_the_table(folders):
  run = loaded(folders('masking'))
  p, count = frequencies(), 4000
  params = {**jax.tree.map(jnp.zeros_like, run.trained), 'table': jnp.log(p)}
  keys = example_keys(jax.random.key(4), jnp.arange(count))
  for trained in (run.trained, params):
    x = np.asarray(jax.jit(run.use.generate)(trained, run.frozen, {}, keys)).reshape(-1, 4)
    assert x.dtype.kind == 'i' and x.min() >= 0 and x.max() < 3
  found = np.stack([(x == level).mean(0) for level in range(3)], axis=1)
  assert (np.abs(found - p) < 4 * np.sqrt(p * (1 - p) / count)).all()
  with pytest.raises(InputError, match='config.task.name: the task measures no bits/dim'):
    run.use.bits()
