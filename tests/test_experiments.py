"""The commands, run as a user runs them: real configs, made small by flags."""

import hashlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from ddpm_jax.evaluation.sampling import Samples, save_samples
from ddpm_jax.tasks.run import load_run
from ddpm_jax.training.metrics import read

ROOT = pathlib.Path(__file__).resolve().parents[1]

DIGITS = ['--config=configs/digits.py']

# One level of a quarter of the digits' width.
SMALL = [
  '--config.model.channels=8',
  '--config.model.multipliers=(1,)',
  '--config.model.attention_resolutions=()',
  '--config.dataset.batch_size=16',
  '--config.training.num_steps=6',
  '--config.optimizer.warmup_steps=0',
  '--config.sampler.num_steps=2',
  '--config.evaluation.batch_size=32',
  '--config.checkpoint.every_steps=3',
  '--config.logging.every_steps=2',
]


def command(name, *flags, devices=1):
  return subprocess.run(
    [sys.executable, '-m', f'experiments.{name}', *flags],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': str(devices)},
    capture_output=True,
    text=True,
  )


def files(folder):
  return {p: p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A small run of the digits, trained by the command."""
  workdir = tmp_path_factory.mktemp('runs') / 'small'
  done = command('train', *DIGITS, f'--workdir={workdir}', *SMALL)
  assert done.returncode == 0, done.stderr
  return workdir


def test_train_sample_and_report(run):
  drawn = command('sample', f'--workdir={run}', '--num=20', '--seed=3')
  assert drawn.returncode == 0, drawn.stderr
  with np.load(run / 'samples.npz') as archive:
    images, labels = archive['arr_0'], archive['arr_1']
  assert images.shape == (20, 8, 8, 1) and images.dtype == np.uint8
  np.testing.assert_array_equal(np.bincount(labels), np.full(10, 2))
  told = command('evaluate', f'--workdir={run}')
  assert told.returncode == 0, told.stderr
  figures = json.loads((run / 'report.json').read_text())
  assert figures['finished'] and figures['file'] == str(run / 'samples.npz')
  assert [group['count'] for group in figures['samples']] == [20, 20]
  assert f'{run / "samples.npz"}: 20 free samples, drawn at step 6' in told.stdout
  assert figures['bits_per_dim']['chain']['error'] <= 0.02
  for words in ('read as asked', 'spread', 'nearest', 'bits/dim', 'histogram', 'Gaussian'):
    assert words in told.stdout
  for picture in (run / 'samples').glob('*.png'):
    assert Image.open(picture).size[0] > 300


@pytest.mark.slow
def test_samples_are_drawn_around_what_a_mask_keeps(run, tmp_path):
  rng = np.random.default_rng(0)
  picture = rng.integers(0, 256, (8, 8)).astype(np.uint8)
  mask = np.zeros((8, 8), np.uint8)
  mask[:, 4:] = 255
  Image.fromarray(picture).save(tmp_path / 'picture.png')
  Image.fromarray(mask).save(tmp_path / 'mask.png')
  flags = [f'--init_image={tmp_path / "picture.png"}', f'--mask={tmp_path / "mask.png"}']
  before = files(run)
  method = [
    '--sampler=unipc',
    '--option=order=3',
    '--grid=log_snr',
    '--steps=4',
    '--resample=2',
    '--animate',
  ]
  done = command('sample', f'--workdir={run}', '--num=3', *flags, *method)
  assert done.returncode == 0, done.stderr
  names = ('inpainting.npz', 'samples/inpainting.png', 'samples/inpainting.gif')
  after = files(run)
  assert {path: after[path] for path in before} == before
  assert after.keys() - before.keys() == {run / name for name in names}
  with np.load(run / 'inpainting.npz') as archive:
    images = archive['arr_0'][..., 0].astype(int)
    record = json.loads(str(archive['record']))
  assert record['kind'] == 'inpainting' and record['seed'] == 0
  assert (record['strength'], record['resample']) == (1.0, 2)
  for name, file in (('init_image', 'picture.png'), ('mask', 'mask.png')):
    content = (tmp_path / file).read_bytes()
    assert record[name]['path'] == str(tmp_path / file)
    assert record[name]['sha256'] == hashlib.sha256(content).hexdigest()
  np.testing.assert_array_equal(images[:, :, :4], np.broadcast_to(picture[:, :4], (3, 8, 4)))
  assert (np.abs(images[:, :, 4:] - picture[:, 4:]) > 2).any(axis=(1, 2)).all()
  with Image.open(run / 'samples' / 'inpainting.gif') as movie:
    assert movie.n_frames == 5
  told = command('evaluate', f'--workdir={run}', f'--samples={run / "inpainting.npz"}')
  assert told.returncode == 0, told.stderr
  assert '3 samples drawn around a picture' in told.stdout and 'unguided' not in told.stdout
  (group,) = json.loads((run / 'report.json').read_text())['samples']
  assert group['count'] == 3 and group['sampler']['guidance'] != 1
  assert group['spread_ratio'] is None and 'two samples' in group['left_out']['spread_ratio']


# One process imports, and each command line is a fork of it.
WITHOUT_DRAWING = """
import importlib, json, os, sys
from ddpm_jax.evaluation import sampling, report
from experiments import cli

sampling.draw_samples = lambda *_, **__: sys.exit('drawn')
for name, *flags in json.loads(sys.argv[1]):
  if not (child := os.fork()):
    sys.argv = [name, *flags]
    try:
      cli.run(importlib.import_module('experiments.' + name).main)
    except SystemExit as end:
      print(end.code, flush=True)
    os._exit(0)  # JAX's own leave-taking takes seconds
  os.waitpid(child, 0)
"""

# What is wrong with a command, and the line that it gets before anything is drawn or measured.
UNDRAWN = {
  'sample --out=FOLDER/file/x.npz': '--out: .*/file cannot be written ',
  'sample --out=x.png': "--out: 'x.png' is not the name of an .npz file",
  'sample --out=': "--out: '' is not the name of an .npz file",
  'sample --resample=3': '--resample: of which picture',
  'sample --cond=FOLDER/absent.npz': '--cond: .*/absent.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/file': '--cond: .*/file. is no .npz file with arrays label of .N, .',
  'sample --cond=FOLDER/torn.npz': '--cond: .*/torn.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/cut.npz': '--cond: .*/cut.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/text.npz': '--cond: .*/text.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/none.npz': '--cond: .*/none.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/scalar.npz': '--cond: .*/scalar.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/words.npz': '--cond: .*/words.npz. is no .npz file with arrays label',
  'sample --cond=FOLDER/floats.npz': '--cond: .*/floats.npz.: cond: label must be label, int32',
  'sample --cond=FOLDER/pairs.npz': '--cond: .*/pairs.npz.: cond: label must be label, int32',
  'sample --cond=FOLDER/eleven.npz': '--cond: .*/eleven.npz.: cond: label 11 is no class',
  'sample --cond=FOLDER/eleven.npz --label=1': '--cond: give it or --label, not both',
  'evaluate --samples=FOLDER/torn.npz': r'\S+/torn.npz: cannot be read .*--workdir=\S+/run$',
  'evaluate --samples=FOLDER/other.npz': "the samples' record: config.sampler.bogus: no such",
  'evaluate --samples=FOLDER/large.npz': r'\S+/large.npz: holds pictures of shape .16, 8, 1.,',
  'tradeoff': r'\S+/run/tradeoff.json: cannot be read ',
}


# What files that --cond names hold in place of labels.
CONDITIONS = {
  'none': np.zeros(0, int),
  'scalar': np.array(3),
  'words': np.array(['one', 'two']),
  'floats': np.array([0.5, 1.5]),
  'pairs': np.zeros((3, 2), int),
  'eleven': np.array([0, 11]),
}


def test_what_cannot_be_read_or_written_is_refused_before_anything_is_drawn(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  for name, content in {'file': b'', 'torn.npz': b'PK', 'run/tradeoff.json': b'{"ddim'}.items():
    (tmp_path / name).write_bytes(content)
  record = {'step': 6, 'seed': 0, 'evaluations': 2, 'sampler': {'guidance': 1.0}}
  large = Samples(np.zeros((2, 16, 8, 1), np.uint8), np.zeros(2, int), record)
  save_samples(tmp_path / 'large.npz', large)
  other = {'sampler': {'name': 'ddim', 'guidance': 1.0, 'bogus': 3}}
  odd = Samples(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, int), record | other)
  save_samples(tmp_path / 'other.npz', odd)
  for name, labels in CONDITIONS.items():
    np.savez(tmp_path / f'{name}.npz', label=labels)
  np.savez(tmp_path / 'text.npz', text=np.zeros(3))
  archive = (tmp_path / 'eleven.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(archive[: len(archive) // 2])
  before = files(tmp_path)
  lines = [line.replace('FOLDER', str(tmp_path)).split() for line in UNDRAWN]
  lines = [[name, f'--workdir={tmp_path / "run"}', *flags] for name, *flags in lines]
  done = subprocess.run(
    [sys.executable, '-c', WITHOUT_DRAWING, json.dumps(lines)],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
  )
  told = done.stderr.strip().splitlines()
  assert len(told) == len(UNDRAWN), done.stderr
  for line, message in zip(told, UNDRAWN.values(), strict=True):
    assert re.match(message, line), line
  assert done.stdout.split() == ['2'] * len(UNDRAWN)
  assert files(tmp_path) == before


MISTAKES = {
  'a misspelt setting': (['--config.model.channls=64'], 1, ['config.model.channls', 'channels']),
  'a missing config file': (['--config=configs/digit.py'], 1, ['configs/digit.py', 'digits.py']),
  'another experiment': (['--config.seed=1'], 1, ['config.seed', '--workdir']),
  'an unknown data set': (
    ['--config.dataset.name=cifr10'],
    1,
    ['config.dataset.name', 'cifr10', 'cifar10'],
  ),
  'an indivisible batch': (
    ['--config.dataset.batch_size=7'],
    2,
    ['config.dataset.batch_size', '2'],
  ),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(run, tmp_path, mistake):
  flags, devices, words = MISTAKES[mistake]
  workdir = run if mistake == 'another experiment' else tmp_path / 'run'
  before = files(run)
  first, last = (flags, []) if flags[0].startswith('--config=') else (DIGITS, flags)
  done = command('train', *first, f'--workdir={workdir}', *SMALL, *last, devices=devices)
  assert done.returncode == 2, done.stderr
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert all(word in done.stderr for word in words), done.stderr
  assert files(run) == before
  assert not (tmp_path / 'run').exists()


# One process imports, and each command is a fork of it.
FORKS = """
import json, os, runpy, sys
from ddpm_jax import ablation, evaluation, tasks

lines = json.load(open(sys.argv[1]))
for number, (name, *arguments) in enumerate(lines):
  if not (child := os.fork()):
    for stream, kind in (1, 'out'), (2, 'err'):
      os.dup2(os.open(f'{sys.argv[1]}.{number}.{kind}', os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = [name, *arguments]
    try:
      runpy.run_module(f'experiments.{name}', run_name='__main__', alter_sys=True)
    except BaseException as error:
      code = error.code if isinstance(error, SystemExit) else sys.excepthook(*sys.exc_info()) or 1
    sys.stdout.flush()
    os._exit(code)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_what_a_folder_names_is_not_run(run, tmp_path):
  """A shell command in place of the schedule, the samples' sampler, and a module to import."""
  called, imported = tmp_path / 'CALLED', tmp_path / 'IMPORTED'
  payload = f'open({str(imported)!r}, "w")\ndef weight(schedule, t, *, power=1):\n  return 1.0\n'
  (tmp_path / 'payload.py').write_text(payload)
  evil, samples, sweep = (tmp_path / name for name in ('evil', 'samples', 'sweep'))
  for folder in evil, samples:
    shutil.copytree(run, folder)
  record = json.loads((run / 'config.json').read_text())
  shell = {'command': f'touch {called}'}
  record['config']['schedule'] = {'name': 'os:system', 'args': shell}
  record['config']['loss']['weight'] = 'payload:weight(power=2)'
  (evil / 'config.json').write_text(json.dumps(record))
  sampler = {'name': 'os:system', 'args': shell, 'guidance': 3.0}
  drawn = {'step': 6, 'seed': 0, 'kind': 'free', 'evaluations': 1, 'sampler': sampler}
  pictures = Samples(np.zeros((20, 8, 8, 1), np.uint8), np.arange(20) % 10, drawn)
  save_samples(samples / 'samples.npz', pictures)
  sweep.mkdir()
  row = {'label': 'simple', 'overrides': {'loss.name': 'simple'}, 'config': record['config']}
  plan = {'seeds': 1, 'seconds': None, 'variants': [row]}
  (sweep / 'sweep.json').write_text(json.dumps(plan))
  new = tmp_path / 'new'
  lines = [
    *([name, f'--workdir={evil}'] for name in ('sample', 'evaluate', 'tradeoff')),
    ['sample', f'--workdir={evil}', '--plugins=payload.weight'],
    ['evaluate', f'--workdir={samples}'],
    ['ablate', f'--workdir={sweep}'],
    ['ablate', f'--workdir={sweep}', '--cell=00-simple/seed_0'],
    ['train', *DIGITS, f'--workdir={new}', *SMALL, f'--config.training.init_from={evil}'],
    ['sample', f'--workdir={run}', '--plugins=os:system'],
  ]
  (tmp_path / 'lines').write_text(json.dumps(lines))
  path = os.pathsep.join(map(str, (tmp_path, ROOT)))
  done = subprocess.run(
    [sys.executable, '-c', FORKS, str(tmp_path / 'lines')],
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': path, 'JAX_NUM_CPU_DEVICES': '1'},
    capture_output=True,
    text=True,
  )
  told = [(tmp_path / f'lines.{number}.err').read_text() for number in range(len(lines))]
  assert not called.exists() and not imported.exists(), told
  assert done.stdout.split() == ['2'] * len(lines), (done.stdout, told)
  assert all(text.count('\n') == 1 for text in told), told
  assert all("'os:system' (config.s" in text and '--plugins=os' in text for text in told[:-1]), told
  assert told[-1].startswith('--plugins') and 'give modules alone' in told[-1]


@pytest.mark.slow
def test_one_two_and_eight_devices_give_the_same_losses(tmp_path):
  losses = {}
  for devices in (1, 2, 8):
    workdir = tmp_path / str(devices)
    flags = [
      '--config.model.dropout=0.1',
      '--config.training.num_steps=50',
      '--config.optimizer.warmup_steps=0',
      '--config.logging.every_steps=1',
    ]
    done = command('train', *DIGITS, f'--workdir={workdir}', *flags, devices=devices)
    assert done.returncode == 0, done.stderr
    losses[devices] = [row['loss'] for row in read(workdir / 'metrics.jsonl') if 'loss' in row]
    assert len(losses[devices]) == 50
  np.testing.assert_allclose(losses[2], losses[1], rtol=1e-5)
  np.testing.assert_allclose(losses[8], losses[1], rtol=1e-5)


def start(workdir, *flags):
  return subprocess.Popen(
    [
      sys.executable,
      '-m',
      'experiments.train',
      *DIGITS,
      f'--workdir={workdir}',
      *flags,
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_NUM_CPU_DEVICES': '1'},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait_for_step(workdir, step):
  """Until metrics.jsonl tells of that step."""
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    if any(row['step'] >= step for row in read(workdir / 'metrics.jsonl')):
      return
    time.sleep(0.05)
  raise TimeoutError(f'{workdir} did not reach step {step}')


@pytest.mark.slow
def test_a_unet_interrupted_three_ways_ends_bit_identical(tmp_path):
  flags = [
    '--config.model.dropout=0.1',
    '--config.training.num_steps=60',
    '--config.optimizer.warmup_steps=0',
    '--config.logging.every_steps=5',
    '--config.checkpoint.every_steps=20',
  ]
  whole, broken = tmp_path / 'whole', tmp_path / 'broken'
  done = command('train', *DIGITS, f'--workdir={whole}', *flags)
  assert done.returncode == 0, done.stderr
  for signum, step, code in (
    (signal.SIGINT, 5, 130),
    (signal.SIGTERM, 20, 143),
    (signal.SIGKILL, 45, -9),
  ):
    process = start(broken, *flags)
    wait_for_step(broken, step)
    process.send_signal(signum)
    _, words = process.communicate(timeout=120)
    assert process.returncode == code, words
  done = command('train', *DIGITS, f'--workdir={broken}', *flags)
  assert done.returncode == 0, done.stderr
  for ema in (True, False):
    ends = [load_run(workdir, ema=ema).params for workdir in (whole, broken)]
    jax.tree.map(np.testing.assert_array_equal, *ends)
  assert (whole / 'metrics.jsonl').read_bytes() == (broken / 'metrics.jsonl').read_bytes()


@pytest.mark.slow
def test_the_ddpm_recipe_takes_twenty_steps_on_real_cifar10(tmp_path):
  workdir = tmp_path / 'cifar10'
  config = ['--config=configs/cifar10.py', f'--workdir={workdir}']
  flags = [
    '--config.dataset.batch_size=4',
    '--config.optimizer.warmup_steps=0',
    '--config.logging.every_steps=1',
    '--config.logging.preview_every_steps=1000000',
    '--config.evaluation.batch_size=4',
    '--config.evaluation.every_steps=1000000',
    '--config.checkpoint.every_steps=10',
    '--config.sampler.num_steps=2',
  ]
  for num_steps in (10, 20):
    done = command('train', *config, *flags, f'--config.training.num_steps={num_steps}')
    assert done.returncode == 0, done.stderr
  assert 'going on from step 10' in done.stdout
  losses = [row['loss'] for row in read(workdir / 'metrics.jsonl') if 'loss' in row]
  # The last convolution begins at zero: the first loss is that of predicting no noise, about 1.
  assert len(losses) == 20 and abs(losses[0] - 1) < 0.1 and np.isfinite(losses).all()
  drawn = command('sample', f'--workdir={workdir}', '--num=4')
  assert drawn.returncode == 0, drawn.stderr
  with np.load(workdir / 'samples.npz') as archive:
    assert archive['arr_0'].shape == (4, 32, 32, 3) and 'arr_1' not in archive


@pytest.mark.slow
def test_samplers_are_compared_at_equal_budgets_and_what_is_there_is_kept(run):
  flags = ['tradeoff', f'--workdir={run}', '--samplers=ddim,heun', '--num=20']
  done = command(*flags, '--evaluations=2,5')
  assert done.returncode == 0, done.stderr
  assert re.search(r'ddim +\d+\.\d\d ± \d+\.\d\d +\d+\.\d\d ±', done.stdout)
  rows = json.loads((run / 'tradeoff.json').read_text())
  ddim, heun = (rows[f'{name}/log_snr/20 samples/step 6'] for name in ('ddim', 'heun'))
  assert {budget: cell['evaluations'] for budget, cell in ddim.items()} == {'2': 2, '5': 5}
  assert {budget: cell['evaluations'] for budget, cell in heun.items()} == {'5': 5}
  assert heun['5']['frechet'] > 0 and heun['5']['mmd_error'] > 0
  (run / 'tradeoff.png').unlink()
  again = command(*flags, '--evaluations=5')
  assert json.loads((run / 'tradeoff.json').read_text()) == rows
  assert (run / 'tradeoff.png').exists() and again.stdout.count('±') == 4


@pytest.mark.slow
@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--samplers=dimm', "--samplers: 'dimm' is not one of"),
    ('--samplers=', '--samplers: is empty; leave it out'),
    ('--evaluations=', '--evaluations: is empty; leave it out'),
    ('--evaluations=0', "--evaluations: '0' is not a number from 1"),
    ('--grid=even', "--grid: 'even' is not one of"),
  ],
)
def test_a_comparison_of_nothing_is_refused(run, flag, message):
  done = command('tradeoff', f'--workdir={run}', flag)
  assert done.returncode == 2
  assert message in done.stderr and 'Traceback' not in done.stderr


CHOOSE = """
import dataclasses, sys, types
import numpy as np
from absl import flags
from experiments import sample
from ddpm_jax import data
from ddpm_jax.codec import pixels
from ddpm_jax.condition import Field
from ddpm_jax.errors import InputError

split = data.Arrays(
  np.zeros((6, 4, 4, 3), np.uint8),
  {'label': np.array([0, 2, 2, 0, 2, 0]), 'text': np.arange(12.0).reshape(6, 2)},
)
classes = data.labeled(4, split, split)
run = types.SimpleNamespace(
  experiment=types.SimpleNamespace(
    dataset=data.Dataset('mine', split, split, (4, 4, 3), 256, classes),
    codec=pixels((4, 4, 3), 256),
  ),
  use=types.SimpleNamespace(denoiser=print),
  config=types.SimpleNamespace(
    dataset=types.SimpleNamespace(arguments={'background': '#ff0000'}),
    codec=types.SimpleNamespace(name='pixels'),
  ),
)


def show(num, *typed):
  flags.FLAGS(['sample', *typed])
  try:
    cond, asked = sample.chosen_cond(run, num)
    print({name: values.tolist() for name, values in cond.items()}, asked)
  except InputError as error:
    print(error)


show(5, f'--init_image={sys.argv[1]}')
print(np.unique(sample.chosen_picture(run).image).tolist())
for label in (2, 3, 4):
  show(2, f'--label={label}')
flags.FLAGS['label'].unparse()
np.savez(sys.argv[2], label=np.array([3, 1]), text=np.ones((3, 2)), more=np.zeros(1))
show(3, f'--cond={sys.argv[2]}')
run.experiment.dataset = dataclasses.replace(
  run.experiment.dataset, cond=classes | {'text': Field((2,))}
)
show(3, f'--cond={sys.argv[2]}')
flags.FLAGS['cond'].unparse()
sample.make_dataset = lambda config: run.experiment.dataset
show(2)
show(2, '--label=2')
"""


def test_samples_are_of_classes_with_examples_and_on_the_runs_background(tmp_path):
  Image.new('RGBA', (4, 4), (9, 9, 9, 0)).save(tmp_path / 'clear.png')
  wanted = str(tmp_path / 'wanted.npz')
  script = [sys.executable, '-c', CHOOSE, str(tmp_path / 'clear.png'), wanted]
  done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
  assert done.stdout.splitlines() == [
    "{'label': [0, 2, 0, 2, 0]} classes in turn",
    '[-1.0, 1.0]',
    "{'label': [2, 2]} --label",
    '--label: 3 had no example in training; give another',
    '--label: 4 is no class; give 0 to 3',
    # A file's entries are taken in turn, and of them those that the run is conditional on.
    f"{{'label': [3, 1, 3]}} {wanted}",
    f"{{'label': [3, 1, 3], 'text': [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]}} {wanted}",
    "{'label': [0, 2], 'text': [[0.0, 1.0], [2.0, 3.0]]} held-out examples in turn",
    '--label: 2: the run is not conditional on classes alone; leave it out',
  ], done.stderr
