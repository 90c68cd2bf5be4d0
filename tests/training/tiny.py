"""A run small enough to be made, killed and resumed many times over; also a program."""

import json
import os
import resource
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ddpm_jax.config import Config, base_config, from_config_dict
from ddpm_jax.losses import LOSSES
from ddpm_jax.models.layers import Dropout
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training.state import TrainState, new_state

SETTINGS = {
  'dataset.name': 'digits',
  'dataset.batch_size': 16,
  'dataset.flip': True,
  'model.name': 'tiny:Net',
  'schedule.name': 'cosine',
  'schedule.num_steps': 20,
  'parameterization.name': 'eps',
  'loss.name': 'simple',
  'optimizer.name': 'adam',
  'optimizer.learning_rate': 1e-3,
  'optimizer.clip_norm': 1.0,
  'sampler.name': 'ddim',
  'sampler.num_steps': 2,
  'ema.decay': 0.9,
  'training.num_steps': 30,
  'evaluation.every_steps': 15,
  'evaluation.batch_size': 8,
  'checkpoint.every_steps': 10,
  'logging.every_steps': 4,
  'logging.preview_every_steps': 30,
}


class Net(nn.Module):
  """Two dense layers with dropout between them, told the noise and the class."""

  spec: Any
  out_channels: int
  width: int = 16

  @nn.compact
  def __call__(self, x, noise_label, cond, keys=None):
    told = jax.nn.one_hot(cond['label'], self.spec['label'].num_classes + 1)
    flat = x.reshape(x.shape[0], -1)
    noise = jnp.log1p(noise_label).reshape(-1, 1)
    hidden = nn.tanh(nn.Dense(self.width)(jnp.concatenate([flat, told, noise], axis=1)))
    return nn.Dense(flat.shape[1])(Dropout(0.3)(hidden, keys)).reshape(x.shape)


def tiny(**settings) -> Config:
  """The tiny config with some settings changed: tiny(**{'dataset.batch_size': 7})."""
  return filled({**SETTINGS, **settings})


def filled(settings) -> Config:
  """The config with these settings, {'dataset.batch_size': 7}, and every other at its default."""
  config = base_config()
  for path, value in settings.items():
    *groups, name = path.split('.')
    node = config
    for group in groups:
      node = node[group]
    with node.unlocked():
      node[name] = value
  return from_config_dict(config)


def shapes_of(config: Config) -> TrainState:
  """The shapes of a run's state."""
  task = make_task(build(config))
  return jax.eval_shape(lambda: new_state(task, config))


def broken(context, params, state, batch, keys):
  """The simple loss, NaN from step 13 on."""
  output = LOSSES['simple'](context, params, state, batch, keys)
  return output._replace(values=jnp.where(batch['index'] < 12 * 16, output.values, jnp.nan))


def counted(context, params, state, batch, keys):
  """The simple loss; its metrics tell which examples it saw, exactly on any number of devices."""
  output = LOSSES['simple'](context, params, state, batch, keys)
  levels = jnp.round(8 * (batch['x'] + 1)).astype(jnp.int32).reshape(len(output.values), -1)
  checksum = levels @ jnp.arange(1, levels.shape[1] + 1) % 1021
  seen = {'index': batch['index'] * 1.0, 'checksum': checksum * 1.0}
  return output._replace(metrics=output.metrics | seen)


def full_disk(at: int) -> None:
  """From step `at` on no file may grow beyond 3 kB."""
  from ddpm_jax.training import report

  look = report.Report.look

  def wrapped(self, step, *arguments):
    look(self, step, *arguments)
    if step == at:
      resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

  signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  report.Report.look = wrapped


def cut_data(at: int, host: int = 0) -> None:
  """One host cannot read the batch of step `at`."""
  from ddpm_jax import data
  from ddpm_jax.errors import InputError

  begin = data.train_iterator

  def iterator(dataset, batch_size, seed, process_index, process_count):
    stream = begin(dataset, batch_size, seed, process_index, process_count)
    return Cut(stream, at) if process_index == host else stream

  class Cut:
    """A stream that ends in an error."""

    def __init__(self, stream, at):
      self.stream, self.at = stream, at
      self.get_state, self.set_state = stream.get_state, stream.set_state

    def __next__(self):
      if self.get_state()['next_index'] == self.at - 1:
        raise InputError('the file of example 7 is cut; replace it')
      return next(self.stream)

  data.train_iterator = iterator


def blind() -> None:
  """Nothing that is only looked at can be made."""
  from ddpm_jax.tasks import denoising
  from ddpm_jax.training import pictures, report

  def failing(kind):
    def fail(*arguments):
      raise ValueError(f'no {kind}')

    return fail

  pictures.write_png = failing('the preview')
  pictures.loss_curve = failing('the loss curve')
  report.Board = failing('TensorBoard')
  denoising.make_heldout = failing('held-out losses')


def die_by(signum: signal.Signals, at: int) -> None:
  """SIGKILL strikes while the checkpoint of step `at` is being saved, the others after the step."""
  from ddpm_jax.training import checkpoint, report

  owner, name = (
    (checkpoint.Checkpoints, 'save') if signum == signal.SIGKILL else (report.Report, 'look')
  )
  method = getattr(owner, name)

  def wrapped(self, step, *arguments):
    method(self, step, *arguments)
    if step == at:
      os.kill(os.getpid(), signum)

  setattr(owner, name, wrapped)


def main(workdir: str, settings: str, signum: str = '', at: str = '') -> int:
  """Trains; where told so, is hit by a signal, a full disk or a cut file on the way."""
  from ddpm_jax.errors import Failed, InputError, Interrupted
  from ddpm_jax.tasks.train import train

  if signum == 'full':
    full_disk(int(at))
  elif signum == 'data':
    cut_data(int(at))
  elif signum == 'looks':
    blind()
  elif signum:
    die_by(signal.Signals[signum], int(at))
  try:
    train(tiny(**json.loads(settings)), workdir)
  except Interrupted as error:
    print(error)
    return 128 + error.signum
  except InputError as error:
    print(error)
    return 2
  except Failed as error:
    print(error, flush=True)
    os._exit(1)
  return 0


if __name__ == '__main__':
  sys.exit(main(*sys.argv[1:]))
