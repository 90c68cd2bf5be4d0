"""The training command, where one host, --stale, sees folders of checkpoints empty."""

import os

from absl import flags

from experiments import cli, train

STALE = flags.DEFINE_integer('stale', None, 'The host.')


def main():
  listed = os.listdir

  def stale(path='.'):
    return [] if os.fspath(path).endswith('checkpoints') else listed(path)

  if flags.FLAGS.process_id == STALE.value:
    os.listdir = stale
  train.main()


if __name__ == '__main__':
  cli.run(main)
