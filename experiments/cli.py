"""What every command shares: flags, errors in one line, exit codes.

Exit codes: 0; 2 for bad input; 130 and 143 where Ctrl-C or SIGTERM ended it; 1 where the disk is
full or another host is lost, in one line, and with a traceback for anything else.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import logging
import operator
import os
import pathlib
import re
import signal
import stat
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags import tuple_parser

from ddpm_jax import logs
from ddpm_jax.bounds import describe
from ddpm_jax.errors import Failed, InputError, Interrupted
from ddpm_jax.files import refusal
from ddpm_jax.stores import is_store, path_of

if TYPE_CHECKING:  # it imports JAX
  from ddpm_jax.config import Config

FLAGS = flags.FLAGS
HELP = {'--help', '-help', '-h', '--helpfull', '--helpshort'}
MODULE = re.compile(r'[A-Za-z_][\w.]*')
OVERRIDE = re.compile(r'--?(?:no)?config\.([^=]+)')
ARGUMENT = re.compile(r'--?config\.(\w+)\.args(?:\.(\w+)=(.*)|=(\{.*\}))', re.DOTALL)
WORDS = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'a string'}


class Unsettable(flags.ArgumentParser):
  """Reads one setting; 'None' leaves it unset (ml_collections makes it the string, or fails)."""

  def __init__(self, parser: flags.ArgumentParser, words: str):
    self.parser, self.words = parser, words

  def parse(self, argument: Any) -> Any:
    if argument is None or argument == 'None':
      return None
    try:
      return self.parser.parse(argument)
    except (TypeError, ValueError):
      raise ValueError(f"'{argument}' is not {self.words}") from None

  def flag_type(self) -> str:
    return self.parser.flag_type()


PARSERS = {
  kind: Unsettable(parser, WORDS[kind])
  for kind, parser in {
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    bool: flags.BooleanParser(),
    str: flags.ArgumentParser(),
  }.items()
}
for _type, _parser in PARSERS.items():
  config_flags.register_flag_parser_for_type(_type, _parser)


class Tuple(tuple_parser.TupleParser):
  """Reads a setting that is a tuple, (1, 2); a single value is read as a tuple of it alone."""

  def parse(self, argument: Any) -> Any:
    try:
      return super().parse(argument)
    except (SyntaxError, TypeError, ValueError):
      raise ValueError(f"'{argument}' is not a tuple, as (1, 2) is") from None


config_flags.register_flag_parser_for_type(tuple, Tuple())


@functools.cache
def config_flag(required: bool = True) -> flags.FlagHolder:
  """Defines --config, whose value is a ConfigDict; the command needs it, unless told otherwise."""
  argv, sys.argv = sys.argv, sys.argv[:1]  # or ml_collections reads flag files, and trips, already
  try:
    holder = config_flags.DEFINE_config_file(
      'config', None, 'The experiment, such as configs/digits.py; --config.a.b=v overrides it.'
    )
  finally:
    sys.argv = argv
  if required:
    flags.mark_flag_as_required('config')
  return holder


@functools.cache
def plugins_flag() -> flags.FlagHolder:
  """Defines --plugins, the modules whose functions the config in a folder may name."""
  holder = flags.DEFINE_list(
    'plugins', [], "Modules whose functions a run's folder may name, as my_losses,my_nets."
  )
  flags.register_validator(
    holder,
    lambda names: all(MODULE.fullmatch(name) for name in names),
    'give modules alone, as my_losses where a run names my_losses:cubic',
  )
  return holder


@functools.cache
def host_flags() -> dict[str, flags.FlagHolder]:
  """Defines the flags by which a command joins others of its kind on other hosts."""
  return {
    'distributed': flags.DEFINE_bool(
      'distributed', False, 'Join the other hosts of this cluster: Cloud TPU, GKE, Slurm, Open MPI.'
    ),
    'coordinator': flags.DEFINE_string('coordinator', None, "Elsewhere: host 0's address:port."),
    'num_processes': flags.DEFINE_integer('num_processes', None, 'How many.', lower_bound=1),
    'process_id': flags.DEFINE_integer('process_id', None, 'Which, from 0.', lower_bound=0),
    'host_timeout': flags.DEFINE_integer(
      'host_timeout',
      300,
      'Seconds to wait for hosts that have not come or are silent.',
      lower_bound=1,
    ),
  }


def join(stops_together: bool = False) -> None:
  """Joins the other hosts where flags say so; before anything asks for devices.

  Args:
    stops_together: whether SIGTERM is left to JAX's service, which the command asks for the step
      at which all hosts end, as training does. What has nothing to save ends at once.
  """
  from ddpm_jax.training import hosts

  given = {name: holder.value for name, holder in host_flags().items()}
  explicit = [given[name] for name in ('coordinator', 'num_processes', 'process_id')]
  if given['distributed'] or any(value is not None for value in explicit):
    hosts.join(*explicit, timeout=given['host_timeout'])
    for signum in [signal.SIGINT] if stops_together else [signal.SIGINT, signal.SIGTERM]:
      signal.signal(signum, lambda number, frame: hosts.leave(128 + number, ended_by(number)))


def overrides() -> dict[str, Any]:
  """What was typed after --config, dotted: {'loss.name': 'hybrid'}; nothing without one."""
  flag = FLAGS['config']
  return {} if flag.value is None else dict(config_flags.get_override_values(flag))


def run(main: Callable[[], None]) -> NoReturn:
  """Parses the command line, calls main() and exits."""
  quiet()  # first: absl looks for what else writes to the terminal, by the stream that it has now
  logs.outlive_terminal()
  signal.signal(signal.SIGTERM, interrupt)
  try:
    code = exit_code(main)
  except Exception:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  if 'jax' in sys.modules:
    from ddpm_jax.training import hosts

    hosts.part(code)
  if code == 1:
    os._exit(code)  # threads that a failure left behind complain, or wait, as Python ends
  sys.exit(code)


def interrupt(signum: int, frame: Any) -> NoReturn:
  """The handler of SIGTERM until the training loop, which saves first, sets its own."""
  del frame
  raise Interrupted(signum, ended_by(signum))


def ended_by(signum: int) -> str:
  """The last line of a program that had nothing to save."""
  return f'ended by {signal.Signals(signum).name}'


def exit_code(main: Callable[[], None]) -> int:
  """Parses the command line and calls main(); complains in one line of bad input."""
  try:
    if HELP & set(sys.argv[1:]):
      print(help_page(main))
      return 0
    parse(sys.argv)
    main()
  except InputError as error:
    return complain(error, 2)
  except Failed as error:
    return complain(error, 1)
  except OSError as error:
    if line := refusal(error):
      return complain(line, 1)
    raise
  except Interrupted as error:
    return complain(error, 128 + error.signum)
  except KeyboardInterrupt:
    return complain('interrupted', 128 + signal.SIGINT)
  return 0


def complain(message: object, code: int) -> int:
  """Prints one line on stderr."""
  print(' '.join(str(message).split()), file=sys.stderr)
  return code


def quiet() -> None:
  """Warnings alone, without absl's prefix of time and place, so that a progress bar stays whole."""
  absl_logging.use_absl_handler()
  absl_logging.get_absl_handler().setFormatter(logging.Formatter('%(message)s'))


def parse(argv: list[str]) -> None:
  """Reads the flags and the config file; raises InputError for what is wrong with either."""
  try:
    argv = gathered(FLAGS.read_flags_from_files(argv, force_gnu=False))
  except (flags.Error, OSError, ValueError) as error:
    reason = re.sub(r'^ERROR:: .*\[Errno \d+\] ', '', str(error))
    raise InputError(f'--flagfile: cannot be read ({reason})') from error
  sys.argv = argv  # where ml_collections looks for what overrides the config
  if 'config' in FLAGS:
    check_overrides(argv)
  try:
    rest = FLAGS(argv)
  except flags.Error as error:
    raise InputError(explain(error)) from error
  if 'workdir' in FLAGS:
    check_folder('--workdir', FLAGS['workdir'].value)
  if len(rest) > 1:
    raise InputError(f"'{rest[1]}': not a flag; flags are written --name=value")
  if 'config' in FLAGS:
    say_tuples(argv)


def gathered(argv: list[str]) -> list[str]:
  """--config.model.args.width=8 as --config.model.args={'width': 8}, as ml_collections reads it."""
  found: dict[str, dict[str, Any]] = {}
  for word in argv:
    if match := ARGUMENT.fullmatch(word):
      group, name, value, whole = match.groups()
      given = {name: literal(value)} if name else literal(whole)
      if not isinstance(given, dict):
        raise InputError(f"--config.{group}.args: '{whole}' is not of the form {{'name': value}}")
      found.setdefault(group, {}).update(given)
  rest = [word for word in argv if not ARGUMENT.fullmatch(word)]
  return rest + [f'--config.{group}.args={values!r}' for group, values in found.items()]


def check_folder(flag: str, folder: str | None) -> None:
  """Raises InputError where a folder could neither be there nor be made; None passes."""
  if folder == '':
    raise InputError(f'{flag}: is empty; name a folder')
  try:
    found = None if folder is None else path_of(folder, flag)
    if found and not is_store(found) and not stat.S_ISDIR(os.stat(found).st_mode):
      raise InputError(f"{flag}: '{folder}' is a file, not a folder")
  except FileNotFoundError:
    return
  except OSError as error:
    short = textwrap.shorten(folder or '', 100, placeholder='…')
    raise InputError(f"{flag}: '{short}' cannot be a folder ({error.strerror})") from error


def check_overrides(argv: list[str]) -> None:
  """Every --config.a.b=v must name a setting of the config file, which must come first."""
  position = next((i for i, word in enumerate(argv) if re.match(r'--?config(=|$)', word)), None)
  typed = [(i, match[1]) for i, word in enumerate(argv) if (match := OVERRIDE.match(word))]
  if position is None:
    return
  if typed and typed[0][0] < position:
    raise InputError(f'--config.{typed[0][1]}: comes before --config; give --config=FILE first')
  _, equals, path = argv[position].partition('=')
  config = load(path if equals else ''.join(argv[position + 1 : position + 2]))
  for _, field in typed:
    check_field(config, field)


def say_tuples(argv: list[str]) -> None:
  """Says how a single value that was typed for a tuple is read."""
  for field, value in overrides().items():
    texts = [word.partition('=')[2] for word in argv if re.match(rf'--?config\.{field}=', word)]
    if isinstance(value, tuple) and texts and not isinstance(literal(texts[-1]), (tuple, list)):
      absl_logging.warning('config.%s: %s is read as %r', field, texts[-1], value)


def literal(text: str) -> Any:
  """The value that a text is as Python writes it; the text itself where it is none."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return text


def load(path: str) -> ConfigDict:
  """The config of a file 'path.py' or 'path.py:argument'."""
  file = path.split(':', 1)[0]
  if os.path.isdir(file):
    raise InputError(f"--config: '{file}' is a folder, not a file")
  if not os.path.isfile(file):
    near = difflib.get_close_matches(file, map(str, pathlib.Path('configs').glob('[!_]*.py')), 1)
    hint = f"; did you mean '{near[0]}'?" if near else ''
    raise InputError(f"--config: there is no file '{file}'{hint}")
  try:
    with open(file, 'rb'):
      config = FLAGS['config'].parser.parse(path)
  except OSError as error:
    raise InputError(f"--config: '{file}' cannot be read ({error.strerror})") from error
  except (Exception, SystemExit) as error:
    place = blame(error, file)
    if place is None:  # Not the file's fault.
      raise
    raise InputError(place) from error
  if not isinstance(config, ConfigDict):
    raise InputError(f'{file}: get_config() must return a ConfigDict, not {config!r}')
  return config


def blame(error: BaseException, file: str) -> str | None:
  """Where in the config file an error arose, and what it was; None where it was elsewhere."""
  if isinstance(error, SyntaxError):
    place = f'{error.filename or file}, line {error.lineno}' if error.lineno else file
    return f'{place}: {error.msg}'
  path = os.path.abspath(file)
  for link in chain(error):
    frames = traceback.extract_tb(link.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == path]
    if lines:
      return f'{file}, line {lines[-1]}: {words_of(link)}'
  if 'get_config' in str(error):
    return f'{file}: has no function get_config()'
  return None


def chain(error: BaseException | None) -> Iterator[BaseException]:
  """The error and those that led to it."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


def words_of(error: BaseException) -> str:
  """An error of the config file in a few words; ml_collections prints the whole tree."""
  text = str(error)
  if isinstance(error, SystemExit):
    return f'exit({text}) is called; a config file must return its settings'
  if missing := re.search(r'Key \\?"(\w+)\\?" does not exist', text):
    near = re.search(r'Did you mean \\?"(\w+)', text)
    now = renamed_to(missing[1]) or (near[1] if near else None)
    return f"no such setting '{missing[1]}'" + (f"; did you mean '{now}'?" if now else '')
  return text if isinstance(error, InputError) else f'{type(error).__name__}: {text}'


def renamed_to(key: str) -> str | None:
  """The name that a setting, without its group, has today; None where it had no other."""
  from ddpm_jax.config import RENAMED

  names = {a.rpartition('.')[2]: b.rpartition('.')[2] for a, b in RENAMED.items()}
  return names.get(key)


def check_field(config: ConfigDict, field: str) -> None:
  """Raises InputError unless `field`, dotted, is one setting of the config."""
  from ddpm_jax.config import no_setting

  node, where = config, 'config'
  for key in field.split('.'):
    if where.endswith('.args') and key not in node:
      raise InputError(f"{where}.{key}: give a plug-in's argument as --{where}.{key}=…")
    if not isinstance(node, ConfigDict):
      raise InputError(f'{where}: has no settings of its own, so no {where}.{key}')
    if key not in node:
      raise InputError(no_setting(key, node, where))
    node, where = node[key], f'{where}.{key}'
  if isinstance(node, ConfigDict) and not where.endswith('.args'):
    first = 'name' if 'name' in node else next(iter(node))
    raise InputError(f'{where}: a group; give its settings singly, as --{where}.{first}=…')


def read_value(config: ConfigDict, field: str, text: str) -> Any:
  """The value that --config.FIELD=TEXT would set; raises InputError as that would."""
  check_field(config, field)
  *groups, name = field.split('.')
  node = functools.reduce(operator.getitem, groups, config)
  parser = PARSERS.get(node.get_type(name))
  try:
    return parser.parse(text) if parser else ast.literal_eval(text)
  except (ValueError, SyntaxError) as error:
    if parser:
      raise InputError(f'config.{field}: {error}') from error
    return text  # a string, where any literal may stand


def read_option(text: str) -> tuple[str, Any]:
  """'eta=0.5' as ('eta', 0.5)."""
  name, equals, value = text.partition('=')
  if not equals:
    raise InputError(f"--option: '{text}' is not of the form name=value, as eta=0.5")
  return name, literal(value)


def overridden(config: ConfigDict, variant: Mapping[str, Any]) -> Config:
  """The config with what was typed and, over that, a variant's settings: {'loss.name': 'hybrid'}.

  Raises:
    InputError: as for the same settings given as flags.
  """
  from ddpm_jax.config import from_config_dict

  tree = config.copy_and_resolve_references()
  for field, value in variant.items():
    check_field(tree, field)
    *groups, name = field.split('.')
    node = functools.reduce(operator.getitem, groups, tree)
    try:
      node[name] = value
    except (TypeError, ValueError) as error:
      raise InputError(f'config.{field}: {error}') from error
  return from_config_dict(tree, {**overrides(), **variant})


def explain(error: flags.Error) -> str:
  """absl's complaint in one line."""
  text = str(error)
  if isinstance(error, flags.UnrecognizedFlagError):
    if error.flagname.startswith('config.'):
      return f'--{error.flagname}: there is no --config before it; give --config=configs/….py'
    near = difflib.get_close_matches(error.flagname, list(FLAGS), 1)
    return f'--{error.flagname}: no such flag' + (f"; did you mean '--{near[0]}'?" if near else '')
  if match := re.search(r'Flag --(\w+) must have a value', text):
    return f'--{match[1]} is missing: {FLAGS[match[1]].help}'
  if match := re.match(r'flag --(config\.\S+?)=.*?: (.*)', text, re.DOTALL):
    return f'{match[1]}: {match[2]}'
  return text.removeprefix('flag ')


def help_page(main: Callable[[], None]) -> str:
  """The command's docstring, its flags and, where it takes a config, every setting."""
  module = sys.modules[main.__module__]
  owners = [sys.argv[0] if main.__module__ == '__main__' else main.__module__, __name__]
  known = FLAGS.flags_by_module_dict()
  mine = {flag.name: flag for owner in owners for flag in known.get(owner, [])}
  lines = [(module.__doc__ or '').strip(), '', 'Flags:']
  for flag in mine.values():
    lines += entry(f'--{flag.name}', flag.default, flag.help)
  if 'config' in mine:
    lines += ['', *settings_help()]
  return '\n'.join(lines)


def settings_help() -> Iterable[str]:
  """Every setting with its default, and every choice with the arguments that it takes."""
  from ddpm_jax.config import CLASSES, all_tables, setting_fields
  from ddpm_jax.config.signatures import keywords

  tables = all_tables()
  yield 'Settings, each --config.group.setting=value after --config:'
  for group, cls in CLASSES.items():
    yield f'  {group}: {inspect.getdoc(cls)}'
    if row := tables.groups.get(group):
      for name, function in row.table.items():
        takes = keywords(function, row.supplied).values()
        yield from entry(f'  name={name}', None, '; '.join(map(argument, takes)))
    hints = get_type_hints(cls, include_extras=True)
    for name, field in setting_fields(cls).items():
      options = ', '.join(tables.options.get(f'{group}.{name}', ())) or describe(hints[name])
      doc = field.metadata['doc'] + (f': {options}' if options else '')
      yield from entry(f'  {name}', field.default, doc)


def argument(parameter: inspect.Parameter) -> str:
  """An argument with its default and its bounds: 'eta=0.0 in [0, 1]'."""
  bare = parameter.replace(annotation=inspect.Parameter.empty)
  return f'{bare} {describe(parameter.annotation)}'.strip()


def entry(name: str, default: Any, doc: str) -> list[str]:
  """A name with what it means, wrapped beside it."""
  text = doc + ('' if default is None else f' [{default}]')
  return textwrap.wrap(text, 100, initial_indent=f'  {name:<26} ', subsequent_indent=' ' * 29) or [
    f'  {name}'
  ]
