"""What a config becomes: schedules of every kind, from training to what is loaded of it."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny

from ddpm_jax import load_run
from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.schedules import CONTINUOUS, Interpolated, parameters
from ddpm_jax.errors import InputError
from ddpm_jax.keys import example_keys
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import check_training
from ddpm_jax.tasks.table import make_task
from ddpm_jax.tasks.train import make_job, train
from ddpm_jax.training.task import load_frozen


def check(config):
  experiment = build(config)
  check_training(experiment, make_job(experiment))


@pytest.mark.parametrize('name', CONTINUOUS)
def test_every_path_is_judged_and_sampled(name):
  settings = {'schedule.name': name, 'schedule.num_steps': None, 'parameterization.name': 'v'}
  task = make_task(build(tiny(**settings)))
  params, frozen = task.init(None)[0], load_frozen(task)
  scalars = task.heldout(params, frozen)
  assert len(scalars) > 5 and np.isfinite(list(scalars.values())).all()
  cond, keys = {'label': jnp.arange(2)}, example_keys(jax.random.key(0), jnp.arange(2))
  images = jax.jit(task.use.generate)(params, frozen, cond, keys)
  assert images.shape == (2, 8, 8, 1) and np.isfinite(images).all()


def test_a_sampler_that_blows_up_is_told_of_before_training(caplog):
  # Noise of 50 times the data's size, in two steps.
  settings = {'schedule.name': 've', 'schedule.num_steps': None, 'sampler.grid': 'linspace'}
  with caplog.at_level(logging.WARNING, logger='absl'):
    check(tiny(**settings, **{'sampler.name': 'ddim'}))
    assert not caplog.messages
    check(tiny(**settings, **{'sampler.name': 'heun'}))
  (line,) = caplog.messages
  assert line.startswith("config.sampler: 'heun' over 'linspace': this sampler blows up in 2 steps")
  assert "the grid 'leading'" in line and 'the sampler ddim' in line


def test_a_learned_schedule_trains_and_is_loaded_with_the_run(tmp_path):
  settings = {
    'schedule.name': 'learned',
    'schedule.num_steps': None,
    'parameterization.name': 'v',
    'loss.name': 'variational',
    'training.num_steps': 10,
  }
  config = tiny(**settings)
  train(config, tmp_path)
  fresh = parameters(build(config).schedule)
  averaged, last = (
    parameters(load_run(tmp_path, ema=ema, plugins=('tiny',)).schedule) for ema in (True, False)
  )
  for name, leaf in fresh.items():
    way, lag = np.abs(last[name] - leaf), np.abs(averaged[name] - leaf)
    assert (way > 0).all(), name
    assert 0 < lag.mean() < way.mean(), f'{name}: the average lags behind'


def test_a_chain_may_end_at_zero_snr_or_be_read_in_continuous_time():
  v = {'parameterization.name': 'v'}
  chain = build(tiny(**v, **{'schedule.zero_terminal_snr': True})).schedule
  assert chain.alpha(20) == 0
  path = build(tiny(**v, **{'schedule.continuous': True})).schedule
  assert isinstance(path, Interpolated)
  np.testing.assert_allclose(path.log_snr(7.0), schedules.cosine(20).log_snr(7), rtol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    (
      {'schedule.zero_terminal_snr': True},
      r'^config\.parameterization\.name: at zero terminal SNR .* v, x0, flow or edm',
    ),
    (
      {'schedule.zero_terminal_snr': True, 'schedule.continuous': True},
      r'^config\.schedule\.continuous: the last log-SNR is -inf',
    ),
    (
      {'schedule.name': 've', 'schedule.num_steps': None, 'schedule.zero_terminal_snr': True},
      r"^config\.schedule\.zero_terminal_snr: 've' is not a discrete chain",
    ),
    ({'schedule.name': 'flow', 'schedule.num_steps': None}, r'^config\.parameterization\.name: '),
  ],
)
def test_what_cannot_be_is_refused_by_its_field(settings, message):
  with pytest.raises(InputError, match=message):
    build(tiny(**settings))


def test_a_solver_draws_each_example_as_fine_steps_do():
  """On a chain, guided; each of two examples whatever the other is."""
  settings = {'parameterization.name': 'v', 'sampler.guidance': 2.0, 'sampler.threshold': 'none'}
  tolerance = {'sampler.rtol': 1e-3, 'sampler.atol': 1e-3}
  solver = make_task(build(tiny(**settings, **tolerance, **{'sampler.name': 'bosh3'})))
  steps = {'sampler.name': 'heun', 'sampler.num_steps': 100, 'sampler.grid': 'log_snr'}
  params, frozen = solver.init(None)[0], load_frozen(solver)
  keys, cond = jax.random.split(jax.random.key(0), 2), {'label': jnp.array([3, 8])}
  draw = jax.jit(lambda keys, cond: solver.use.generate(params, frozen, cond, keys))
  drawn = draw(keys, cond)
  stepping = make_task(build(tiny(**settings, **steps)))
  fine = stepping.use.generate(params, frozen, cond, keys)
  np.testing.assert_allclose(drawn, fine, atol=0.02)
  other = draw(jnp.stack([keys[0], jax.random.key(5)]), {'label': jnp.array([3, 1])})
  np.testing.assert_array_equal(other[0], drawn[0])
  assert (other[1] != drawn[1]).any()


def test_a_solver_has_no_grid_to_show_and_costs_what_it_finds():
  task = make_task(build(tiny(**{'sampler.name': 'tsit5'})))
  params, keys = task.init(None)[0], jax.random.split(jax.random.key(0), 2)
  assert task.use.evaluations() is None
  assert task.use.describe() == 'tsit5'
  with pytest.raises(InputError, match=r"config\.sampler\.name: 'tsit5' has no times"):
    task.use.generate(params, {}, {}, keys, return_path=True)
