"""Trains an experiment, or goes on with one that was interrupted.

  python -m experiments.train --config=configs/digits.py --workdir=runs/digits

The folder gets config.json, metrics.jsonl, TensorBoard's events, checkpoints/, samples/*.png,
loss.png and logs/ with the log of each host. The same command again goes on from the newest
checkpoint.
"""

from absl import flags

from ddpm_jax.config import from_config_dict
from ddpm_jax.tasks.train import train
from ddpm_jax.training import backend, metadata
from experiments import cli

CONFIG = cli.config_flag()
HOSTS = cli.host_flags()
WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
PLUGINS = cli.plugins_flag()
WATCH = flags.DEFINE_bool(
  'watch_metadata', False, "End saved where Google's metadata server tells of the machine's end."
)


def main() -> None:
  """The command."""
  config = from_config_dict(CONFIG.value, cli.overrides())
  backend.prepare(config.training.deterministic)
  cli.join(stops_together=True)
  if WATCH.value:
    metadata.watch()
  train(config, WORKDIR.value, PLUGINS.value)


if __name__ == '__main__':
  cli.run(main)
