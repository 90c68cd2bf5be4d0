"""Draws samples of a trained run, with its averaged parameters.

  python -m experiments.sample --workdir=runs/digits --sampler=dpmpp_2m --steps=20 --guidance=2
  python -m experiments.sample --workdir=runs/digits --sampler=ddim --option=eta=0.5
  python -m experiments.sample --workdir=runs/digits --init_image=three.png --strength=0.5
  python -m experiments.sample --list

The run's own sampler settings hold where no flag says otherwise. Writes samples.npz (arr_0 the
uint8 images, arr_1 the labels), samples/samples.png, and with --animate samples/samples.gif. What
begins with a picture is called image_to_image instead, what is drawn in a mask inpainting; or all
are called as --out=FILE.npz says. Sample n depends on the seed, n and its class alone.
"""

import hashlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import rich
from absl import flags
from etils import epath

from ddpm_jax import data
from ddpm_jax.config import Config, from_config_dict, to_json
from ddpm_jax.data.pictures import read_picture
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.catalog import sampler_table
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.report import times
from ddpm_jax.evaluation.sampling import (
  KINDS,
  Samples,
  draw_path,
  draw_samples,
  save_samples,
)
from ddpm_jax.files import check_writable
from ddpm_jax.stores import on_disk, path_of
from ddpm_jax.training import Run, backend, hosts, load_run
from ddpm_jax.training.denoising import Picture
from ddpm_jax.training.pictures import ROWS, grid, write_gif, write_png
from experiments import cli

WORKDIR = flags.DEFINE_string('workdir', None, "The run's folder.")
PLUGINS = cli.plugins_flag()
LIST = flags.DEFINE_bool('list', False, 'Print the table of samplers and grids, and end.')
OPTION = flags.DEFINE_multi_string('option', [], "One of the sampler's own, as eta=0.5.")
NUM = flags.DEFINE_integer('num', None, 'How many samples.', lower_bound=1, upper_bound=10**6)
STEPS = flags.DEFINE_integer(
  'steps', None, 'Times that the sampler visits.', lower_bound=1, upper_bound=10**6
)
SAMPLER = flags.DEFINE_string('sampler', None, 'Its name; see --list.')
GRID = flags.DEFINE_string('grid', None, 'Law of the times that it visits.')
NOISE = flags.DEFINE_string('noise', None, 'Where its noise comes from: white or brownian.')
GUIDANCE = flags.DEFINE_float(
  'guidance', None, 'Scale of guidance; 1: none.', lower_bound=0.0, upper_bound=1000.0
)
LABEL = flags.DEFINE_integer('label', None, 'One class for all; unset: all in turn.', lower_bound=0)
SEED = flags.DEFINE_integer('seed', None, 'Of the noise.', lower_bound=0, upper_bound=2**32 - 1)
BATCH_SIZE = flags.DEFINE_integer(
  'batch_size', None, 'Samples at a time.', lower_bound=1, upper_bound=10**6
)
INIT_IMAGE = flags.DEFINE_string('init_image', None, 'A picture to begin with.')
STRENGTH = flags.DEFINE_float('strength', None, 'Share of the times to go through from it.')
MASK = flags.DEFINE_string('mask', None, 'Where to draw anew in it: white; black is kept.')
RESAMPLE = flags.DEFINE_integer(
  'resample',
  None,
  "RePaint's repetitions of each step; unset: 1.",
  lower_bound=1,
  upper_bound=1000,
)
OUT = flags.DEFINE_string('out', None, "The .npz file to write; unset: one in the run's folder.")
HOSTS = cli.host_flags()
ANIMATE = flags.DEFINE_bool('animate', False, 'Write the way from noise to samples as a GIF.')


def main() -> None:
  """The command."""
  start = time.monotonic()
  if LIST.value:
    rich.print(sampler_table())
    return
  if WORKDIR.value is None:
    raise InputError("--workdir is missing: The run's folder.")
  backend.prepare()
  cli.join()
  workdir = path_of(WORKDIR.value, '--workdir')
  run = load_run(workdir, plugins=PLUGINS.value)
  if ANIMATE.value and run.experiment.kind.name != 'denoiser':
    raise InputError('--animate: an autoencoder has no path to show')
  config = overridden(run)
  experiment = run.rebuild(config)
  num = config.evaluation.num_samples
  labels, picture = chosen_labels(run, num), chosen_picture(run)
  out = chosen_out(workdir, kind_of(picture))
  evaluations = experiment.kind.evaluations(experiment, *([picture] if picture else []))
  record = {
    'step': run.step,
    'seed': config.seed,
    'evaluations': evaluations,
    'sampler': to_json(config)['sampler'],
    **picture_record(picture),
  }
  with progress('samples', num) as advance:
    images = draw_samples(
      experiment,
      run.params,
      num,
      labels,
      seed=config.seed,
      batch_size=config.evaluation.batch_size,
      picture=picture,
      advance=advance,
    )
  if not hosts.is_first():
    return
  samples = Samples(images, labels, record)
  save_samples(out, samples)
  write_png(shown(out, 'png'), grid(by_class(images, labels), COLUMNS))
  print(
    f'{samples}, {experiment.kind.describe(experiment)}: {times(evaluations)} '
    f'for each, in {time.monotonic() - start:.0f} s\n{out}\n{shown(out, "png")}'
  )
  if ANIMATE.value:
    options = {'picture': picture} if picture else {}
    path = draw_path(experiment, run.params, labels, min(num, ROWS * COLUMNS), **options)
    write_gif(shown(out, 'gif'), [grid(frame, COLUMNS) for frame in path])
    print(shown(out, 'gif'))


def chosen_out(workdir: epath.Path, kind: str) -> epath.Path:
  """The file to write, once it is known that it and the pictures beside it can be written."""
  usual = workdir / f'{KINDS[kind][0]}.npz'
  out = usual if OUT.value is None else path_of(OUT.value, '--out')
  if out.suffix != '.npz' or out.is_dir():
    raise InputError(f"--out: '{OUT.value}' is not the name of an .npz file, as new.npz")
  field = '--workdir' if OUT.value is None else '--out'
  with hosts.together():
    if hosts.is_first():
      check_writable(out.parent, field, out.name)
      check_writable(shown(out, 'png').parent, field)
  return out


def shown(out: epath.Path, suffix: str) -> epath.Path:
  """The picture of the samples in a file, beside it."""
  return out.parent / 'samples' / f'{out.stem}.{suffix}'


def overridden(run: Run) -> Config:
  """The run's config with what was typed; without classes there is nothing to guide to."""
  tree, sampler = to_json(run.config), run.config.sampler
  if SAMPLER.value is not None and SAMPLER.value != sampler.name:
    for name in sampler.arguments:
      tree['sampler'].pop(name)
  put(tree['sampler'], name=SAMPLER, num_steps=STEPS, grid=GRID, noise=NOISE, guidance=GUIDANCE)
  tree['sampler'] |= dict(map(cli.read_option, OPTION.value))
  if run.experiment.dataset.num_classes is None:
    tree['sampler']['guidance'] = 1.0
  put(tree['evaluation'], num_samples=NUM, batch_size=BATCH_SIZE)
  put(tree, seed=SEED)
  return from_config_dict(tree)


def put(branch: dict[str, Any], **typed: flags.FlagHolder) -> None:
  """Sets what was given by a flag."""
  branch |= {name: flag.value for name, flag in typed.items() if flag.value is not None}


def chosen_picture(run: Run) -> Picture | None:
  """The picture to begin with, and its mask."""
  if INIT_IMAGE.value is None:
    wanting = [f for f in (MASK, STRENGTH, RESAMPLE) if f.value is not None]
    if wanting:
      raise InputError(f'--{wanting[0].name}: of which picture? give --init_image too')
    return None
  if MASK.value is None and RESAMPLE.value is not None:
    raise InputError('--resample: repeats the steps around a mask; give --mask too')
  if run.experiment.kind.name != 'denoiser':
    raise InputError('--init_image: an autoencoder has no path to begin on')
  shape = run.experiment.dataset.image_shape
  under = run.config.dataset.arguments.get('background', 'white')
  pixels = read_picture(on_disk(INIT_IMAGE.value, '--init_image'), shape, '--init_image', under)
  image = data.scale(jnp.asarray(pixels), 256)
  mask, usual = None, 0.5
  if MASK.value is not None:
    white = read_picture(on_disk(MASK.value, '--mask'), (*shape[:2], 1), '--mask', under) > 127
    mask, usual = jnp.asarray(~white), 1.0
  strength = usual if STRENGTH.value is None else STRENGTH.value
  if not 0 < strength <= 1:
    raise InputError(f'--strength: {strength} is outside (0, 1]')
  return Picture(image, mask, strength, RESAMPLE.value or 1)


def kind_of(picture: Picture | None) -> str:
  """What the samples are, a key of KINDS."""
  if picture is None:
    return 'free'
  return 'image_to_image' if picture.mask is None else 'inpainting'


def picture_record(picture: Picture | None) -> dict[str, Any]:
  """What a record says of the picture: its file and its mask's, each with its hash, and how."""
  kind = {'kind': kind_of(picture)}
  if picture is None:
    return kind
  named = {flag.name: flag.value and hashed(flag) for flag in (INIT_IMAGE, MASK)}
  return {**kind, **named, 'strength': picture.strength, 'resample': picture.resample}


def hashed(flag: flags.FlagHolder) -> dict[str, str]:
  """The file that a flag names, and its hash."""
  content = on_disk(flag.value, f'--{flag.name}').read_bytes()
  return {'path': flag.value, 'sha256': hashlib.sha256(content).hexdigest()}


def chosen_labels(run: Run, num: int) -> np.ndarray | None:
  """The classes to ask for."""
  dataset, label = run.experiment.dataset, LABEL.value
  if label is None:
    return dataset.balanced_labels(num)
  if dataset.classes is None or dataset.num_classes is None:
    raise InputError(f'--label: {label}: the run has no classes; leave it out')
  if label >= dataset.num_classes:
    raise InputError(f'--label: {label} is no class; give 0 to {dataset.num_classes - 1}')
  if label not in dataset.classes:
    raise InputError(f'--label: {label} had no example in training; give another')
  return np.full(num, label, np.int32)


if __name__ == '__main__':
  cli.run(main)
