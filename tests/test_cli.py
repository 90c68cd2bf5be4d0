"""The commands' shared wrapper: each mistake is one line on stderr, and its own exit code."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# A config without the package's tables, so that neither JAX nor Flax is imported.
CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(size='8'):
  model = ConfigDict({'name': 'unet', 'channels': int(size), 'dropout': 0.1, 'args': ConfigDict()})
  model.sizes = (1, 2)
  model.kind = config_dict.placeholder(str)
  model.rate = config_dict.placeholder(float)
  return ConfigDict({'seed': 0, 'flip': False, 'model': model}).lock()
"""

MAIN = '''
"""Trains nothing."""
from absl import flags
from ddpm_jax.errors import InputError, Interrupted
from experiments import cli

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is kept.')

def main():
  """Does what the workdir says."""
  if WORKDIR.value == 'taken':
    raise InputError('--workdir: taken\\nby another')
  if WORKDIR.value == 'broken':
    raise ValueError('a mistake of ours')
  if WORKDIR.value == 'full':
    raise OSError(28, 'No space left on device', 'full/report.json')
  if WORKDIR.value == 'saved':
    raise Interrupted(2, 'saved at step 3')
  if WORKDIR.value == 'waiting':
    import time
    print('ready', flush=True)
    time.sleep(60)
  print(CONFIG.value.to_dict(), cli.overrides())

if __name__ == '__main__':
  cli.run(main)
'''


MISTAKES = {
  'no config': ((), '--config is missing'),
  'no file': (('--config=god.py',), "there is no file 'god.py'"),
  'unknown setting': (
    ('--config=good.py', '--config.model.channls=64'),
    "config.model.channls: no such setting; did you mean 'channels'?",
  ),
  'below a setting': (('--config=good.py', '--config.seed.x=1'), 'config.seed'),
  'whole group': (('--config=good.py', "--config.model={'name': 'x'}"), 'config.model: a group'),
  'wrong type': (
    ('--config=good.py', '--config.model.channels=1.5'),
    "config.model.channels: '1.5' is not an integer",
  ),
  'wrong placeholder': (
    ('--config=good.py', '--config.model.rate=high'),
    "config.model.rate: 'high' is not a number",
  ),
  'plug-in argument': (
    ('--config=good.py', '--config.model.args.k', '1'),
    "config.model.args.k: give a plug-in's argument as --config.model.args.k=…",
  ),
  'no tuple': (
    ('--config=good.py', '--config.model.sizes=(1,'),
    "config.model.sizes: '(1,' is not a tuple, as (1, 2) is",
  ),
  'no flag file': (
    ('--flagfile=nowhere',),
    "--flagfile: cannot be read (No such file or directory: 'nowhere')",
  ),
  'a folder of flags': (('--flagfile=.',), '--flagfile: '),
  'empty workdir': (('--config=good.py', '--workdir='), '--workdir: is empty; name a folder'),
  'long workdir': (
    ('--config=good.py', '--workdir=' + 'x' * 300),
    'cannot be a folder (File name too long)',
  ),
  'a file for a workdir': (
    ('--config=good.py', '--workdir=good.py'),
    "--workdir: 'good.py' is a file, not a folder",
  ),
  'below a file': (
    ('--config=good.py', '--workdir=good.py/run'),
    "'good.py/run' cannot",
  ),
  'a folder for a config': (('--config=.',), "--config: '.' is a folder, not a file"),
  'order': (('--config.seed=1', '--config=good.py'), '--config.seed: comes before --config'),
  'no config before': (('--config.seed=1',), '--config.seed: there is no --config'),
  'unknown flag': (
    ('--config=good.py', '--wrkdir=x'),
    "--wrkdir: no such flag; did you mean '--workdir'?",
  ),
  'no flag': (('--config=good.py', 'seed=1'), "'seed=1': not a flag"),
  'the main says so': (('--config=good.py', '--workdir=taken'), '--workdir: taken by another'),
}

FILES = [
  ('def get_config(:', 'bad.py, line 1: '),
  ('import nowhere_at_all', 'bad.py, line 1: ModuleNotFoundError'),
  ('def get_config():\n  return 1 / 0', 'bad.py, line 2: ZeroDivisionError'),
  ('def get_config():\n  return int("x")', 'bad.py, line 2: ValueError'),
  ('def get_config():\n  return 3', 'bad.py: get_config() must return a ConfigDict'),
  ('def get_confg():\n  pass', 'bad.py: has no function get_config()'),
  (
    'from good import get_config as good\n'
    'def get_config():\n  config = good()\n  config.model.channls = 1\n  return config',
    "bad.py, line 4: no such setting 'channls'; did you mean 'channels'?",
  ),
  (
    'from ddpm_jax.config import base_config as base\n'
    'def get_config():\n  config = base()\n  config.loss.noise_law = "white"\n  return config',
    "bad.py, line 4: no such setting 'noise_law'; did you mean 'noise_distribution'?",
  ),
  (
    'from good import get_config as good\n'
    'def get_config():\n  config = good()\n  config.model.rate = "x"\n  return config',
    'bad.py, line 4: TypeError',
  ),
  ('def get_config():\n  exit(3)', 'bad.py, line 2: exit(3) is called'),
  ('import sys\nsys.exit()', 'bad.py, line 2: exit() is called'),
  ('x = 1\0', 'bad.py: source code string cannot contain null bytes'),
  ('# \udcff', 'bad.py'),
]

SOUND = {
  'overrides': (
    '--config=good.py',
    '--config.model.channels=64',
    '--config.model.sizes=(3,)',
    '--config.flip',
    '--config.model.kind=None',
  ),
  'argument': ('--config=good.py:16',),
  'plug-in': (
    '--config=good.py',
    '--config.model.args.k=1',
    '--config.model.args.law=fast',
    "--config.model.args={'n': (2, 3)}",
  ),
  'one for a tuple': ('--config=good.py', '--config.model.sizes=2'),
  'broken': ('--config=good.py', '--workdir=broken'),
  'full': ('--config=good.py', '--workdir=full'),
  'saved': ('--config=good.py', '--workdir=saved'),
  'help': ('--help',),
}

# Importing JAX takes seconds, so one process imports, and each command line is a fork of it.
FORKS = """
import json, os, sys
sys.argv = ['main.py', '--flagfile=nowhere']  # no flag is read before a command runs
import main
from ddpm_jax import config

config.all_tables()

for number, arguments in enumerate(json.load(open('lines.json'))):
  if not (child := os.fork()):
    for stream, name in (1, 'out'), (2, 'err'):
      os.dup2(os.open(f'{number}.{name}', os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = ['main.py', *arguments]
    try:
      main.cli.run(main.main)
    except BaseException as error:
      code = error.code if isinstance(error, SystemExit) else sys.excepthook(*sys.exc_info()) or 1
    sys.stdout.flush()
    os._exit(code)  # JAX's own leave-taking takes seconds
  open(f'{number}.code', 'w').write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""


def start(folder, *arguments):
  environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'PYTHONDONTWRITEBYTECODE': '1'}
  return subprocess.Popen(
    [sys.executable, *arguments],
    cwd=folder,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('cli')
  (path / 'main.py').write_text(MAIN)
  (path / 'forks.py').write_text(FORKS)
  (path / 'good.py').write_text(CONFIG)
  for number, (body, _) in enumerate(FILES):
    (path / f'bad{number}.py').write_text(body, errors='surrogateescape')
  return path


@pytest.fixture(scope='module')
def command(folder):
  """A command line's exit code, standard output and standard error."""
  lines = [list(arguments) for arguments, _ in MISTAKES.values()]
  lines += [[f'--config=bad{number}.py'] for number in range(len(FILES))]
  lines += [list(arguments) for arguments in SOUND.values()]
  (folder / 'lines.json').write_text(json.dumps(lines))
  process = start(folder, 'forks.py')
  _, err = process.communicate(timeout=120)
  assert process.returncode == 0, err

  def answer(*arguments):
    stem = folder / str(lines.index(list(arguments)))
    texts = (stem.with_suffix(f'.{end}').read_text() for end in ('code', 'out', 'err'))
    code, out, err = texts
    return int(code), out, err

  return answer


def test_overrides(command):
  code, out, err = command(*SOUND['overrides'])
  assert (code, err) == (0, '')
  assert "'channels': 64" in out and "'sizes': (3,)" in out and "'flip': True" in out
  assert "'kind': None" in out  # and not the string
  typed = "{'model.channels': 64, 'model.sizes': (3,), 'flip': True, 'model.kind': None}"
  assert out.strip().endswith(typed)


def test_arguments_of_a_plug_in_come_singly_or_together(command):
  code, out, _ = command(*SOUND['plug-in'])
  assert code == 0
  assert "'args': {'k': 1, 'law': 'fast', 'n': (2, 3)}" in out


def test_one_value_for_a_tuple_says_what_it_is_read_as(command):
  code, out, err = command(*SOUND['one for a tuple'])
  assert code == 0 and "'sizes': (2,)" in out
  assert err == 'config.model.sizes: 2 is read as (2,)\n'


@pytest.mark.parametrize('case', MISTAKES)
def test_mistakes(command, case):
  arguments, message = MISTAKES[case]
  code, out, err = command(*arguments)
  assert (code, out) == (2, '')
  assert message in err
  assert err.count('\n') == 1  # one line, no traceback


@pytest.mark.parametrize('number', range(len(FILES)))
def test_mistakes_of_a_config_file(command, number):
  message = FILES[number][1].replace('bad.py', f'bad{number}.py')
  code, out, err = command(f'--config=bad{number}.py')
  assert (code, out) == (2, '')
  assert message in err
  assert err.count('\n') == 1


def test_our_own_mistakes_keep_their_traceback(command):
  code, _, err = command(*SOUND['broken'])
  assert code == 1
  assert 'Traceback' in err and 'a mistake of ours' in err


def test_argument_of_the_config_file(command):
  code, out, _ = command(*SOUND['argument'])
  assert code == 0 and "'channels': 16" in out


def test_interrupted_after_saving(command):
  code, _, err = command(*SOUND['saved'])
  assert (code, err) == (130, 'saved at step 3\n')


def test_a_full_disk_is_one_line(command):
  code, _, err = command(*SOUND['full'])
  line = 'full/report.json: No space left on device; make room, and give the same command again\n'
  assert (code, err) == (1, line)


@pytest.mark.parametrize(('signum', 'expected'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(folder, signum, expected):
  process = start(folder, 'main.py', '--config=good.py', '--workdir=waiting')
  assert process.stdout.readline() == 'ready\n'
  process.send_signal(signum)
  _, err = process.communicate(timeout=60)
  assert process.returncode == expected
  assert err.count('\n') == 1


def test_help_has_every_flag_and_setting(command):
  code, out, err = command(*SOUND['help'])
  assert (code, err) == (0, '')
  assert out.startswith('Trains nothing.')
  assert '--workdir' in out and 'Where the run is kept.' in out
  for word in ('batch_size', 'warmup_steps', 'name=cosine', 'trailing', 'eta=0.0 in [0, 1]'):
    assert word in out
