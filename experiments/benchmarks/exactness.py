"""Trains every loss on a mixture whose exact denoiser is known, and on the digits; one table.

  python -m experiments.benchmarks.exactness --workdir=runs/exactness

One row for each loss, each entry of each of its factors, each parameterization and more: how far it
ends from the exact denoiser, and the error of eps that a short training on the digits leaves. Each
is a run in its own folder, so that the same command again goes on with what is missing. A few cores
need most of an hour for the whole table; --only=transport,progressive makes a smaller one.
"""

import jax
import rich
from absl import flags
from rich.table import Table

from configs import digits, mixture
from ddpm_jax.stores import path_of
from ddpm_jax.training import backend
from experiments import cli
from experiments.benchmarks.exactness_rows import (
  OTHER_OPTIMUM,
  error_of_eps,
  judged,
  trained,
  variants,
)

WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the runs.', required=True)
NUM_STEPS = flags.DEFINE_integer(
  'num_steps', 4000, 'Steps on the mixture.', lower_bound=1, upper_bound=2**31 - 1
)
DIGITS_STEPS = flags.DEFINE_integer(
  'digits_steps', 300, 'Steps on the digits.', lower_bound=1, upper_bound=2**31 - 1
)
ONLY = flags.DEFINE_list('only', [], 'Rows to make; all where it is empty.')


def main() -> None:
  """The command."""
  backend.prepare()
  folder = path_of(WORKDIR.value, '--workdir')
  table = Table('', 'excess error of x0', 'samples from data', 'digits, error of eps')
  for name, settings in variants().items():
    if ONLY.value and name not in ONLY.value:
      continue
    plane = trained(mixture.get_config(), settings, folder / 'mixture', name, NUM_STEPS.value)
    excess, distance = judged(plane)
    images = trained(digits.get_config(), settings, folder / 'digits', name, DIGITS_STEPS.value)
    mark = ' (another optimum)' if name in OTHER_OPTIMUM else ''
    row = name, f'{excess:.4f}{mark}', f'{distance:.4f}', f'{error_of_eps(images):.3f}'
    table.add_row(*row)
    rich.print(', '.join(row))
    jax.clear_caches()  # all rows' programs are more memory maps than Linux allows
  rich.print(table)


if __name__ == '__main__':
  cli.run(main)
