"""The part of the benchmark of training that times sampling."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import jax
from rich.table import Table

from ddpm_jax.config import Config
from ddpm_jax.errors import InputError
from ddpm_jax.samplers import Sampler
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.drawing import describe, evaluations
from ddpm_jax.tasks.experiment import Experiment
from experiments.benchmarks.sampling_runs import make_runs
from experiments.benchmarks.timing import alternate, ratios, shown, spread

Figures = dict[str, Any]
WORDS = {
  'program': 'one program',
  'loop': 'Python loop',
  'network': 'network alone',
  'torch': 'DDIMPipeline',
}


def measure(config: Config, blocks: int, no_torch: str | None) -> Figures:
  """Seconds for a batch of samples, each way; `no_torch` says why PyTorch is left out."""
  experiment = build(config)
  if not isinstance(experiment.sampler, Sampler):
    raise InputError('--sampling: there are steps of one cost to time only with one of SAMPLERS')
  runs = make_runs(experiment)
  variant, torch_run = (no_torch, None) if no_torch else torch_side(experiment)
  if torch_run:
    runs['torch'] = torch_run
  times = alternate(runs, blocks)
  return {
    'dataset': experiment.dataset.name,
    'sampler': describe(experiment),
    'evaluations': evaluations(experiment),
    'batch_size': config.evaluation.batch_size,
    'dtype': getattr(experiment.module, 'dtype', 'float32'),
    'devices': [device.device_kind for device in jax.devices()],
    'cores': os.cpu_count(),
    'load': os.getloadavg()[0],
    'blocks': blocks,
    'torch': variant,
    'seconds': {name: spread(values) for name, values in times.items()},
    'over_program': {name: ratios(values, times['program']) for name, values in times.items()},
    'program_over_network': ratios(times['program'], times['network']),
  }


def torch_side(experiment: Experiment) -> tuple[str, Callable[[], float] | None]:
  """What PyTorch runs and its run() -> seconds; or why it doesn't, and None."""
  from experiments.benchmarks import torch_unet

  if reason := torch_unet.sampling_difference(experiment):
    return f'PyTorch: left out: {reason}', None
  make = functools.partial(torch_unet.make_pipeline, experiment)
  name, run = torch_unet.fastest(make, 1)
  return name, functools.partial(run, 1)


def tables(figures: Figures) -> list[Any]:
  """A line for each way, times as ratios to one program's; and how or why not PyTorch runs."""
  devices = figures['devices']
  table = Table(
    'samples by',
    'images/s',
    'ms/evaluation',
    'time',
    'quartiles',
    title=f'{figures["dataset"]}, {figures["sampler"]}: {figures["evaluations"]} evaluations, '
    f'batch {figures["batch_size"]}, {figures["dtype"]}, {len(devices)} x {devices[0]}, '
    f'{figures["cores"]} cores, load {figures["load"]:.1f}, {figures["blocks"]} blocks',
  )
  for name, (seconds, *_) in figures['seconds'].items():
    table.add_row(
      WORDS[name],
      f'{figures["batch_size"] / seconds:,.1f}',
      f'{1e3 * seconds / figures["evaluations"]:.2f}',
      *shown(figures['over_program'][name], 1, '.3f'),
    )
  ratio, quartiles = shown(figures['program_over_network'], 1, '.3f')
  words = f'program / network (aim: 1.05 or less): {ratio} ({quartiles})'
  other = figures['torch']
  return [table, words, f'DDIMPipeline: {other}' if 'torch' in figures['seconds'] else other]
