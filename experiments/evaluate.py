"""Reports on a trained run: its samples and its likelihood, each figure beside a reference.

  python -m experiments.evaluate --workdir=runs/digits

Reads samples.npz of experiments.sample; where those are guided, draws as many without guidance
(samples_unguided.npz, samples/samples_unguided.png). Writes report.json.
"""

import dataclasses
import json
import pathlib
import time
from typing import Any

import rich
from absl import flags

from ddpm_jax.errors import InputError
from ddpm_jax.evaluation import bits, evidence, report
from ddpm_jax.evaluation.batching import evenly
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.likelihood import split_bits
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.sampling import (
  Samples,
  draw_samples,
  load_samples,
  save_samples,
)
from ddpm_jax.training import Experiment, Run, backend, build, hosts, load_run
from ddpm_jax.training.denoising import warn_unstable
from ddpm_jax.training.pictures import grid, write_png
from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.", required=True)
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
  workdir = pathlib.Path(WORKDIR.value)
  run = load_run(workdir)
  samples = current_samples(workdir, run)
  warn_unstable(drawn_by(run, samples))
  experiment = build(run.config)
  real = report.read_real(experiment.dataset)
  figures = {
    'dataset': experiment.dataset.name,
    'step': run.step,
    'samples': [
      report.sample_figures(group, real) for group in (samples, *unguided(workdir, run, samples))
    ],
    'real': report.real_figures(real),
    'loss': run.config.loss.name,
    'bits_per_dim': bits_figures(experiment, run, workdir),
    'baselines': report.baseline_figures(experiment.dataset),
  }
  if not hosts.is_first():
    return
  path = workdir / 'report.json'
  path.write_text(json.dumps(figures, indent=2) + '\n')
  title = f'{experiment.dataset.name}, step {run.step}, averaged parameters'
  rich.print(report.make_table(title, figures))
  print(report.notes(figures))
  pictures = [*sorted((workdir / 'samples').glob('*s.png')), path]
  print('\n'.join(map(str, pictures)))
  print(f'reported in {time.monotonic() - start:.0f} s')


def current_samples(workdir: pathlib.Path, run: Run) -> Samples:
  """The run's samples; raises InputError where they are of another checkpoint than its newest."""
  path = workdir / 'samples.npz'
  samples = load_samples(path)
  step = samples.record['step']
  if step != run.step:
    raise InputError(
      f'{path}: drawn at step {step}, but the run is at {run.step}; draw anew by '
      f'python -m experiments.sample --workdir={workdir}'
    )
  return samples


def drawn_by(run: Run, samples: Samples, **changes: Any) -> Experiment:
  """The run's experiment with the sampler's settings that these were drawn by, but for changes."""
  sampler = dataclasses.replace(run.config.sampler, **samples.record['sampler'] | changes)
  return run.rebuild(dataclasses.replace(run.config, sampler=sampler))


def unguided(workdir: pathlib.Path, run: Run, samples: Samples) -> list[Samples]:
  """As many samples from the same noise without guidance; none where the others are without."""
  if samples.labels is None or samples.record['sampler']['guidance'] == 1:
    return []
  experiment = drawn_by(run, samples, guidance=1.0)
  with progress('unguided samples', len(samples.images)) as advance:
    images = draw_samples(
      experiment,
      run.params,
      len(samples.images),
      samples.labels,
      seed=samples.record['seed'],
      batch_size=run.config.evaluation.batch_size,
      advance=advance,
    )
  record = samples.record | {
    'evaluations': experiment.kind.evaluations(experiment),
    'sampler': dataclasses.asdict(experiment.config.sampler),
  }
  plain = Samples(images, samples.labels, record)
  if hosts.is_first():
    save_samples(workdir / 'samples_unguided.npz', plain)
    picture = grid(by_class(images, samples.labels), COLUMNS)
    write_png(workdir / 'samples' / 'samples_unguided.png', picture)
  return [plain]


def denoiser_bits(experiment: Experiment, run: Run, workdir: pathlib.Path) -> bits.Measures:
  """Each likelihood asked for."""
  del workdir
  bound = dataclasses.replace(experiment, schedule=run.schedule)
  return bits.denoiser_bits(bound, LIKELIHOOD.value, VARIANCE.value, EXACT.value)


def autoencoder_bits(experiment: Experiment, run: Run, workdir: pathlib.Path) -> bits.Measures:
  """Both of an autoencoder's bounds; also draws its reconstructions."""
  images = evidence.pairs(
    experiment, run.params, evenly(experiment.dataset.test, 5 * COLUMNS), COLUMNS
  )
  if hosts.is_first():
    write_png(workdir / 'samples' / 'reconstructions.png', grid(images, COLUMNS))
  return bits.autoencoder_bits(experiment)


BITS = {'denoiser': denoiser_bits, 'autoencoder': autoencoder_bits}


def bits_figures(experiment: Experiment, run: Run, workdir: pathlib.Path) -> report.Figures:
  """The test split's bits/dim by every measure, and how each was found."""
  config, dataset = experiment.config, experiment.dataset
  given = ', given the label' if dataset.num_classes is not None else ''
  found = {}
  for name, (measure, how) in BITS[experiment.kind.name](experiment, run, workdir).items():
    with progress(f'test bits/dim, {name}', 2 * len(dataset.test)) as advance:
      estimate = split_bits(
        measure,
        run.params,
        dataset.test,
        seed=config.seed,
        batch_size=config.evaluation.batch_size,
        advance=advance,
      )
    how = f'{how}, {estimate.replicates} replicates{given}'
    found[name] = {**estimate._asdict(), 'how': how}
  return found


if __name__ == '__main__':
  cli.run(main)
