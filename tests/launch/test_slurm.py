"""The recipe for Slurm: quickly with stand-ins, slowly on a real Slurm of one node."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import pytest
import slurm as real

from ddpm_jax.training.metrics import read

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]
RECIPE = ROOT / 'experiments' / 'launch' / 'slurm.sbatch'
STEPS = 12_000

# What srun of 22.05 and of 26.11, and pyxis, take as far as the recipe could want it.
SRUN = """label kill-on-bad-exit wait gpu-bind container-image container-mounts container-workdir
  container-env no-container-mount-home no-container-entrypoint cpus-per-task ntasks output"""
# Each notes its words and refuses flags that the command does not have.
STAND_INS = {
  'srun': r"""
while [[ ${1:-} == -* ]]; do
  name=${1#--}; name=${name%%=*}
  [[ " $KNOWN " == *" $name "* ]] || { echo "srun: unrecognized option '$1'" >&2; exit 1; }
  shift
done
exec "$@" """,
  'scancel': '[[ $1 == --signal=TERM && $2 == "$SLURM_JOB_ID" && $# == 2 ]] && kill "$(< task)"',
  'scontrol': r"""case $* in
  "show job $SLURM_JOB_ID") echo "  PreemptEligibleTime=2026-11-28T00:00 PreemptTime=$PREEMPTED" ;;
  "requeue $SLURM_JOB_ID") ;;
  *) echo "invalid entity: $*" >&2; exit 1 ;;
esac""",
}
# A training that ends as it is told to: with $CODE at once, else with 143 once it has heard SIGTERM
# and has saved for so many seconds.
PYTHON = r"""
echo "$SRUN_CPUS_PER_TASK $JAX_COMPILATION_CACHE_DIR $*" > told; echo $$ > task
trap 'sleep "$SAVING"; exit 143' TERM
[ -z "$CODE" ] || exit "$CODE"
while :; do sleep 0.05; done"""


class Job:
  """The batch script, begun with stand-ins for Slurm's commands in a folder of its own."""

  def __init__(self, folder, *flags, **variables):
    self.folder = folder
    for name, text in {**STAND_INS, 'python': PYTHON}.items():
      program = folder / name
      note = f'echo "$0 $*" >> {folder}/calls\n' if name != 'python' else ''
      program.write_text(f'#!/usr/bin/env bash\n{note}{text}\n')
      program.chmod(0o755)
    environment = {**os.environ, 'PATH': f'{folder}{os.pathsep}{os.environ["PATH"]}'}
    environment.pop('JAX_COMPILATION_CACHE_DIR', None)
    environment |= {'KNOWN': ' '.join(SRUN.split()), 'PYTHON': str(folder / 'python')}
    environment |= {'SLURM_JOB_ID': '7', 'SLURM_CPUS_PER_TASK': '8', 'PREEMPTED': 'None'}
    environment |= {'SLURM_GPUS_PER_NODE': 'h100:4', 'SLURM_NTASKS_PER_NODE': '4'}
    environment |= {'CODE': '', 'SAVING': '0'}
    # A file: what the script leaves running for some seconds would keep a pipe open.
    with (folder / 'log').open('w') as log:
      self.process = subprocess.Popen(
        ['bash', RECIPE, *flags], cwd=folder, env=environment | variables, stdout=log, stderr=log
      )

  def signal(self, name):
    """Sends a signal to the script alone, once its training runs."""
    deadline = time.monotonic() + 20
    while not (self.folder / 'task').exists() or not (self.folder / 'task').read_text():
      assert time.monotonic() < deadline and self.process.poll() is None
      time.sleep(0.02)
    time.sleep(0.2)
    subprocess.run(['kill', f'-{name}', str(self.process.pid)], check=True)

  def end(self):
    """Its exit code, and whether it had itself requeued."""
    self.process.wait(30)
    self.output = (self.folder / 'log').read_text()
    calls = (self.folder / 'calls').read_text() if (self.folder / 'calls').exists() else ''
    return self.process.returncode, 'scontrol requeue 7' in calls


# What happens: the signals to the script, the exit code where the training ends by itself, and
# whether the job goes on later.
ENDS = {
  'its time ends': (['USR1'], {}, (143, True)),
  'it is stopped': (['TERM'], {}, (143, False)),
  'it is stopped as it is saved at the end of its time': (
    ['USR1', 'TERM'],
    {'SAVING': '1'},
    (143, False),
  ),
  'it is preempted': ([], {'CODE': '143', 'PREEMPTED': '2026-11-28T00:00:00'}, (143, True)),
  'its tasks alone are stopped': ([], {'CODE': '143'}, (143, False)),
  'its config is wrong': ([], {'CODE': '2'}, (2, False)),
  'it fails as it is preempted': (
    [],
    {'CODE': '1', 'PREEMPTED': '2026-11-28T00:00:00'},
    (1, False),
  ),
  'it is done': ([], {'CODE': '0', 'PREEMPTED': '2026-11-28T00:00:00'}, (0, False)),
  'its time ends for the last time': (['USR1'], {'SLURM_RESTART_COUNT': '100'}, (143, False)),
  'its time ends before that': (['USR1'], {'SLURM_RESTART_COUNT': '99'}, (143, True)),
}


@pytest.mark.parametrize('happens', ENDS)
def test_the_job_goes_on_later_only_after_a_preemption_or_the_end_of_its_time(tmp_path, happens):
  signals, variables, expected = ENDS[happens]
  job = Job(tmp_path, **variables)
  for name in signals:
    job.signal(name)
  assert job.end() == expected, job.output


def test_each_task_gets_its_cpus_a_shared_cache_and_the_flags(tmp_path):
  job = Job(tmp_path, '--config.seed=1', CODE='0', WORKDIR='/shared/a run')
  assert job.end() == (0, False), job.output
  assert (tmp_path / 'told').read_text() == (
    f'8 {tmp_path}/.cache/jit -u -m experiments.train --config=configs/cifar10.py '
    '--workdir=/shared/a run --config.model.dtype=bfloat16 --distributed --config.seed=1\n'
  )


def test_in_a_container_the_repository_is_where_it_is_outside(tmp_path):
  job = Job(tmp_path, CODE='0', IMAGE='me#ddpm', MOUNTS='/scratch:/scratch')
  assert job.end() == (0, False), job.output
  (call,) = [line for line in (tmp_path / 'calls').read_text().splitlines() if '/srun ' in line]
  assert f'--container-image=me#ddpm --container-mounts={tmp_path}:{tmp_path},/scratch:/' in call
  assert f'--container-workdir={tmp_path}' in call and '--no-container-entrypoint' in call


def test_gpus_without_a_task_are_refused(tmp_path):
  job = Job(tmp_path, SLURM_NTASKS_PER_NODE='2')
  assert job.end() == (2, False) and not (tmp_path / 'calls').exists()
  assert job.output == ('slurm.sbatch: --ntasks-per-node=2: give as many as --gpus-per-node\n')


def test_the_compiler_knows_the_flags_that_the_recipes_name():
  texts = [path.read_text() for path in RECIPE.parent.iterdir() if path.is_file()]
  named = sorted(set(re.findall(r'--xla_\w+=\w+', ' '.join(texts))))
  assert len(named) >= 2
  for flags, code in ((named, 0), ([*named, '--xla_gpu_none_of_its=1'], 1)):
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)}
    done = subprocess.run(
      [sys.executable, '-c', 'import jax; jax.devices()'], env=environment, capture_output=True
    )
    assert (done.returncode != 0) == bool(code), done.stderr


# On a real Slurm.


@pytest.fixture(scope='module')
def slurm():
  """A Slurm of one node."""
  if absent := real.missing():
    pytest.skip(f'Slurm is not installed: no {", ".join(absent)}')
  with tempfile.TemporaryDirectory(prefix='slurm') as folder, real.Slurm(folder) as running:
    yield running


def submit(slurm, folder, *words, flags=(), **variables):
  """Submits the recipe for two tasks with a GPU each; returns the job's number."""
  variables = {
    'PYTHON': sys.executable,
    'PYTHONPATH': os.pathsep.join([str(HERE), str(ROOT)]),
    'CONFIG': str(HERE / 'slurm_config.py'),
    'WORKDIR': str(folder / 'run'),
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',
    **variables,
  }
  asked = ['--nodes=1', '--ntasks-per-node=2', '--gpus-per-node=2', '--cpus-per-task=3']
  asked += [f'--output={folder}/%j.log', f'--chdir={ROOT}', *words]
  flags = [f'--config.training.num_steps={STEPS}', '--host_timeout=60', *flags]
  return slurm('sbatch', '--parsable', *asked, str(RECIPE), *flags, **variables)


def log(folder, job):
  """What the job's log says."""
  path = folder / f'{job}.log'
  return path.read_text() if path.exists() else ''


def reach(slurm, folder, job, sign, seconds=300):
  """Waits until sign() is true."""
  deadline = time.monotonic() + seconds
  while not sign():
    assert time.monotonic() < deadline, (slurm.job(job), log(folder, job))
    time.sleep(0.5)


def losses(folder):
  """The logged ones by step; none before there is a run."""
  path = folder / 'run' / 'metrics.jsonl'
  return {row['step']: row['loss'] for row in read(path) if 'loss' in row} if path.exists() else {}


def begun(slurm, folder, job):
  """Waits until a job has trained some steps more than there were."""
  before = max(losses(folder), default=0)
  reach(slurm, folder, job, lambda: max(losses(folder), default=0) > before)


def ended(slurm, folder, job):
  """Waits until a job has ended for good; its state, exit code and how often it was begun anew."""
  last = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'PREEMPTED', 'NODE_FAIL'}
  reach(slurm, folder, job, lambda: slurm.job(job)['JobState'] in last)
  known = slurm.job(job)
  return known['JobState'], known['ExitCode'], int(known['Restarts'])


@pytest.fixture(scope='module')
def undisturbed(slurm, tmp_path_factory):
  """The losses of a run that nothing disturbs, which also shows what its tasks were given."""
  folder = tmp_path_factory.mktemp('undisturbed')
  job = submit(slurm, folder)
  begun(slurm, folder, job)
  step = slurm('scontrol', '--oneliner', 'show', 'step', f'{job}.0')
  assert 'Tasks=2 ' in step and 'CPUs=6 ' in step, step
  assert ended(slurm, folder, job) == ('COMPLETED', '0:0', 0), log(folder, job)
  assert 'slurm.sbatch: ended with 0' in log(folder, job)
  assert max(losses(folder)) == STEPS
  return losses(folder)


def check_whole(slurm, folder, job, restarts, expected):
  """Waits for a job; it ended well after so many restarts, with the losses of another run."""
  assert ended(slurm, folder, job) == ('COMPLETED', '0:0', restarts), log(folder, job)
  assert losses(folder) == expected


@pytest.mark.slow
def test_a_stop_saves_and_ends_the_job_and_the_same_command_goes_on(slurm, tmp_path, undisturbed):
  job = submit(slurm, tmp_path)
  begun(slurm, tmp_path, job)
  slurm('scancel', '--batch', '--signal=TERM', job)
  assert ended(slurm, tmp_path, job) == ('FAILED', '143:0', 0), log(tmp_path, job)
  assert 'interrupted and saved at step' in log(tmp_path, job)
  check_whole(slurm, tmp_path, submit(slurm, tmp_path), 0, undisturbed)


@pytest.mark.slow
def test_at_the_end_of_its_time_a_job_is_saved_and_goes_on_by_itself(slurm, tmp_path, undisturbed):
  job = submit(slurm, tmp_path, '--time=60')
  begun(slurm, tmp_path, job)
  slurm('scontrol', 'update', f'jobid={job}', 'timelimit=6')  # within --signal's time of its end
  reach(slurm, tmp_path, job, lambda: 'slurm.sbatch: ended with 143 (limit)' in log(tmp_path, job))
  slurm('scontrol', 'update', f'jobid={job}', 'timelimit=60')
  check_whole(slurm, tmp_path, job, 1, undisturbed)


@pytest.mark.slow
def test_a_preempted_job_goes_on_by_itself_but_not_for_ever(slurm, tmp_path, undisturbed):
  job = submit(slurm, tmp_path, '--partition=graceful', MAX_RESTARTS='1')
  said = 'slurm.sbatch: ended with 143 (preemption)'
  for restarts in (1, 2):
    begun(slurm, tmp_path, job)
    slurm('sbatch', '--partition=urgent', '--exclusive', '--output=/dev/null', '--wrap=sleep 1')
    reach(slurm, tmp_path, job, lambda n=restarts: log(tmp_path, job).count(said) == n)
  assert ended(slurm, tmp_path, job) == ('FAILED', '143:0', 1), log(tmp_path, job)
  assert 'not requeued again: it has been 1 times (MAX_RESTARTS)' in log(tmp_path, job)
  check_whole(slurm, tmp_path, submit(slurm, tmp_path), 0, undisturbed)


@pytest.mark.slow
def test_a_job_that_slurm_itself_requeues_is_saved_and_goes_on(slurm, tmp_path, undisturbed):
  job = submit(slurm, tmp_path, '--partition=abrupt')
  begun(slurm, tmp_path, job)
  slurm('sbatch', '--partition=urgent', '--exclusive', '--output=/dev/null', '--wrap=sleep 1')
  check_whole(slurm, tmp_path, job, 1, undisturbed)
  assert 'going on from step' in log(tmp_path, job)


@pytest.mark.slow
def test_a_cancelled_job_is_saved_where_it_is_quick_and_stays_away(slurm, tmp_path):
  job = submit(slurm, tmp_path)
  begun(slurm, tmp_path, job)
  slurm('scancel', job)
  assert ended(slurm, tmp_path, job)[::2] == ('CANCELLED', 0), log(tmp_path, job)
  assert 'interrupted and saved at step' in log(tmp_path, job)


@pytest.mark.slow
def test_a_failing_task_ends_the_job_with_its_code(slurm, tmp_path):
  job = submit(slurm, tmp_path, FAILING='1')
  assert ended(slurm, tmp_path, job) == ('FAILED', '1:0', 0), log(tmp_path, job)
  assert '1: RuntimeError: as asked' in log(tmp_path, job)


@pytest.mark.slow
def test_a_wrong_config_ends_the_job_with_2(slurm, tmp_path):
  job = submit(slurm, tmp_path, flags=['--config.loss.name=hybird'])
  assert ended(slurm, tmp_path, job) == ('FAILED', '2:0', 0), log(tmp_path, job)
  assert "'hybird'" in log(tmp_path, job)
