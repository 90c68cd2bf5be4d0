"""The training command, where the data of one host, --cut, fails at step 251."""

from absl import flags
from tiny import cut_data

from experiments import cli, train

CUT = flags.DEFINE_integer('cut', None, 'The host.')


def main():
  cut_data(251, CUT.value)
  train.main()


if __name__ == '__main__':
  cli.run(main)
