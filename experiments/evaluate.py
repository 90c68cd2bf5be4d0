"""Reports on a trained run: its samples and its likelihood, each figure beside a reference.

  python -m experiments.evaluate --workdir=runs/digits

Reads samples.npz of experiments.sample, or what --samples names. Where those are free and guided,
draws as many without guidance (samples_unguided.npz, samples/samples_unguided.png). Writes
report.json, part by part: what was found stays where a later part fails. A figure that cannot be
had is left out, null in the file, with its reason.
"""

import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import rich
from absl import flags
from etils import epath

from ddpm_jax.condition import titles
from ddpm_jax.config import from_json, to_json
from ddpm_jax.data import Dataset
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation import report
from ddpm_jax.evaluation.available import LEFT_OUT, Figures, Unavailable, collect, merge
from ddpm_jax.evaluation.batching import evenly
from ddpm_jax.evaluation.gallery import COLUMNS, by_class, pairs
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.sampling import (
  Samples,
  cond_of,
  draw_samples,
  load_samples,
  samples_of,
  save_samples,
)
from ddpm_jax.evaluation.split_bits import split_bits
from ddpm_jax.files import check_writable, write_json
from ddpm_jax.stores import path_of
from ddpm_jax.tasks.building import make_dataset
from ddpm_jax.tasks.drawing import warn_unstable
from ddpm_jax.tasks.run import Run, load_run
from ddpm_jax.training import backend, hosts
from ddpm_jax.training.pictures import grid, write_png
from ddpm_jax.training.task import Measure, NoMeasure
from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
PLUGINS = cli.plugins_flag()
SAMPLES = flags.DEFINE_string('samples', None, "The samples' file; unset: the run's samples.npz.")
HOSTS = cli.host_flags()
LIKELIHOOD = flags.DEFINE_list(
  'likelihood',
  None,
  "What bits/dim are measured by, of chain, continuous and ode; unset: the config's.",
)
EXACT = flags.DEFINE_bool('exact', False, 'Sum the bound over every time, not a draw of some.')
VARIANCE = flags.DEFINE_enum(
  'variance',
  None,
  ['small', 'large', 'fraction', 'optimal'],
  "Of the chain's reverse steps; unset: fraction or (raw) optimal where that is learned, else "
  'large (for the variational loss small).',
)


def main() -> None:
  """The command."""
  start = time.monotonic()
  backend.prepare()
  cli.join()
  workdir = path_of(WORKDIR.value, '--workdir')
  run = load_run(workdir, plugins=PLUGINS.value)
  file = workdir / 'samples.npz' if SAMPLES.value is None else path_of(SAMPLES.value, '--samples')
  samples = current_samples(file, workdir, run)
  warn_unstable(drawn_by(run, samples).experiment)
  dataset, path = make_dataset(run.config), workdir / 'report.json'
  with hosts.together():
    if hosts.is_first():
      check_writable(workdir, '--workdir')
  hosts.say(f'{file}: {samples}, drawn at step {run.step}')
  figures: Figures = {'dataset': dataset.name, 'step': run.step, 'file': str(file)}
  figures |= {'loss': run.config.loss.name, 'finished': False}
  for name, part in parts(dataset, run, workdir, samples):
    figures |= {name: part, 'finished': name == 'baselines'}
    if hosts.is_first():
      write_json(path, figures)
  if not hosts.is_first():
    return
  title = f'{dataset.name}, step {run.step}, averaged parameters: {samples}'
  rich.print(report.make_table(title, figures))
  print(report.notes(figures))
  others = ('samples_unguided',) if len(figures['samples']) > 1 else ('reconstructions',)
  print('\n'.join(map(str, [*pictures(file, workdir, others), path])))
  print(f'reported in {time.monotonic() - start:.0f} s')


def parts(
  dataset: Dataset, run: Run, workdir: epath.Path, samples: Samples
) -> Iterator[tuple[str, Any]]:
  """The parts of the report, each as it is found; the likelihoods again with each further one."""
  real = report.read_real(dataset)
  groups = (samples, *unguided(workdir, run, samples))
  yield 'samples', [report.sample_figures(group, real) for group in groups]
  yield 'real', report.real_figures(real)
  for found in bits_figures(dataset, run, workdir):
    yield 'bits_per_dim', found
  yield 'baselines', report.baseline_figures(dataset)


def pictures(file: epath.Path, workdir: epath.Path, others: Sequence[str]) -> list[epath.Path]:
  """Those that there are: of the samples in the file, and others of the run."""
  drawn = file.parent / 'samples' / f'{file.stem}.png'
  beside = (workdir / 'samples' / f'{name}.png' for name in others)
  return [path for path in (drawn, *beside) if path.exists()]


def current_samples(file: epath.Path, workdir: epath.Path, run: Run) -> Samples:
  """The samples in a file.

  Raises:
    InputError: it cannot be read, or they are of another checkpoint than the run's newest, or of
      another shape than its images.
  """
  samples = load_samples(file, workdir)
  step, shape = samples.record['step'], run.experiment.dataset.image_shape
  if step != run.step:
    raise InputError(
      f'{file}: drawn at step {step}, but the run is at {run.step}; draw anew by '
      f'python -m experiments.sample --workdir={workdir}'
    )
  if samples.images.shape[1:] != shape:
    raise InputError(
      f'{file}: holds pictures of shape {samples.images.shape[1:]}, but those of {workdir} are of '
      f'{shape}; name a file of this run'
    )
  return samples


def drawn_by(run: Run, samples: Samples, **changes: Any) -> Run:
  """The run with the sampler's settings that these were drawn by, but for changes.

  Their file is data like the folder, and may name no plug-in by itself.
  """
  tree = to_json(run.config) | {'sampler': samples.record['sampler'] | changes}
  try:
    return run.rebuild(from_json(tree, plugins=PLUGINS.value))
  except InputError as error:
    raise InputError(f"the samples' record: {error}") from error


def unguided(workdir: epath.Path, run: Run, samples: Samples) -> list[Samples]:
  """As many free samples from the same noise without guidance, beside free ones that have it.

  None beside those drawn from a picture: that they are would be the difference, not the guidance.
  """
  spec = run.experiment.dataset.cond
  if not spec or samples.record['sampler']['guidance'] == 1 or not samples.free:
    return []
  plain, cond = drawn_by(run, samples, guidance=1.0), cond_of(samples, spec)
  with progress('unguided samples', len(samples.images)) as advance:
    images = draw_samples(
      plain,
      len(samples.images),
      cond,
      seed=samples.record['seed'],
      batch_size=run.config.evaluation.batch_size,
      advance=advance,
    )
  record = samples.record | {
    'evaluations': plain.use.evaluations(),
    'sampler': to_json(plain.config)['sampler'],
  }
  found = samples_of(images, cond, spec, record)
  if hosts.is_first():
    save_samples(workdir / 'samples_unguided.npz', found)
    picture = grid(by_class(images, found.labels), COLUMNS)
    write_png(workdir / 'samples' / 'samples_unguided.png', picture)
  return [found]


def bits_figures(dataset: Dataset, run: Run, workdir: epath.Path) -> Iterator[Figures]:
  """The test split's bits/dim by every measure, and how each was found: all so far, after each.

  Also draws the reconstructions of a task that has them.
  """
  rows = min(5, len(dataset.test) // COLUMNS)
  if run.use.reconstruct and rows:
    images = pairs(run, evenly(dataset, dataset.test, rows * COLUMNS), COLUMNS)
    if hosts.is_first():
      write_png(workdir / 'samples' / 'reconstructions.png', grid(images, COLUMNS))
  found: Figures = {}
  try:
    measures = run.use.bits(LIKELIHOOD.value, VARIANCE.value, EXACT.value)
  except NoMeasure as error:
    yield {'all': None, LEFT_OUT: {'all': str(error)}}
    return
  for name, measure in measures.items():
    make = functools.partial(measured_bits, dataset, run, name, measure)
    found = merge(found, collect({name: make}))
    yield found


def measured_bits(dataset: Dataset, run: Run, name: str, measure: Measure) -> Figures:
  """The test split's bits/dim by one measure."""
  with progress(f'test bits/dim, {name}', 2 * len(dataset.test)) as advance:
    estimate = split_bits(
      measure,
      run.trained,
      run.frozen,
      dataset,
      dataset.test,
      seed=run.config.seed,
      batch_size=run.config.evaluation.batch_size,
      advance=advance,
    )
  if not math.isfinite(estimate.mean):
    raise Unavailable(f'their mean over the images is {estimate.mean}')
  given = f', given the {titles(dataset.cond)}' if dataset.cond else ''
  return {**estimate._asdict(), 'how': f'{measure.how}, {estimate.replicates} replicates{given}'}


if __name__ == '__main__':
  cli.run(main)
