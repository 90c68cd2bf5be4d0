"""The runner on cells of a few steps: the same table however it was stopped, mistakes in a line."""

import csv
import dataclasses
import importlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from ddpm_jax import data
from ddpm_jax.ablation import cell as cell_module
from ddpm_jax.ablation import figures as plots
from ddpm_jax.ablation import grid, metrics, runners, vary
from ddpm_jax.ablation.page import make_page
from ddpm_jax.ablation.plan import load_plan, make_plan, refuse_stale, save_plan
from ddpm_jax.ablation.results import make_figures, read_finished, write_csv
from ddpm_jax.ablation.runners import LOG, Outcome, here, lines, pinned, shared, workers
from ddpm_jax.ablation.table import make_table
from ddpm_jax.condition import labels
from ddpm_jax.config import from_config_dict, from_json, to_json
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation import report
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.run import write_record

ROOT = pathlib.Path(__file__).resolve().parents[2]

CONFIG = """
from ddpm_jax.ablation import vary
from ddpm_jax.config import base_config
from tiny import SETTINGS

CHANGED = {
  'dataset.name': 'arrays',
  'dataset.path': PATH,
  'dataset.num_levels': 17,
  'training.num_steps': 4,
  'checkpoint.every_steps': 2,
  'logging.every_steps': 1,
  'logging.preview_every_steps': 100,
  'evaluation.every_steps': 2,
  'evaluation.num_samples': 40,
  'evaluation.strata': 1,
}

def get_config():
  config = base_config()
  config.update_from_flattened_dict({**SETTINGS, **CHANGED})
  return config

def sweep():
  return vary('parameterization.name', 'eps', 'v')
"""

PLUGINS = """
def failing(context, params, state, batch, keys):
  return 1 / 0
"""

# Killed while the fourth checkpoint is saved: two of each cell, so the second cell has one.
KILLED = """
import itertools, os, signal, sys
from ddpm_jax.ablation import metrics
from ddpm_jax.training.checkpoint import Checkpoints
from experiments import ablate, cli

metrics.GRADIENTS = 4

save, count = Checkpoints.save, itertools.count(1)

def dying(self, *arguments):
  save(self, *arguments)
  if next(count) == 4:
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = dying
cli.run(ablate.main)
"""

# One process imports, and each command line is a fork of it.
FORKS = """
import json, os, sys
from experiments import ablate, cli

for number, arguments in enumerate(json.load(open('lines.json'))):
  if not (child := os.fork()):
    for stream, name in (1, 'out'), (2, 'err'):
      os.dup2(os.open(f'{number}.{name}', os.O_CREAT | os.O_WRONLY), stream)
    sys.argv = ['ablate', *arguments]
    try:
      cli.run(ablate.main)
    except BaseException as error:
      code = error.code if isinstance(error, SystemExit) else sys.excepthook(*sys.exc_info()) or 1
    sys.stdout.flush()
    os._exit(code)
  open(f'{number}.code', 'w').write(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
"""

MISTAKES = {
  'unknown variant': (
    ['--vary=config.loss.name=simple,variatonal'],
    "variant 'variatonal': config.loss.name: 'variatonal' is not one of",
    "did you mean 'variational'?",
  ),
  'no such field': (['--vary=config.loss.nme=a'], 'config.loss.nme: no such setting', "'name'"),
  'wrong type': (
    ['--vary=config.training.num_steps=1,x'],
    "config.training.num_steps: 'x' is not an integer",
  ),
  'out of bounds': (['--vary=config.ema.decay=0.9,2'], 'config.ema.decay: 2.0 is outside [0, 1)'),
  'a combination that makes no sense': (
    ['--vary=config.schedule.zero_terminal_snr=false,true'],
    "variant 'zero_terminal_snr=True': config.parameterization.name",
  ),
  'twice the same': (['--vary=config.loss.name=simple,simple'], 'one and the same experiment'),
  'the same by another way': (
    ['--vary=config.loss.weight=None,simple', '--vary=config.loss.weight=None'],
    'config.loss.weight: set twice',
  ),
  'unequal lists': (
    ['--combine=zipped', '--vary=config.ema.decay=0.9,0.8', '--vary=config.loss.name=simple'],
    'ema.decay 2; loss.name 1',
  ),
  'unknown combination': (['--combine=zip', '--vary=config.ema.decay=0.9'], "'zipped'?"),
  'no value': (['--vary=config.loss.name'], "'config.loss.name' is not of the form"),
  'no seeds': (['--seeds=0'], '--seeds=0: 0 is not'),
  'the seed itself': (['--vary=config.seed=0,1'], 'config.seed: is what --seeds varies'),
  'a budget of minutes': (['--budget=5minutes'], "--budget: '5minutes' is not of the form"),
  'half a batch': (['--budget=24examples'], '24 examples are no whole number of batches of 16'),
  'unknown baseline': (['--baseline=esp'], "--baseline: 'esp'", "did you mean 'eps'?"),
  'another sweep': (
    ['--workdir=taken', '--config.optimizer.learning_rate=0.01'],
    'taken: holds another sweep, which differs in config.optimizer.learning_rate',
  ),
  'other variants': (
    ['--workdir=taken', '--vary=config.ema.decay=0.9'],
    'differs in its variants: eps; v',
  ),
  'a run': (['--workdir=run'], 'run: holds no sweep but other files'),
}

OTHERS = {
  'no config': (['--workdir=new', '--vary=config.ema.decay=0.9'], '--vary: of which experiment?'),
  'no sweep': (['--workdir=new'], 'new: holds no sweep yet'),
  'no such cell': (
    ['--workdir=taken', '--cell=00-eps/seed_9', '--plugins=tiny'],
    "'00-eps/seed_9' is not one of",
  ),
  'no sweep()': (['--config=empty.py', '--workdir=new'], 'empty.py: has no function sweep()'),
  'a sweep() that exits': (
    ['--config=leaving.py', '--workdir=new'],
    'leaving.py, line 25: exit() is called',
  ),
  'a broken sweep()': (['--config=broken.py', '--workdir=new'], 'broken.py, line 25: Zero'),
}


def environment(folder):
  path = os.pathsep.join(map(str, (folder, ROOT, ROOT / 'tests' / 'training')))
  return {**os.environ, 'PYTHONPATH': path, 'JAX_NUM_CPU_DEVICES': '8'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A config of 160 digits, and a plug-in."""
  folder = tmp_path_factory.mktemp('ablation')
  digits = data.load('digits').train[np.arange(160)]
  np.savez(folder / 'few.npz', image=digits['x'], label=digits['cond']['label'])
  path = repr(str(folder / 'few.npz'))
  (folder / 'few.py').write_text(CONFIG.replace('PATH', path))
  (folder / 'plugins.py').write_text(PLUGINS)
  (folder / 'empty.py').write_text(CONFIG.replace('PATH', path).replace('def sweep', 'def other'))
  (folder / 'broken.py').write_text(
    CONFIG.replace('PATH', path).replace("return vary('", "1 / 0; ('")
  )
  (folder / 'leaving.py').write_text(
    CONFIG.replace('PATH', path).replace("return vary('", "raise SystemExit; ('")
  )
  return folder


def configure(folder):
  scope = {}
  sys.path.insert(0, str(ROOT / 'tests' / 'training'))
  exec((folder / 'few.py').read_text(), scope)

  def read_variant(variant):
    config = scope['get_config']()
    config.update_from_flattened_dict(variant)
    return from_config_dict(config, variant)

  return read_variant


def planned(folder, workdir, sweep, seeds=2, budget=None):
  plan = make_plan(workdir, sweep, configure(folder), seeds, budget)
  save_plan(plan)
  return plan


@pytest.fixture(scope='module', autouse=True)
def few_gradients():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics, 'GRADIENTS', 4)
    yield


@pytest.fixture(scope='module')
def whole(folder):
  """Two variants, not interrupted."""
  plan = planned(folder, folder / 'whole', vary('parameterization.name', 'eps', 'v'), seeds=1)
  assert [outcome.error for outcome in here(plan, plan.cells)] == [None] * 2
  return plan


def table(plan):
  write_csv(plan.workdir / 'results.csv', plan, read_finished(plan))
  return (plan.workdir / 'results.csv').read_bytes()


@pytest.mark.slow
def test_killed_and_started_again_is_the_same_table_bit_for_bit(folder, whole):
  flags = ['--config=few.py', '--seeds=1', '--workdir=killed']
  killed = subprocess.run(
    [sys.executable, '-c', KILLED, *flags],
    cwd=folder,
    env=environment(folder),
    capture_output=True,
    text=True,
  )
  assert killed.returncode == -9, killed.stderr
  plan = load_plan(folder / 'killed', ('tiny',))
  missing = [one for one in plan.cells if not one.done]
  assert [one.name for one in missing] == ['01-v/seed_0']
  assert (missing[0].folder / 'checkpoints' / '2').exists()
  assert all(outcome.error is None for outcome in here(plan, missing))
  assert table(plan) == table(whole)


@pytest.mark.slow
def test_four_variants_in_workers_killed_twice_are_the_same_table(folder):
  """The workers outlive the runner that is killed; the next one waits for their cells."""
  names = 'parameterization.name=eps,v', 'schedule.name=cosine,linear'
  chosen = [f'--vary=config.{name}' for name in names]
  flags = ['-m', 'experiments.ablate', '--config=few.py', *chosen, '--seeds=3']
  options = {'cwd': folder, 'env': environment(folder), 'stdout': subprocess.DEVNULL}
  subprocess.run([sys.executable, *flags, '--workdir=here'], check=True, **options)
  again = [sys.executable, *flags, '--workdir=workers', '--workers=2']
  for count in 2, 6:
    process = subprocess.Popen(again, **options)
    while len(list((folder / 'workers').glob('cells/*/*/result.json'))) < count:
      time.sleep(0.1)
    process.kill()
    process.wait()
  subprocess.run(again, check=True, **options)
  tables = [(folder / name / 'results.csv').read_bytes() for name in ('here', 'workers')]
  assert tables[0] == tables[1] and tables[0].count(b'\n') == 13


def test_every_figure_is_there(whole):
  rows = list(csv.DictReader(table(whole).decode().splitlines()))
  assert [(row['parameterization.name'], row['seed']) for row in rows] == [('eps', '0'), ('v', '0')]
  names = ['bits_per_dim/chain', 'frechet', 'mmd', 'gradient_variance', 'eps_mse/-2 to 0']
  for name in names:
    values = [float(row[name]) for row in rows]
    assert len(set(values)) == 2 and np.isfinite(values).all(), name
  assert {row['examples'] for row in rows} == {'64'}


def test_a_seed_is_one_seed_in_every_variant(folder, tmp_path):
  """Data order, noise and evaluation follow from the config's seed alone, see tests/training."""
  plan = planned(folder, tmp_path / 'sweep', vary('ema.decay', 0.1, 0.2))
  assert [(one.variant, one.config.seed) for one in plan.cells] == [(0, 0), (1, 0), (0, 1), (1, 1)]


def test_more_seeds_go_on_with_a_sweep(folder, whole):
  more = make_plan(whole.workdir, list(whole.variants), configure(folder), 2)
  save_plan(more)
  assert [one.name for one in more.cells if not one.done] == ['00-eps/seed_1', '01-v/seed_1']
  save_plan(whole)


def page_of(plan, baseline=0):
  finished = read_finished(plan)
  figures = make_figures(plan, finished, baseline)
  panels = {
    'bars': plots.bar_panels(figures),
    'curves': plots.curve_panels(plan),
    'levels': plots.level_panels(figures),
  }
  return make_page(plan, finished, figures, panels)


def test_the_page_needs_nothing_beside_itself(whole):
  page = page_of(whole, baseline=1)
  addresses = re.findall(r'(?:src|href|srcset)="([^"]{0,30})|url\((.{0,20})|(@import)', page)
  assert len(addresses) > 10
  assert all(address.startswith('data:image/png;base64,') for address, *_ in addresses)
  assert 'http' not in page and '<script' not in page
  for words in (
    'parameterization.name',
    'difference to <b>v</b>',
    'eps, seed 0',
    'bits/dim, chain',
  ):
    assert words in page


def write_result(cell, text):
  cell.folder.mkdir(parents=True, exist_ok=True)
  (cell.folder / 'result.json').write_text(text)


def test_a_figure_that_could_not_be_had_is_told_with_its_reason(empty):
  """And is no number: a mean over the other seeds would be silent about it."""
  evil = '<script>alert(1)</script>'
  for cell, value in zip(empty.cells, (1.0, None), strict=False):
    metrics = {'frechet': value, 'mmd': 0.5}
    reasons = {} if value else {'frechet': evil}
    write_result(cell, json.dumps({'steps': 4, 'metrics': metrics, 'left_out': reasons}))
  frechet, mmd = make_figures(empty, read_finished(empty))
  assert np.isnan(frechet.rows[1].mean.mean) and mmd.rows[1].mean.mean == 0.5
  page = page_of(empty)
  assert evil not in page
  assert 'Left out: Fréchet distance: &lt;script&gt;alert(1)&lt;/script&gt; (decay=0.2' in page
  assert 'config.json cannot be read' in page
  rows = list(csv.DictReader(table(empty).decode().splitlines()))
  assert [(row['frechet'], row['mmd']) for row in rows] == [('1.0', '0.5'), ('', '0.5')]


@pytest.mark.parametrize(
  'text',
  [
    '',
    '{"steps": 4, "met',
    '[]',
    '{}',
    '{"steps": 4, "metrics": {"<b>": 1}}',
    '{"steps": 4, "metrics": {"eps_mse/x": 1}}',
    '{"steps": "<b>", "metrics": {"mmd": 1}}',
    '{"steps": 4, "metrics": {"mmd": "<b>"}}',
    '{"steps": 4, "metrics": {"mmd": 1}, "left_out": 3}',
    '[' * 100_000,
  ],
)
def test_a_torn_or_tampered_result_is_named(empty, text):
  write_result(empty.cells[1], text)
  with pytest.raises(InputError, match=r'01-decay=0.2/seed_0/result\.json: (cannot be|holds no)'):
    read_finished(empty)


@pytest.mark.parametrize('field', ['seeds', 'seconds', 'variants'])
def test_a_tampered_sweep_is_named(empty, field):
  path = empty.workdir / 'sweep.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | {field: '<b>'}))
  with pytest.raises(InputError, match=r'sweep\.json: cannot be read'):
    load_plan(empty.workdir, ('tiny',))


OWN = 'import pathlib\npathlib.Path({!r}).touch()\ndef weight(schedule, t):\n  return {}\n'


@pytest.fixture
def own(folder, tmp_path, monkeypatch):
  """The plan of a sweep over a plug-in of one's own, written anew, and the file that it makes."""
  monkeypatch.syspath_prepend(tmp_path)
  mark = tmp_path / 'MARK'

  def plan(value):
    (tmp_path / 'own_weights.py').write_text(OWN.format(str(mark), value))
    importlib.invalidate_caches()
    sys.modules.pop('own_weights', None)
    sweep = vary('loss.weight', 'own_weights:weight', 'simple')
    return make_plan(tmp_path / 'own', sweep, configure(folder), seeds=1)

  yield plan, mark
  sys.modules.pop('own_weights', None)


def test_what_other_code_has_trained_is_not_shown_as_what_this_code_does(own):
  plan, _ = own
  before = plan(1.0)
  save_plan(before)
  for cell in before.cells:
    write_record(cell.folder, build(cell.config), {})
    write_result(cell, '{"steps": 4, "metrics": {"mmd": 1}}')
  save_plan(before)
  save_plan(plan('1.0  # a comment'))
  after = plan(2.0)
  with pytest.raises(InputError) as error:
    save_plan(after)
  assert str(error.value) == (
    f'{after.workdir}: the code of own_weights has changed since cells were trained by it, '
    '00-weight=own_weights_weight/seed_0; restore it, remove their folders in '
    f'{after.workdir}/cells to train them anew, or give another --workdir'
  )
  continued = load_plan(after.workdir, ('tiny', 'own_weights'))
  with pytest.raises(InputError, match='the code of own_weights has changed'):
    refuse_stale(continued)
  (after.cells[0].folder / 'config.json').unlink()
  save_plan(after)


def test_a_sweep_in_a_folder_brings_in_no_code_of_its_own(own, empty):
  plan, mark = own
  saved = plan(1.0)
  save_plan(saved)
  assert lines(saved, saved.cells)[0].endswith('--plugins=own_weights,tiny')
  mark.unlink()
  sys.modules.pop('own_weights')
  with pytest.raises(InputError, match=r'sweep\.json: needs code .*give --plugins=own_weights '):
    load_plan(saved.workdir, ('tiny',))
  with pytest.raises(
    InputError, match='differs in its variants: weight=own_weights:weight; weight=simple'
  ):
    save_plan(dataclasses.replace(empty, workdir=saved.workdir))
  assert not mark.exists()
  assert load_plan(saved.workdir, ('tiny', 'own_weights')) == saved and mark.exists()


def test_a_label_in_brackets_is_shown_on_the_terminal(empty):
  write_result(empty.cells[0], '{"steps": 4, "metrics": {"mmd": 1}}')
  (figure,) = make_figures(empty, read_finished(empty))
  row = figure.rows[0]._replace(label='path=[/a]/[red]x')
  console = Console(file=io.StringIO(), width=100)
  console.print(make_table('title', [figure._replace(rows=[row])]))
  assert 'path=[/a]/[red]x' in console.file.getvalue()


def test_samples_without_two_classes_have_no_features(empty, monkeypatch, tmp_path):
  images = np.zeros((40, 8, 8, 1), np.uint8)
  split = data.Arrays(images, {'label': np.zeros(40, int)})
  one = data.Dataset('one', split, split, (8, 8, 1), 17, labels(1))
  real = report.read_real(one)
  monkeypatch.setattr(metrics, 'draw_samples', lambda *_, **__: images)
  monkeypatch.setattr(metrics, 'judge_of', lambda _: metrics.Judge(real, None, np.zeros(0)))
  job, run = SimpleNamespace(dataset=one), SimpleNamespace(config=empty.configs[0])
  found = metrics.samples(metrics.Trained(job, run, tmp_path))
  why = 'the training images are of fewer than two classes'
  names = ('frechet', 'mmd', 'read_as_asked')
  assert found == {**dict.fromkeys(names), 'left_out': dict.fromkeys(names, why)}


def test_a_cell_that_fails_is_told_and_the_rest_go_on(folder, monkeypatch):
  monkeypatch.syspath_prepend(folder)
  sweep = vary('loss.name', 'plugins:failing', 'simple')
  plan = planned(folder, folder / 'failing', sweep, seeds=1, budget='2steps')
  failed, fine = here(plan, plan.cells)
  assert 'ZeroDivisionError' in failed.error and fine.error is None
  assert 'Traceback' in (failed.cell.folder / LOG).read_text()
  assert [one.label for one in plan.cells if not one.done] == ['plugins:failing']
  figures = make_figures(plan, read_finished(plan))
  assert not figures[0].rows[0].seeds and figures[0].rows[1].mean.count == 1


def test_the_mistakes_are_one_line_before_anything_is_done(folder, whole):
  taken, run = folder / 'taken', folder / 'run'
  for place in taken, run:
    place.mkdir()
  (taken / 'sweep.json').write_bytes((whole.workdir / 'sweep.json').read_bytes())
  (run / 'config.json').write_text('{}')
  cases = {
    **{
      name: (['--config=few.py', *(['--workdir=new'] if 'taken' not in str(f) else []), *f], *words)
      for name, (f, *words) in MISTAKES.items()
    },
    **OTHERS,
  }
  (folder / 'lines.json').write_text(json.dumps([flags for flags, *_ in cases.values()]))
  done = subprocess.run(
    [sys.executable, '-c', FORKS],
    cwd=folder,
    env=environment(folder),
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  for number, (name, (_, *words)) in enumerate(cases.items()):
    texts = ((folder / f'{number}.{end}').read_text() for end in ('code', 'out', 'err'))
    code, out, err = texts
    assert (code, out) == ('2', ''), f'{name}: {out}{err}'
    assert all(word in err for word in words), f'{name}: {err}'
    assert err.count('\n') == 1, f'{name}: {err}'
  assert not (folder / 'new').exists()
  assert [path.name for path in taken.iterdir()] == ['sweep.json']


def fake(plan, script, monkeypatch):
  """Cells that are any program."""
  told = [sys.executable, '-S', '-c', script]
  monkeypatch.setattr(runners, 'command', lambda plan, cell: [*told, str(cell.folder), cell.label])


@pytest.fixture
def empty(folder, tmp_path):
  return planned(folder, tmp_path / 'sweep', vary('ema.decay', 0.1, 0.2, 0.3), seeds=1)


def test_a_worker_that_dies_hurts_no_other(empty, monkeypatch):
  script = (
    'import os, sys\n'
    'print("begun", flush=True)\n'
    'if sys.argv[2] == "decay=0.2": os.kill(os.getpid(), 9)\n'
    'if sys.argv[2] == "decay=0.3": sys.exit("no such thing")\n'
    'open(sys.argv[1] + "/result.json", "w").write("{}")\n'
  )
  fake(empty, script, monkeypatch)
  outcomes = {o.cell.label: o.error for o in workers(empty, empty.cells, shared(2))}
  assert outcomes == {
    'decay=0.1': None,
    'decay=0.2': 'died of signal 9',
    'decay=0.3': 'no such thing',
  }
  assert all((cell.folder / LOG).read_text().startswith('begun') for cell in empty.cells)


def test_workers_have_an_environment_each_and_no_more_run_than_those(empty, monkeypatch):
  script = (
    'import os, sys, time\n'
    'place = sys.argv[1] + "/../../../" + os.environ["DEVICE"]\n'
    'os.mkdir(place); time.sleep(0.2); os.rmdir(place)\n'  # fails where two have one device
    'open(sys.argv[1] + "/result.json", "w").write("{}")\n'
  )
  fake(empty, script, monkeypatch)
  devices = [{'DEVICE': 'a'}, {'DEVICE': 'b'}]
  outcomes = list(workers(empty, empty.cells, devices))
  assert [outcome.error for outcome in outcomes] == [None] * 3


def test_workers_are_told_to_save_when_the_runner_ends(empty, monkeypatch):
  script = (
    'import signal, sys, time\n'
    'def save(*_): open(sys.argv[1] + "/saved", "w"); sys.exit(143)\n'
    'signal.signal(signal.SIGTERM, save)\n'
    'if sys.argv[2] == "decay=0.1":\n'
    '  open(sys.argv[1] + "/result.json", "w").write("{}"); sys.exit()\n'
    'open(sys.argv[1] + "/ready", "w"); time.sleep(60)\n'
  )
  fake(empty, script, monkeypatch)
  outcomes = workers(empty, empty.cells, shared(3))
  assert isinstance(next(outcomes), Outcome)
  running = [one.folder for one in empty.cells[1:]]
  while not all((place / 'ready').exists() for place in running):
    pass
  outcomes.close()
  assert all((place / 'saved').exists() for place in running)


def test_a_gpu_s_memory_is_shared(monkeypatch):
  monkeypatch.delenv('XLA_PYTHON_CLIENT_MEM_FRACTION', raising=False)
  assert shared(3) == [{'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.300'}] * 3
  monkeypatch.setenv('XLA_PYTHON_CLIENT_MEM_FRACTION', '0.2')
  assert shared(2) == [{}, {}]


def test_a_device_each(monkeypatch):
  def answer(backend, count):
    done = subprocess.CompletedProcess([], 0, f'a warning\n{backend} {count}\n')
    monkeypatch.setattr(runners.subprocess, 'run', lambda *_, **__: done)
    return pinned()

  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '2,5')
  assert answer('gpu', 2) == [{'CUDA_VISIBLE_DEVICES': '2'}, {'CUDA_VISIBLE_DEVICES': '5'}]
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
  assert answer('gpu', 2) == [{'CUDA_VISIBLE_DEVICES': '0'}, {'CUDA_VISIBLE_DEVICES': '1'}]
  assert [pin['TPU_VISIBLE_CHIPS'] for pin in answer('tpu', 4)] == ['0', '1', '2', '3']
  assert answer('cpu', 1) == [{'JAX_NUM_CPU_DEVICES': '1'}]


def test_the_printed_commands_are_the_cells(empty):
  for cell, line in zip(empty.cells, lines(empty, empty.cells), strict=True):
    assert line.endswith(f'--workdir={empty.workdir} --cell={cell.name} --plugins=tiny')
    assert load_plan(empty.workdir, ('tiny',)).cell(cell.name) == cell


def test_slurm_without_submitit_says_what_to_install(empty, monkeypatch):
  monkeypatch.setitem(sys.modules, 'submitit', None)
  with pytest.raises(InputError, match=r"pip install -e '.\[slurm\]'"):
    runners.submit(empty, empty.cells, {})


def test_slurm_gets_one_array_of_the_commands(empty, monkeypatch, tmp_path):
  """Beside a Slurm whose sbatch notes what it is given."""
  pytest.importorskip('submitit')
  for name in 'sbatch', 'srun':
    script = f'#!/bin/sh\ncp "$1" {tmp_path}/{name}.given\necho Submitted batch job 17\n'
    (tmp_path / name).write_text(script)
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv('PATH', f'{tmp_path}{os.pathsep}{os.environ["PATH"]}')
  jobs = runners.submit(empty, empty.cells, {'timeout_min': 7, 'slurm_partition': 'short'})
  assert jobs == ['17_0', '17_1', '17_2']
  given = (tmp_path / 'sbatch.given').read_text()
  assert '--array=0-2' in given and '--time=7' in given and '--partition=short' in given
  with pytest.raises(InputError, match='--slurm: .*slurm_partitoin'):
    runners.submit(empty, empty.cells, {'slurm_partitoin': 'short'})


def test_a_plan_survives_its_file(folder, tmp_path):
  sweep = grid(vary('model.name', 'tiny:Net'), vary('model.args', {'width': 3}, {'width': 4}))
  plan = planned(folder, tmp_path / 'sweep', sweep, budget='64examples')
  assert load_plan(plan.workdir, ('tiny',)) == plan
  assert {config.training.num_steps for config in plan.configs} == {4}
  assert len({cell.folder for cell in plan.cells}) == 4
  assert all(from_json(to_json(config), plugins=('tiny',)) == config for config in plan.configs)


def test_the_pace_is_measured_once(folder, tmp_path, monkeypatch):
  """6 seconds at 1.5 s a step are 4 steps, also where a later attempt would go faster."""
  plan = planned(folder, tmp_path / 'sweep', vary('ema.decay', 0.5), seeds=1, budget='6seconds')
  (one,) = plan.cells
  one.folder.mkdir(parents=True)
  for pace in 1.5, 0.1:
    monkeypatch.setattr(cell_module, 'step_seconds', lambda *_, pace=pace: pace)
    assert cell_module.paced(one, plan.seconds).training.num_steps == 4


def test_a_step_takes_time(folder, tmp_path):
  plan = planned(folder, tmp_path / 'sweep', vary('ema.decay', 0.5), seeds=1)
  assert 0 < cell_module.step_seconds(plan.configs[0], measured=0.05) < 10
