"""Where the cells of a sweep run: in this process, in workers, on one device each, elsewhere.

A worker is a fresh process for each cell, so that a crash, or memory that is not given back, is
that cell's alone. None of it is a scheduler: Slurm's is reached through submitit, any other's by
the list of commands.
"""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from ddpm_jax.ablation.cell import run_cell
from ddpm_jax.ablation.plan import Cell, Plan
from ddpm_jax.errors import InputError

LOG = 'log.txt'
Environment = dict[str, str]


class Outcome(NamedTuple):
  """The end of a cell's run; `error` says in a few words why it failed."""

  cell: Cell
  seconds: float
  error: str | None


def command(plan: Plan, cell: Cell) -> list[str]:
  """What runs one cell of a plan that was saved, in a process of its own."""
  flags = [f'--workdir={plan.workdir}', f'--cell={cell.name}']
  if plan.modules:
    flags.append(f'--plugins={",".join(plan.modules)}')
  return [sys.executable, '-m', 'experiments.ablate', *flags]


def here(plan: Plan, cells: Sequence[Cell]) -> Generator[Outcome]:
  """One cell after another in this process; what they print goes to their logs."""
  for cell in cells:
    start = time.monotonic()
    error = None
    with logged(cell) as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
      try:
        run_cell(cell, plan.seconds, plan.plugins)
      except Exception as failure:
        traceback.print_exc()
        error = ' '.join(f'{type(failure).__name__}: {failure}'.split())[:200]
    jax.clear_caches()  # a few dozen cells' programs are more memory maps than Linux allows
    yield Outcome(cell, time.monotonic() - start, error)


def workers(
  plan: Plan, cells: Sequence[Cell], environments: Sequence[Environment]
) -> Generator[Outcome]:
  """As many at once as there are environments, each cell a process that has one of them.

  Where this process is ended, the workers are told to save, and are waited for.
  """
  waiting, free = collections.deque(cells), list(environments)
  running: dict[subprocess.Popen, tuple[Cell, float, Environment]] = {}
  try:
    while waiting or running:
      while waiting and free:
        cell, environment = waiting.popleft(), free.pop(0)
        running[start(plan, cell, environment)] = cell, time.monotonic(), environment
      for process in [process for process in running if process.poll() is not None]:
        cell, begun, environment = running.pop(process)
        free.append(environment)
        yield Outcome(cell, time.monotonic() - begun, complaint(process.returncode, cell))
      time.sleep(0.05)
  finally:
    for process in running:
      process.terminate()
    for process in running:
      process.wait()


def start(plan: Plan, cell: Cell, environment: Environment) -> subprocess.Popen:
  """Starts a worker, out of reach of the terminal's Ctrl-C, which this process passes on."""
  with logged(cell) as log:
    return subprocess.Popen(
      command(plan, cell),
      env={**os.environ, **environment},
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
      start_new_session=True,
    )


def complaint(code: int, cell: Cell) -> str | None:
  """Why a worker ended: its last line, or the signal that it died of."""
  if cell.done:
    return None
  if code < 0:
    return f'died of signal {-code}'
  lines = (cell.folder / LOG).read_bytes().decode(errors='replace').split('\n')
  words = [line.strip() for line in lines if line.strip()]
  return (words[-1] if words else f'exit code {code}')[:200]


@contextlib.contextmanager
def logged(cell: Cell) -> Iterator[Any]:
  """The cell's log, to be written on at its end."""
  cell.folder.mkdir(parents=True, exist_ok=True)
  with open(cell.folder / LOG, 'a', buffering=1) as log:
    yield log


def shared(count: int) -> list[Environment]:
  """Environments of `count` workers that share every device, a GPU's memory in equal parts."""
  part = {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / count:.3f}'}
  return [{} if part.keys() <= os.environ.keys() else part for _ in range(count)]


def pinned() -> list[Environment]:
  """An environment for each device of this host, in which it is the only one."""
  ask = 'import jax; print(jax.default_backend(), jax.local_device_count())'
  told = subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True, check=True)
  backend, count = told.stdout.split()[-2:]
  return [PINS[backend](number) for number in range(int(count))]


def pin_gpu(number: int) -> Environment:
  """The GPU of that number among those that this process sees."""
  visible = os.environ.get('CUDA_VISIBLE_DEVICES')
  name = visible.split(',')[number] if visible else str(number)
  return {'CUDA_VISIBLE_DEVICES': name}


def pin_tpu(number: int) -> Environment:
  """One chip of a host."""
  alone = {'TPU_CHIPS_PER_PROCESS_BOUNDS': '1,1,1', 'TPU_PROCESS_BOUNDS': '1,1,1'}
  return {**alone, 'TPU_VISIBLE_CHIPS': str(number)}


PINS: dict[str, Callable[[int], Environment]] = {
  'gpu': pin_gpu,
  'tpu': pin_tpu,
  'cpu': lambda number: {'JAX_NUM_CPU_DEVICES': '1'},
}


def lines(plan: Plan, cells: Sequence[Cell]) -> list[str]:
  """The shell commands of the cells, in any order and on any machine that sees the folder."""
  return [shlex.join(command(plan, cell)) for cell in cells]


def submit(plan: Plan, cells: Sequence[Cell], options: dict[str, Any]) -> list[str]:
  """Hands the cells to Slurm as one job array, through submitit; returns the jobs' names.

  Args:
    plan: saved.
    cells: to run.
    options: of submitit's AutoExecutor.update_parameters, as timeout_min or slurm_partition.

  Raises:
    InputError: there is no submitit, no Slurm, or no such option.
  """
  try:
    import submitit  # Here and not above: an optional extra.
  except ImportError:
    raise InputError("--slurm: needs submitit; pip install -e '.[slurm]'") from None
  try:
    executor = submitit.AutoExecutor(plan.workdir / 'slurm', cluster='slurm')
    executor.update_parameters(name=plan.workdir.name, **options)
  except (AssertionError, NameError, RuntimeError, ValueError) as error:
    raise InputError(f'--slurm: {error}') from error
  jobs = executor.submit_array(
    [submitit.helpers.CommandFunction(command(plan, cell)) for cell in cells]
  )
  return [job.job_id for job in jobs]
