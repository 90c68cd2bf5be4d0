"""From the tree that files and flags write to a checked Config, and to JSON and back."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, get_type_hints

from absl import logging
from ml_collections import ConfigDict, config_dict

from ddpm_jax.bounds import describe
from ddpm_jax.config.catalog import all_tables
from ddpm_jax.config.entries import find_entry, find_function
from ddpm_jax.config.plugins import PLUGIN, home, import_plugin, plugins_of, refuse_untrusted
from ddpm_jax.config.settings import CLASSES, Choice, Config, checked, converted, setting_fields
from ddpm_jax.config.signatures import RESERVED, keywords, kind, show
from ddpm_jax.config.tables import Group, Tables
from ddpm_jax.errors import InputError, choose

# What may differ between a run and its continuation.
RESUMABLE = (
  'training.num_steps',
  'training.max_skipped',
  'evaluation',
  'sampler',
  'parallel',
  'checkpoint.every_steps',
  'checkpoint.keep',
  'logging',
)


def base_config(tables: Tables | None = None) -> ConfigDict:
  """Every setting at its default; names and arguments of choices are unset, and typed.

  Locked: a setting that does not exist cannot be assigned by mistake.
  """
  tables = tables or all_tables()
  tree: dict[str, Any] = {'seed': setting_fields(Config)['seed'].default}
  for group, cls in CLASSES.items():
    hints = get_type_hints(cls, include_extras=True)
    # A default of None must be typed, or no flag could override it.
    tree[group] = {
      name: config_dict.placeholder(kind(hints[name])) if field.default is None else field.default
      for name, field in setting_fields(cls).items()
    }
    if issubclass(cls, Choice):
      tree[group] |= {
        'name': usual_of(cls) or config_dict.placeholder(str),
        'args': ConfigDict(),
        **{k: config_dict.placeholder(v) for k, v in tables.groups[group].arguments().items()},
      }
  return ConfigDict(tree).lock()


def from_config_dict(
  tree: ConfigDict | Mapping[str, Any],
  overrides: Mapping[str, Any] | None = None,
  tables: Tables | None = None,
) -> Config:
  """Checks the whole tree and freezes it.

  Where an override changes a choice's name, those of the file's arguments that the new choice does
  not take are dropped, with one line in the log.

  Args:
    tree: filled in from `base_config()`, or `to_json`'s.
    overrides: what was typed as flags, dotted: {'schedule.beta_end': 0.03}.
    tables: where names are looked up.

  Raises:
    InputError: naming config.group.setting, the value and the mend.
  """
  tables = tables or all_tables()
  typed = frozenset(overrides or ())
  branches = plain(tree, 'config')
  refuse_unknown(branches, ['seed', *CLASSES], 'config')
  found = read_settings(Config, branches, 'config', tables)
  unread = unread_groups(branches, tables)
  for group, cls in CLASSES.items():
    branch = branches.get(group) or {}
    if group in typed or not isinstance(branch, Mapping):
      first = 'name' if issubclass(cls, Choice) else next(iter(setting_fields(cls)))
      raise InputError(
        f'config.{group}: a group; give its settings singly: --config.{group}.{first}='
      )
    read = read_choice if issubclass(cls, Choice) else read_plain
    found[group] = (read_unset if group in unread else read)(group, branch, typed, tables)
  return Config(**found)


def read_settings(
  cls: type, branch: Mapping[str, Any], where: str, tables: Tables
) -> dict[str, Any]:
  """The settings of `cls` that the branch has, each checked."""
  hints = get_type_hints(cls, include_extras=True)
  found = {
    name: checked(field, hints[name], branch[name], f'{where}.{name}')
    for name, field in setting_fields(cls).items()
    if name in branch
  }
  for name, value in found.items():
    place, field = f'{where}.{name}'.removeprefix('config.'), f'{where}.{name}'
    if place in tables.options and value is not None:
      for choice in value if isinstance(value, tuple) else (value,):
        choose(tables.options[place], choice, field)
    if place in tables.factors and value is not None:
      find_entry(value, tables.factors[place], field, tables.trusted)
  return found


def read_plain(group: str, branch: Mapping[str, Any], typed: frozenset[str], tables: Tables) -> Any:
  """A group without a choice."""
  del typed
  cls = CLASSES[group]
  refuse_unknown(branch, setting_fields(cls), f'config.{group}')
  return cls(**read_settings(cls, branch, f'config.{group}', tables))


# What a task of one's own may leave unset: it need not diffuse, nor have a network of the package.
OPTIONAL = ('schedule', 'parameterization', 'sampler', 'loss', 'model')


def unread_groups(branches: Mapping[str, Any], tables: Tables) -> frozenset[str]:
  """The groups that the chosen task makes no use of; of a plug-in's, those left unset."""
  named = {g: b.get('name') for g, b in branches.items() if isinstance(b, Mapping)}
  task = str(named.get('task') or usual_of(CLASSES['task']))
  if PLUGIN.fullmatch(task):
    return frozenset(group for group in OPTIONAL if not named.get(group))
  return tables.unread.get(task, frozenset())


def read_unset(group: str, branch: Mapping[str, Any], typed: frozenset[str], tables: Tables) -> Any:
  """A choice that is not to be made; raises InputError where it is."""
  del typed
  cls, where = CLASSES[group], f'config.{group}'
  refuse_unknown(
    branch, ['name', 'args', *setting_fields(cls), *tables.groups[group].arguments()], where
  )
  for key, value in branch.items():
    if value and key not in setting_fields(cls):
      raise InputError(
        f'{where}.{key}: {value!r} is set, but the task makes no use of a {group}; leave it unset'
      )
  return cls('', {}, group, **read_settings(cls, branch, where, tables))


def read_choice(
  group: str, branch: Mapping[str, Any], typed: frozenset[str], tables: Tables
) -> Choice:
  """A choice, its arguments and the settings that every choice of the group has."""
  cls, row, where = CLASSES[group], tables.groups[group], f'config.{group}'
  own = ['name', 'args', *setting_fields(cls)]
  refuse_unknown(branch, [*own, *row.arguments()], where)
  name = branch.get('name') or usual_of(cls)
  if not name:
    raise InputError(f'{where}.name: unset; choose one of {", ".join(row.table)}')
  name = converted(name, str, f'{where}.name')
  function = find_function(name, row.table, f'{where}.name', row.fallback, tables.trusted)
  given = {key: value for key, value in branch.items() if value is not None and key not in own}
  args = branch.get('args') or {}
  if not isinstance(args, Mapping):
    raise InputError(f"{where}.args: {args!r} is not of the form {{'name': value}}")
  given |= {f'args.{key}': value for key, value in args.items()}
  takes = {key: each.annotation for key, each in keywords(function, row.supplied).items()}
  if PLUGIN.fullmatch(name):  # its own are in `args`; those that an entry has too may lie flat
    takes |= {f'args.{key}': hint for key, hint in takes.items()}
  refuse_foreign(group, name, takes, given, typed)
  arguments = {
    key.removeprefix('args.'): converted(value, takes[key], f'{where}.{key}')
    for key, value in given.items()
    if key in takes
  }
  refuse_unbound(where, name, function, row, arguments)
  return cls(name, arguments, group, **read_settings(cls, branch, where, tables))


def refuse_foreign(
  group: str,
  name: str,
  takes: Mapping[str, Any],
  given: Mapping[str, Any],
  typed: frozenset[str],
) -> None:
  """Arguments the choice does not take must be the file's, left from the choice it made."""
  foreign = [key for key in given if key not in takes]
  for key in foreign:
    path = f'{group}.{key}'
    if f'{group}.name' not in typed or any(f'{path}.'.startswith(f'{flag}.') for flag in typed):
      names = dict.fromkeys(each.removeprefix('args.') for each in takes)
      mend = f'it takes {", ".join(names)}' if names else 'it takes no arguments'
      raise InputError(
        f"config.{path}: {given[key]!r} is set, but '{name}' has no such argument; {mend}"
      )
  if foreign:
    dropped = ', '.join(f'{key}={given[key]!r}' for key in foreign)
    logging.warning("config.%s: '%s' does not take the file's %s: dropped", group, name, dropped)


def refuse_unbound(
  where: str, name: str, function: Callable, row: Group, arguments: Mapping[str, Any]
) -> None:
  """Binds the call to come to the function's signature, so that it fails here or not at all."""
  plugin = bool(PLUGIN.fullmatch(name))
  for key, each in keywords(function, row.supplied).items():
    if each.default is inspect.Parameter.empty and key not in arguments:
      field = f'{where}.args.{key}' if plugin and key not in row.arguments() else f'{where}.{key}'
      wanted = ', '.join(filter(None, (show(each.annotation), describe(each.annotation))))
      raise InputError(f"{field}: unset, and '{name}' has no default for it; give one {wanted}")
  signature = inspect.signature(function)
  ours = row.supplied if plugin else (row.supplied | RESERVED) & signature.parameters.keys()
  unknown = ours - signature.parameters.keys()
  if unknown and all(each.kind is not each.VAR_KEYWORD for each in signature.parameters.values()):
    raise InputError(
      f"{where}.name: '{name}' does not take {' and '.join(sorted(unknown))}, which the program "
      'gives it; add it to its arguments'
    )
  try:
    signature.bind(**dict.fromkeys(ours), **arguments)
  except TypeError as error:
    raise InputError(
      f"{where}: '{name}' cannot be called by its arguments' names: {error}"
    ) from error


def refuse_unknown(branch: Mapping[str, Any], known: Iterable[str], where: str) -> None:
  """Raises an InputError for a key of the branch that is not known."""
  known = list(known)
  for key in branch:
    if key not in known:
      raise InputError(no_setting(key, known, where))


# What settings were called before.
RENAMED = {
  'loss.time_law': 'loss.timestep_distribution',
  'loss.noise_law': 'loss.noise_distribution',
}


def no_setting(key: str, known: Iterable[str], where: str) -> str:
  """The message for a setting that does not exist."""
  now = RENAMED.get(f'{where}.{key}'.removeprefix('config.'))
  if now:
    return f'{where}.{key}: it is config.{now} now'
  near = difflib.get_close_matches(key, list(known), 1)
  mend = f"did you mean '{near[0]}'?" if near else f'{where} has {", ".join(sorted(known))}'
  if not near and 'args' in known:
    mend += f'; an argument of a plug-in alone is {where}.args.{key}'
  return f'{where}.{key}: no such setting; {mend}'


def plain(value: Any, where: str) -> Any:
  """A tree of dicts, tuples, numbers, strings, booleans and None: what JSON can hold."""
  if isinstance(value, ConfigDict):
    value = value.to_dict()
  if isinstance(value, Mapping):
    return {str(key): plain(child, f'{where}.{key}') for key, child in value.items()}
  if isinstance(value, (list, tuple)):
    return tuple(plain(child, where) for child in value)
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  raise InputError(
    f'{where}: {value!r} cannot be kept in config.json; a setting is a number, a string, a boolean '
    'or a tuple of them'
  )


def to_json(config: Config) -> dict[str, Any]:
  """The tree that `from_json` reads back to an equal config, also by way of a JSON file."""
  tree: dict[str, Any] = {'seed': config.seed}
  for group, cls in CLASSES.items():
    part = getattr(config, group)
    tree[group] = {name: getattr(part, name) for name in setting_fields(cls)}
    if isinstance(part, Choice):
      plugin = PLUGIN.fullmatch(part.name)
      arguments = {'args': part.arguments} if plugin else part.arguments
      tree[group] = {'name': part.name, **arguments, **tree[group]}
  return tree


def from_json(
  tree: Mapping[str, Any], tables: Tables | None = None, plugins: Collection[str] = ()
) -> Config:
  """The config that `to_json` wrote, checked anew.

  Args:
    tree: of a file, so that a stranger may have written it.
    tables: where names are looked up.
    plugins: the modules whose functions it may name besides; no other is imported.

  Raises:
    InputError: it names others, or as `from_config_dict`.
  """
  tables = (tables or all_tables())._replace(trusted=plugins)
  named = {f'config.{place}': name for place, name in plugins_of(tree, tables).items()}
  refuse_untrusted(named, plugins)
  return from_config_dict(tree, tables=tables)


def plain_group(tree: Mapping[str, Any], group: str) -> Any:
  """A group without a choice, as Training, of `to_json`'s tree; nothing else there is looked up."""
  branch = tree.get(group, {})
  if not isinstance(branch, Mapping):
    raise InputError(f'config.{group}: {branch!r} is no group of settings')
  return read_plain(group, branch, frozenset(), all_tables())


def modules_of(config: Config) -> tuple[str, ...]:
  """The modules that a person trusts who gives this config: its plug-ins', and their functions'."""
  found = plugins_of(to_json(config), all_tables())
  homes = (home(import_plugin(name, f'config.{place}')) for place, name in found.items())
  return tuple(sorted({*homes, *(name.split(':')[0] for name in found.values())}))


def differing(
  a: Mapping[str, Any], b: Mapping[str, Any], free: Collection[str] = RESUMABLE
) -> list[str]:
  """The settings outside of `free` by which two trees of `to_json` differ.

  By those outside of RESUMABLE they are different experiments, and neither resumes the other. A
  setting that a tree of an earlier version lacks has its default. What they name is not looked up.
  """
  defaults = {'seed': setting_fields(Config)['seed'].default} | {
    f'{group}.{name}': field.default
    for group, cls in CLASSES.items()
    for name, field in setting_fields(cls).items()
  }
  defaults |= {f'{group}.name': usual_of(cls) for group, cls in CLASSES.items() if usual_of(cls)}
  # By way of JSON, where tuples are lists.
  left, right = (json.loads(json.dumps({**defaults, **dict(leaves(tree))})) for tree in (a, b))
  return [
    field
    for field in {**left, **right}
    if (field in left, left.get(field)) != (field in right, right.get(field))
    and not is_free(field, free)
  ]


def usual_of(cls: type) -> str:
  """The name of a choice where none is given; '' where there is none."""
  return getattr(cls, 'usual', '')


def upgraded(tree: Mapping[str, Any]) -> dict[str, Any]:
  """The settings of an earlier record, a tree or dotted leaves, as they are written now.

  Some had other names; in format 1 the model said what is trained, and now config.task.name does.
  """
  tree = renamed(tree)
  model = tree.get('model')
  name = model.get('name') if isinstance(model, Mapping) else tree.get('model.name')
  if name != 'autoencoder' or 'task' in tree or 'task.name' in tree:
    return tree
  task: dict[str, Any] = {'task': {'name': 'autoencoding'}}
  return {**tree, **(task if isinstance(model, Mapping) else dict(leaves(task)))}


def renamed(tree: Mapping[str, Any]) -> dict[str, Any]:
  """A tree of settings or its dotted leaves, those of RENAMED by their names of now."""
  found = {RENAMED.get(key, key): value for key, value in tree.items()}
  for (group, old), (_, new) in ((a.split('.'), b.split('.')) for a, b in RENAMED.items()):
    branch = found.get(group)
    if isinstance(branch, Mapping) and old in branch:
      found[group] = {new if key == old else key: value for key, value in branch.items()}
  return found


def is_free(field: str, free: Collection[str]) -> bool:
  """Whether a setting, dotted, is one of `free` or below one."""
  return any(f'{field}.'.startswith(f'{name}.') for name in free)


def leaves(tree: Mapping[str, Any], prefix: str = '') -> Iterable[tuple[str, Any]]:
  """(dotted name, value) of every leaf."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
