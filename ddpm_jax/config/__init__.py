"""Settings: a ConfigDict while files and flags write them, frozen dataclasses from then on.

`base_config` is the tree that a config file fills in and `--config.a.b=v` overrides;
`from_config_dict` checks it once and returns a `Config`. A group is plain (its settings are the
fields of a dataclass) or a choice: the name of an entry in a table and, flat beside it, the
keyword arguments of that entry, read from its signature. A choice may also be a plug-in,
name='package.module:function', with its own arguments in `args`.
"""

from ddpm_jax.config.catalog import all_tables
from ddpm_jax.config.entries import find_entry
from ddpm_jax.config.origin import plugin_sources, provenance
from ddpm_jax.config.settings import CLASSES, Choice, Config, naming, setting_fields
from ddpm_jax.config.tables import Group, Tables
from ddpm_jax.config.tree import (
  RENAMED,
  RESUMABLE,
  base_config,
  differing,
  from_config_dict,
  from_json,
  is_free,
  leaves,
  modules_of,
  no_setting,
  plain_group,
  to_json,
  upgraded,
)

__all__ = [
  'CLASSES',
  'RENAMED',
  'RESUMABLE',
  'Choice',
  'Config',
  'Group',
  'Tables',
  'all_tables',
  'base_config',
  'differing',
  'find_entry',
  'from_config_dict',
  'from_json',
  'is_free',
  'leaves',
  'modules_of',
  'naming',
  'no_setting',
  'plain_group',
  'plugin_sources',
  'provenance',
  'setting_fields',
  'to_json',
  'upgraded',
]
