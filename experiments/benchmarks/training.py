"""Times training: the bare compiled step, the whole loop, and the same network in PyTorch.

  python -m experiments.benchmarks.training --config=configs/digits.py --out=digits.json
  python -m experiments.benchmarks.training --config=configs/digits.py --sampling

All in one process, in alternating blocks, so that what counts are ratios. The loop's time holds
input, logging, averaging and checkpoints, each checkpoint shared out over checkpoint.every_steps.
PyTorch and diffusers are no dependencies; where they are installed, their U-Net with the same
sizes runs in the same rounds. With --sampling: a batch of samples as one program, as a loop in
Python, the network alone, and diffusers' pipeline.
"""

import contextlib
import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import rich
from absl import flags
from etils import epath
from rich.table import Table

from ddpm_jax import models
from ddpm_jax.config import from_config_dict
from ddpm_jax.evaluation.pace import Bare, block_length
from ddpm_jax.files import check_writable, write_json
from ddpm_jax.stores import path_of
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.train import make_job
from ddpm_jax.training import backend
from ddpm_jax.training.job import Job
from ddpm_jax.training.loop import read_stream
from ddpm_jax.training.parallel import check_batch_size
from experiments import cli
from experiments.benchmarks import sampling
from experiments.benchmarks.chips import CHIPS, SHARE, appetite
from experiments.benchmarks.flops import matmul_rate
from experiments.benchmarks.timing import alternate, ratios, shown, spread
from experiments.benchmarks.training_runs import Loop, compile_step, input_rates, peak_memory

Figures = dict[str, Any]

CONFIG = cli.config_flag()
BLOCKS = flags.DEFINE_integer('blocks', 7, 'Blocks of each kind.', 1, 1000)
STEPS = flags.DEFINE_integer(
  'steps', None, 'Steps in a block; unset: as many as take about 1.5 seconds.', 2, 10**6
)
SAMPLING = flags.DEFINE_bool('sampling', False, 'Time sampling, not training.')
TORCH = flags.DEFINE_bool('torch', True, 'Time PyTorch too, where it is installed.')
OUT = flags.DEFINE_string('out', None, 'A JSON file for the figures.')


def main() -> None:
  """The command."""
  config = from_config_dict(CONFIG.value, cli.overrides())
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')  # leaves PyTorch its memory
  backend.prepare(config.training.deterministic)
  if OUT.value:
    check_writable(path_of(OUT.value, '--out').parent, '--out')
  with fresh_folder() as folder:
    if SAMPLING.value:
      figures = sampling.measure(config, BLOCKS.value, why_no_torch())
      tables = sampling.tables(figures)
    else:
      check_batch_size(config.dataset.batch_size, jax.device_count())
      figures = measure(build(config), folder)
      tables = training_tables(figures)
  for table in tables:
    rich.print(table)
  if OUT.value:
    write_json(OUT.value, figures)


@contextlib.contextmanager
def fresh_folder() -> Iterator[epath.Path]:
  """A folder for the run and, so that compiling is timed but once, for compiled programs."""
  with tempfile.TemporaryDirectory(prefix='ddpm_jax_') as name:
    folder = path_of(name, 'folder')
    jax.config.update('jax_compilation_cache_dir', str(folder / 'jit'))
    yield folder


def measure(experiment: Experiment, folder: epath.Path) -> Figures:
  """Every figure, in seconds, bytes and operations."""
  config, devices = experiment.config, jax.devices()
  job = make_job(experiment)
  bare = Bare(job)
  program = compile_step(bare)
  bare(2)
  peak = peak_memory()
  steps = STEPS.value or block_length(bare(2) / 2)
  dtype = getattr(experiment.module, 'dtype', 'float32')
  rates = [matmul_rate(dtype, devices)]
  other, torch_run = torch_side(experiment, job, steps)

  loop = Loop(config, folder / 'run', steps, BLOCKS.value)
  runs = {'bare': lambda: bare(steps), 'loop': loop}
  if torch_run:
    runs['torch'] = lambda: torch_run(steps)
  with contextlib.closing(loop):
    times = alternate(runs, BLOCKS.value)
  rates.append(matmul_rate(dtype, devices))

  if torch_run:
    other |= {'speed': ratios(times['torch'], times['bare'])}
  return {
    'dataset': experiment.dataset.name,
    'batch_size': config.dataset.batch_size,
    'dtype': dtype,
    'devices': [device.device_kind for device in devices],
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
    'parameters': models.num_params(job.shapes.params),
    'blocks': BLOCKS.value,
    'steps': steps,
    'step_seconds': {
      name: spread([seconds / steps for seconds in values]) for name, values in times.items()
    },
    'bare_over_loop': ratios(times['bare'], times['loop']),
    'input_images_per_second': input_rates(job)._asdict(),
    'matmul_rate': max(rates),
    'peak_bytes': peak,
    **program._asdict(),
    'torch': other,
  }


def torch_side(
  experiment: Experiment, job: Job, steps: int
) -> tuple[Any, Callable[[int], float] | None]:
  """What PyTorch runs, and its run(steps) -> seconds; or why it doesn't, and None."""
  if reason := why_no_torch():
    return reason, None
  from experiments.benchmarks import torch_unet

  if reason := torch_unet.difference(experiment):
    return f'PyTorch: left out: {reason}', None
  batch = next(read_stream(job))
  make = functools.partial(torch_unet.make_run, experiment, batch)
  name, run = torch_unet.fastest(make, steps)
  unet = torch_unet.make_unet(experiment.module, experiment.dataset.image_shape)
  return {'variant': name, 'parameters': torch_unet.num_params(unet)}, run


def why_no_torch() -> str | None:
  """Why PyTorch is not timed, in words; None where it can be."""
  if not TORCH.value:
    return 'PyTorch: left out (--notorch)'
  missing = [name for name in ('torch', 'diffusers') if not importlib.util.find_spec(name)]
  if missing:
    return f'PyTorch: left out, since {" and ".join(missing)} cannot be imported'
  if jax.device_count() > 1:
    return 'PyTorch: left out, since it would run on one device of several'
  return None


def training_tables(figures: Figures) -> list[Any]:
  """The step's figures, and PyTorch's or why there are none."""
  other = figures['torch']
  return [step_table(figures), other if isinstance(other, str) else torch_table(figures)]


def step_table(figures: Figures) -> Table:
  """The step, the loop, and how near to the machine's rate they come."""
  devices = figures['devices']
  table = Table(
    'measure',
    'median',
    'quartiles',
    title=f'{figures["dataset"]}, batch {figures["batch_size"]}, {figures["dtype"]}, '
    f'{len(devices)} x {devices[0]}, {figures["cores"]} cores, load {figures["load"]:.1f}, '
    f'{figures["blocks"]} blocks of {figures["steps"]} steps',
  )
  for name, words in {'bare': 'the bare step', 'loop': 'the whole loop'}.items():
    table.add_row(f'{words}, ms', *shown(figures['step_seconds'][name], 1e3, '.2f'))
    rate = figures['batch_size'] / figures['step_seconds'][name][0]
    table.add_row(f'{words}, images/s', f'{rate:,.0f}', '')
  table.add_row('bare / loop (aim: 0.97 or more)', *shown(figures['bare_over_loop'], 1, '.3f'))
  for name, note in {'first': 'the first time', 'again': 'again, as in later epochs'}.items():
    rate = figures['input_images_per_second'][name]
    table.add_row('input alone, images/s', f'{rate:,.0f}', note)
  per_image = figures['flops'] / figures['batch_size']
  for name, chip in CHIPS.items():
    note = f"predicted, at {SHARE:.0%} of its maker's rate in bfloat16"
    table.add_row(f'one {name} takes, images/s', f'{appetite(chip, per_image):,.0f}', note)
  for words, value, note in rate_rows(figures):
    table.add_row(words, value, note)
  return table


def rate_rows(figures: Figures) -> Iterator[tuple[str, str, str]]:
  """Operations, compile time and memory: (measure, value, note)."""
  rate = figures['flops'] / figures['step_seconds']['bare'][0]
  best, xla = figures['matmul_rate'], figures['xla_flops']
  counted = 'XLA has no count' if xla is None else f'XLA counts {xla / 1e9:.4g} on each device'
  yield 'a step, GFLOP', f'{figures["flops"] / 1e9:.4g}', counted
  yield 'the bare step, GFLOP/s', f'{rate / 1e9:,.0f}', 'products and convolutions'
  yield f'{figures["dtype"]} matmul, GFLOP/s', f'{best / 1e9:,.0f}', 'the most over a few sizes'
  yield 'share of the matmul rate', f'{rate / best:.1%}', ''
  yield 'compile time, s', f'{figures["compile_seconds"]:.1f}', ''
  if figures['bytes'] is not None:
    yield 'state, batch, temporaries, MiB', f'{figures["bytes"] / 2**20:,.0f}', 'as XLA plans it'
  peak, whose = figures['peak_bytes']
  yield 'peak memory, MiB', f'{peak / 2**20:,.0f}', f'{whose}, the bare step'


def torch_table(figures: Figures) -> Table:
  """The bare step beside PyTorch's."""
  other, seconds = figures['torch'], figures['step_seconds']
  table = Table('the bare step', 'ddpm_jax', f'diffusers, {other["variant"]}')
  table.add_row('parameters', f'{figures["parameters"]:,}', f'{other["parameters"]:,}')
  table.add_row('ms', *(shown(seconds[name], 1e3, '.2f')[0] for name in ('bare', 'torch')))
  rates = (figures['batch_size'] / seconds[name][0] for name in ('bare', 'torch'))
  table.add_row('images/s', *(f'{rate:,.0f}' for rate in rates))
  table.add_row('speed, PyTorch = 1', *shown(other['speed'], 1, '.2f'))
  return table


if __name__ == '__main__':
  cli.run(main)
