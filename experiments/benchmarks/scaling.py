"""Predicts how training scales from 8 to 4,096 chips.

  python -m experiments.benchmarks.scaling --config=configs/cifar10.py --batch_per_chip=16

What a chip computes is counted in the traced train step, what it sends is the gradient; its rates
are the maker's. Both bounds are told: sending after computing, and hidden behind it.
"""

import dataclasses

import jax
import rich
from absl import flags
from rich.table import Table

from ddpm_jax import models
from ddpm_jax.config import from_config_dict
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.checks import batch_and_keys
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training import backend
from ddpm_jax.training.advance import make_step
from ddpm_jax.training.parallel import PARALLEL
from experiments import cli
from experiments.benchmarks.chips import CHIPS, SHARE, efficiency
from experiments.benchmarks.flops import count_flops

CONFIG = cli.config_flag()
BATCH = flags.DEFINE_integer('batch_per_chip', 16, 'Images on each chip.', 1, 10**6)
RATE = flags.DEFINE_float('share', SHARE, "Of a chip's rate, reached by the step alone.", 0.01, 1.0)
COUNTS = (8, 32, 256, 512, 1024, 4096)


def main() -> None:
  """The command."""
  backend.prepare()
  config = from_config_dict(CONFIG.value, cli.overrides())
  config = dataclasses.replace(
    config, dataset=dataclasses.replace(config.dataset, batch_size=BATCH.value)
  )
  job = make_job(build(config))._replace(parallel=PARALLEL['jit'](jax.devices()[:1]))
  per_image = count_flops(make_step(job), job.shapes, job.frozen, batch_and_keys(job)[0])
  per_image /= BATCH.value
  parameters = models.num_params(job.shapes.params)
  table = Table('chips', *(f'{name}, {part}' for name in CHIPS for part in ('apart', 'hidden')))
  for count in COUNTS:
    rows = [
      efficiency(
        chip, count, parameters=parameters, flops=per_image, batch=BATCH.value, share=RATE.value
      )
      for chip in CHIPS.values()
    ]
    table.add_row(f'{count:,}', *(f'{share:.1%}' for row in rows for share in row))
  rich.print(
    f'{parameters:,} parameters, {4 * parameters / 1e6:.0f} MB of gradient; {per_image / 1e9:.1f} '
    f'GFLOP an image, {BATCH.value} images a chip at {RATE.value:.0%} of its rate'
  )
  rich.print(table)


if __name__ == '__main__':
  cli.run(main)
