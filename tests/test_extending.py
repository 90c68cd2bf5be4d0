"""docs/extending.md as it is shipped: every example trains, is loaded and is sampled from."""

import pathlib
import re
import shlex
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from ddpm_jax.config import from_config_dict
from ddpm_jax.diffusion import schedules
from ddpm_jax.keys import example_keys
from ddpm_jax.samplers import SAMPLERS, prior_sample, sample, time_grid
from ddpm_jax.tasks.run import load_run
from ddpm_jax.tasks.train import train
from ddpm_jax.theory.oracle import GaussianData

PAGE = (pathlib.Path(__file__).parents[1] / 'docs' / 'extending.md').read_text()
MODULES = dict(re.findall(r'```python\n# (\w+)\.py\n(.*?)```', PAGE, re.DOTALL))
COMMANDS = [
  shlex.split(command)
  for block in re.findall(r'```\n(python .*?)```', PAGE, re.DOTALL)
  for command in block.replace('\\\n', ' ').splitlines()
]
TRAINED = [command for command in COMMANDS if 'experiments.train' in command]
SHORT = {
  'training.num_steps': 3,
  'optimizer.warmup_steps': 0,
  'evaluation.batch_size': 32,
  'dataset.batch_size': 16,
  'sampler.num_steps': 3,
}
# A U-Net takes seconds to compile, and an example that is no network needs none.
SMALL = {'model.name': 'mlp', 'model.width': 8, 'model.depth': 1}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
  for name, code in MODULES.items():
    (tmp_path / f'{name}.py').write_text(code)
  monkeypatch.syspath_prepend(tmp_path)
  yield
  for name in MODULES:
    sys.modules.pop(name, None)


def config_of(command):
  """The config that a command of the page trains, for three steps."""
  flags = dict(
    word.removeprefix('--config.').split('=', 1) for word in command if '--config.' in word
  )
  tree = digits.get_config()
  with tree.unlocked():
    for name in ('channels', 'multipliers', 'num_res_blocks', 'attention_resolutions'):
      del tree.model[name]
    for settings in (SHORT, {} if 'model.name' in flags else SMALL):
      for field, value in settings.items():
        group, name = field.split('.')
        tree[group][name] = value
    if 'model.name' in flags:
      for name in ('dropout', 'label_dropout'):
        del tree.model[name]
    if 'schedule.name' in flags:
      del tree.schedule['num_steps']
    for field, value in flags.items():
      *groups, name = field.split('.')
      node = tree
      for group in groups:
        node = node[group]
      number = re.fullmatch(r'-?[\d.]+(e-?\d+)?', value)
      node[name] = (float(value) if set('.e') & set(value) else int(value)) if number else value
  return from_config_dict(tree)


@pytest.mark.parametrize('command', TRAINED, ids=lambda command: command[-1])
def test_what_a_command_trains_is_loaded_and_drawn_from(command, tmp_path):
  config = config_of(command)
  train(config, tmp_path / 'run')
  run = load_run(tmp_path / 'run', plugins=tuple(MODULES))
  assert run.step == 3
  cond = run.experiment.dataset.cond
  shape = {name: jnp.zeros((2, *field.shape), field.dtype) for name, field in cond.items()}
  keys = example_keys(jax.random.key(0), jnp.arange(2))
  drawn = run.use.generate(run.trained, run.frozen, shape, keys)
  assert drawn.shape == (2, 8, 8, 1) and np.isfinite(drawn).all()


def test_every_module_is_used_and_every_example_is_short():
  words = ' '.join(word for command in COMMANDS for word in command)
  assert len(MODULES) == 5
  for name, code in MODULES.items():
    assert f'{name}:' in words, name
    assert len(code.splitlines()) <= 35, name


def test_the_pages_sampler_is_the_one_that_it_says(x64):
  from my_sampler import flow

  path, data = schedules.vp(), GaussianData(jnp.array([0.3]), jnp.array([0.5]))
  times, keys = time_grid('trailing', path, 7), example_keys(jax.random.key(0), jnp.arange(4))
  start = prior_sample(path, times[0], keys, (1,))
  ours, known = (
    sample(sampler, data.denoiser(path), path, times, start, keys)
    for sampler in (flow(), SAMPLERS['ddim']())
  )
  np.testing.assert_allclose(ours, known, rtol=1e-10)


def test_the_pages_schedules_are_what_they_say(x64):
  from my_schedule import Straight, quick

  path = Straight()
  for t in (0.0, 0.3, 1.0):
    assert path.log_snr(t) == pytest.approx(10 - 20 * t)
    assert path.alpha(t) ** 2 + path.sigma(t) ** 2 == pytest.approx(1)
    assert path.time(path.log_snr(t)) == pytest.approx(t, abs=1e-12)
  assert quick().alpha(100) ** 2 == pytest.approx(np.prod(1 - np.linspace(1e-3, 0.2, 100)))


def test_the_pages_optimizer_moves_by_the_rate(x64):
  from my_optimizer import signs

  optimizer, params = signs(0.1), jnp.array([1.0, -2.0, 3.0])
  updates, _ = optimizer.update(jnp.array([5.0, -0.1, 2.0]), optimizer.init(params), params)
  np.testing.assert_allclose(updates, [-0.1, 0.1, -0.1])


def test_the_pages_commands_are_ones_that_there_are():
  for command in COMMANDS:
    assert command[:2] == ['python', '-m'] and command[2] in (
      'experiments.train',
      'experiments.sample',
    )
