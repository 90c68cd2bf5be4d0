"""The training command, where a SIGTERM comes to one host or to all of them at one stage of it."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from absl import flags

from ddpm_jax.tasks import train as tasks_train
from ddpm_jax.training import checksums, hosts, loop
from ddpm_jax.training.checkpoint import Checkpoints
from ddpm_jax.training.report import Report
from experiments import cli, train

STAGE = flags.DEFINE_string('stage', None, 'Where it comes: a key of STAGES.')
STEP = flags.DEFINE_integer('step', 1, 'From which step on.')
STRUCK = flags.DEFINE_list('struck', ['0'], 'The hosts that it comes to.')

HEARD = 2.5  # seconds in which JAX's service, which looks once a second, is sure to hear of it
PACE = 0.05  # seconds that each step is made longer by, or hundreds would pass before it hears


class Stage(NamedTuple):
  """The first call of a function from STEP on; `reads` finds the step in its arguments."""

  owner: Any
  name: str
  after: bool = False
  wait: bool = True
  reads: Callable[..., int] = lambda *arguments: STEP.value


STAGES = {
  'joining': Stage(hosts, 'join', after=True),
  'reading the data': Stage(tasks_train, 'fit', after=True),
  'restoring': Stage(loop, 'begin', after=True),
  'compiling': Stage(loop, 'make_advance', after=True, wait=False),
  'a step': Stage(Report, 'look', wait=False, reads=lambda report, step, state: step),
  'held-out losses': Stage(Report, '_judge', reads=lambda report, step, heldout: step),
  'a preview': Stage(Report, '_show', reads=lambda report, step, preview: step),
  'saving': Stage(Checkpoints, 'save', after=True, reads=lambda self, step, *rest: step),
  'writing': Stage(checksums.StateHandler, 'finalize', after=True),
  'the last wait': Stage(Checkpoints, 'wait'),
  'the summary': Stage(Report, 'summary'),
}


def strike(stage: Stage) -> None:
  """Sends the signal at the stage."""
  function, struck = getattr(stage.owner, stage.name), []

  def wrapped(*arguments: Any, **named: Any) -> Any:
    if struck or stage.reads(*arguments) < STEP.value:
      return function(*arguments, **named)
    struck.append(True)
    if stage.after:
      result = function(*arguments, **named)
      terminate(stage.wait)
      return result
    terminate(stage.wait)
    return function(*arguments, **named)

  setattr(stage.owner, stage.name, wrapped)


def terminate(wait: bool) -> None:
  """Sends this process SIGTERM where it is one of the struck."""
  if str(jax.process_index()) in STRUCK.value:
    print('struck', flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(HEARD if wait else 0)


def slow_down() -> None:
  """Makes every step longer."""
  look = Report.look

  def slow(*arguments: Any) -> None:
    look(*arguments)
    time.sleep(PACE)

  Report.look = slow


def main():
  slow_down()
  if STAGE.value:
    strike(STAGES[STAGE.value])
  train.main()


if __name__ == '__main__':
  cli.run(main)
