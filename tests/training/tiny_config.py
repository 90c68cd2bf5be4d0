"""The tiny run as a config file, for the real command."""

from tiny import SETTINGS

from ddpm_jax.config import base_config


def get_config():
  config = base_config()
  for path, value in SETTINGS.items():
    group, name = path.split('.')
    config[group][name] = value
  return config
