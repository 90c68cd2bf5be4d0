"""The recipe of a Cloud TPU slice, with a gcloud that refuses what its reference doesn't list."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
POD = ROOT / 'experiments' / 'launch' / 'tpu_pod.sh'

# Two hosts are two folders; a command over ssh runs in each of them.
GCLOUD = """
import json, os, pathlib, shutil, subprocess, sys
sys.path.insert(0, {here!r})
import published

words, root = sys.argv[1:], pathlib.Path({root!r})
with open(root / 'calls', 'a') as calls:
  print(json.dumps(words), file=calls)
if line := published.refusal(['gcloud', *words]):
  sys.exit(line)
flags = dict(word[2:].partition('=')[::2] for word in words if word.startswith('--'))
kind, verb = words[2:4]
hosts = sorted(root.glob('host*'))
if flags.get('worker', '0') != 'all':
  hosts = [hosts[int(flags.get('worker', '0'))]]
codes = [0]
if verb == 'describe':
  states = json.loads((root / 'states').read_text())
  if not states.get(kind):
    sys.exit('NOT_FOUND')
  print(states[kind].pop(0))
  (root / 'states').write_text(json.dumps(states))
if verb == 'scp':
  for host in hosts:
    shutil.copy(words[4], host)
if verb == 'ssh':
  for host in hosts:
    command = ['bash', '-c', flags['command']]
    done = subprocess.run(command, cwd=host, env=os.environ | {{'HOST': host.name}})
    codes.append(done.returncode)
sys.exit(max(codes))
"""
# A host's Python 3.10, which only brings uv; what uv makes is a Python that notes what it is told.
PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$ROOT/$HOST/python"
case "$*" in
  '-m uv venv '*) mkdir -p .venv/bin; cp "$ROOT/made" .venv/bin/python ;;
esac
"""
MADE = """#!/usr/bin/env bash
echo "$@" >> "$ROOT/$HOST/made"
case "$*" in
  -c*) echo cifar10 ;;
  *experiments.train*)
    echo "$JAX_COMPILATION_CACHE_DIR, $LIBTPU_INIT_ARGS"
    trap 'echo saved; exit 143' TERM
    while :; do sleep 0.1; done ;;
esac
"""


def program(path, text):
  path.write_text(text)
  path.chmod(0o755)


@pytest.fixture
def slice_of_two(tmp_path):
  """Runs the recipe with a command and flags; its calls, hosts and states lie in `.root`."""
  (tmp_path / 'bin').mkdir()
  for host in ('host0', 'host1'):
    (tmp_path / host).mkdir()
  script = GCLOUD.format(here=str(HERE), root=str(tmp_path))
  program(tmp_path / 'bin' / 'gcloud', f'#!{sys.executable}\n{script}')
  program(tmp_path / 'bin' / 'python3', PYTHON)
  program(tmp_path / 'made', MADE)
  (tmp_path / 'states').write_text('{}')

  def run(*words, code=0, **variables):
    environment = {
      **os.environ,
      'PATH': f'{tmp_path / "bin"}{os.pathsep}{os.environ["PATH"]}',
      'ROOT': str(tmp_path),
      **{'TPU': 'slice', 'ZONE': 'us-central1-a', 'POLL': '0'},
    }
    environment.pop('JAX_COMPILATION_CACHE_DIR')
    environment |= variables
    done = subprocess.run(
      ['bash', POD, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr

  run.root = tmp_path
  yield run
  for file in tmp_path.glob('host*/ddpm_jax/train.pid'):
    subprocess.run(['kill', '-KILL', file.read_text().strip()], capture_output=True)


def calls(run):
  return [json.loads(line) for line in (run.root / 'calls').read_text().splitlines()]


@pytest.mark.parametrize(
  'type_, image',
  [
    ('v5litepod-16', 'v2-alpha-tpuv5-lite'),
    ('v5p-32', 'v2-alpha-tpuv5'),
    ('v6e-16', 'v2-alpha-tpuv6e'),
    ('v4-32', 'tpu-ubuntu2204-base'),
  ],
)
def test_create_asks_the_queue_for_the_machines_with_their_image(slice_of_two, type_, image):
  slice_of_two('create', '--spot', TYPE=type_)
  (call,) = calls(slice_of_two)
  assert call[:5] == ['compute', 'tpus', 'queued-resources', 'create', 'slice']
  assert {f'--runtime-version={image}', f'--accelerator-type={type_}', '--spot'} <= set(call)


def test_create_now_asks_for_them_outside_the_queue(slice_of_two):
  slice_of_two('create-now', TYPE='v6e-16', RUNTIME='another')
  assert calls(slice_of_two)[0][2:5] == ['tpu-vm', 'create', 'slice']
  assert '--version=another' in calls(slice_of_two)[0]


def test_a_kind_of_unknown_image_is_refused_in_one_line(slice_of_two):
  line = slice_of_two('create', TYPE='v9-16', code=2)
  assert line == "TYPE: 'v9-16' is of no known kind; name its image by RUNTIME\n"
  assert not (slice_of_two.root / 'calls').exists()


def test_a_flag_that_gcloud_does_not_know_is_seen(slice_of_two):
  assert 'there is no flag --sopt' in slice_of_two('create', '--sopt', TYPE='v6e-16', code=1)


@pytest.mark.parametrize(
  'states, code',
  [
    ({'queued-resources': ['WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']}, 0),
    ({'tpu-vm': ['CREATING', 'READY']}, 0),
    ({'queued-resources': ['WAITING_FOR_RESOURCES', 'FAILED']}, 1),
    ({'queued-resources': ['SUSPENDED']}, 1),
    ({'tpu-vm': ['PREEMPTED']}, 1),
    ({}, 1),
  ],
)
def test_wait_ends_when_the_machines_are_there_or_cannot_come(slice_of_two, states, code):
  (slice_of_two.root / 'states').write_text(json.dumps(states))
  slice_of_two('wait', code=code)
  assert not any(json.loads((slice_of_two.root / 'states').read_text()).values())


def test_install_brings_this_commit_a_newer_python_and_the_data_to_every_host(slice_of_two):
  slice_of_two('install')
  head = ['git', 'rev-parse', 'HEAD']
  commit = subprocess.run(head, cwd=ROOT, capture_output=True, text=True, check=True).stdout
  for host in ('host0', 'host1'):
    folder = slice_of_two.root / host
    found = subprocess.run(head, cwd=folder / 'ddpm_jax', capture_output=True, text=True).stdout
    assert found == commit and (folder / 'ddpm_jax' / 'experiments' / 'train.py').exists()
    told = (folder / 'python').read_text().splitlines()
    assert told[0] == '-m pip install --quiet --user uv'
    assert told[1].startswith('-m uv venv') and '--python 3.12' in told[1]
    assert told[2].startswith('-m uv pip install --quiet --python .venv -c constraints.txt -e ')
    assert told[2].endswith(' .[tpu,gcs,tfds-prepare]')
    assert (folder / 'made').read_text().splitlines()[-1] == '-m ddpm_jax.data.prepare cifar10'


@pytest.mark.parametrize(
  'config, wanted', [('digits', ''), ('mixture', ''), ('cifar10', 'cifar10')]
)
def test_install_asks_the_config_itself_what_is_to_be_prepared(monkeypatch, capsys, config, wanted):
  (code,) = re.findall(r"^TO_PREPARE='(.*?)'$", POD.read_text(), re.DOTALL | re.MULTILINE)
  monkeypatch.setattr(sys, 'argv', ['-c', str(ROOT / 'configs' / f'{config}.py')])
  exec(code, {})
  assert capsys.readouterr().out == wanted + '\n'


@pytest.mark.parametrize('name', ['', 'mnist:3.0.1'])
def test_install_prepares_another_set_where_one_is_named(slice_of_two, name):
  slice_of_two('install', DATASET=name)
  told = slice_of_two.root / 'host1' / 'made'
  assert told.exists() == bool(name)
  assert not name or told.read_text() == f'-m ddpm_jax.data.prepare {name}\n'


def test_training_starts_detached_on_every_host_and_stop_ends_it(slice_of_two):
  for host in ('host0', 'host1'):
    (slice_of_two.root / host / 'ddpm_jax' / '.venv' / 'bin').mkdir(parents=True)
    shutil.copy(slice_of_two.root / 'made', slice_of_two.root / host / 'ddpm_jax/.venv/bin/python')
  flags = {'WORKDIR': '/shared/a run', 'JAX_COMPILATION_CACHE_DIR': '/shared/jit'}
  flags['LIBTPU_INIT_ARGS'] = '--one=true --two=true'
  slice_of_two('train', "--config.model.args={'width': 8}", **flags)
  assert 'it trains already' in slice_of_two('train', code=1, **flags)
  deadline = time.monotonic() + 20
  logs = [slice_of_two.root / host / 'ddpm_jax' / 'train.log' for host in ('host0', 'host1')]
  while not all(log.read_text() for log in logs):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  for log in logs:
    assert log.read_text() == '/shared/jit, --one=true --two=true\n'
    # A session of its own: what ends with the ssh does not reach it.
    pid = int((log.parent / 'train.pid').read_text())
    assert os.getsid(pid) == pid
  (told,) = (slice_of_two.root / 'host1' / 'made').read_text().splitlines()
  assert told == (
    '-u -m experiments.train --config=configs/cifar10.py --workdir=/shared/a run '
    "--config.model.dtype=bfloat16 --distributed --watch_metadata --config.model.args={'width': 8}"
  )
  program(slice_of_two.root / 'bin' / 'git', '#!/usr/bin/env bash\nexit 1\n')  # no remote, no git
  line = slice_of_two('stop')
  assert line.count('saved') == 2 and 'cost money until they are deleted' in line
  assert slice_of_two('stop').count('nothing trains here') == 2


def test_stop_leaves_a_stranger_alone_that_has_the_old_number(slice_of_two):
  stranger = subprocess.Popen(['sleep', '60'])
  for host in ('host0', 'host1'):
    (slice_of_two.root / host / 'ddpm_jax').mkdir()
    (slice_of_two.root / host / 'ddpm_jax' / 'train.pid').write_text(str(stranger.pid))
  assert slice_of_two('stop').count('nothing trains here') == 2
  assert stranger.poll() is None
  stranger.send_signal(signal.SIGKILL)
  stranger.wait()


@pytest.mark.parametrize('kind, flags', [('queued-resources', ['--force']), ('tpu-vm', [])])
def test_delete_gives_back_what_was_created(slice_of_two, kind, flags):
  (slice_of_two.root / 'states').write_text(json.dumps({kind: ['ACTIVE']}))
  slice_of_two('delete', '--quiet')
  call = calls(slice_of_two)[-1]
  assert call == [
    'compute',
    'tpus',
    kind,
    'delete',
    'slice',
    '--zone=us-central1-a',
    *flags,
    '--quiet',
  ]


def test_log_follows_the_host_that_is_asked_for(slice_of_two):
  program(slice_of_two.root / 'bin' / 'tail', '#!/usr/bin/env bash\necho "$HOST: $*"\n')
  assert slice_of_two('log', WORKER='1') == 'host1: -n 100 -F ddpm_jax/train.log\n'


@pytest.mark.parametrize('words', [[], ['strat']])
def test_what_it_does_not_know_shows_what_it_does(slice_of_two, words):
  text = slice_of_two(*words, code=2)
  assert all(f'tpu_pod.sh {word} ' in text for word in ('create', 'wait', 'train', 'delete'))
  assert 'set -euo' not in text
