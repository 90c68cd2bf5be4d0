"""Draws samples of a trained run, with its averaged parameters.

  python -m experiments.sample --workdir=runs/digits --sampler=dpmpp_2m --steps=20 --guidance=2
  python -m experiments.sample --workdir=runs/digits --sampler=ddim --option=eta=0.5
  python -m experiments.sample --workdir=runs/digits --init_image=three.png --strength=0.5
  python -m experiments.sample --list

The run's own sampler settings hold where no flag says otherwise. Writes samples.npz (arr_0 the
uint8 images, arr_1 the labels, cond_NAME other conditions), samples/samples.png, and with --animate
samples/samples.gif. What begins with a picture is called image_to_image instead, what is drawn in a
mask inpainting; or all are called as --out=FILE.npz says. Sample n depends on the seed, n and its
condition alone.
"""

import hashlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich
from absl import flags
from etils import epath
from jax import Array

from ddpm_jax import data
from ddpm_jax.codec import scale
from ddpm_jax.condition import checked, class_name
from ddpm_jax.config import Config, from_config_dict, to_json
from ddpm_jax.data.dataset import typed
from ddpm_jax.data.pictures import read_picture
from ddpm_jax.errors import InputError
from ddpm_jax.evaluation.catalog import sampler_table
from ddpm_jax.evaluation.gallery import COLUMNS, by_class
from ddpm_jax.evaluation.progress import progress
from ddpm_jax.evaluation.report import times
from ddpm_jax.evaluation.sampling import (
  KINDS,
  UNREADABLE,
  draw_path,
  draw_samples,
  samples_of,
  save_samples,
)
from ddpm_jax.files import check_writable
from ddpm_jax.stores import on_disk, path_of
from ddpm_jax.tasks.building import make_dataset
from ddpm_jax.tasks.drawing import Picture
from ddpm_jax.tasks.run import Run, load_run
from ddpm_jax.training import backend, hosts
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
COND = flags.DEFINE_string(
  'cond', None, 'An .npz file with the entries of the condition, taken in turn.'
)
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
  if ANIMATE.value and run.use.denoiser is None:
    raise InputError(f"--animate: '{run.config.task.name}' has no path to show")
  run = run.rebuild(overridden(run))
  config, spec = run.config, run.experiment.dataset.cond
  num = config.evaluation.num_samples
  with hosts.together():
    (cond, asked), picture = chosen_cond(run, num), chosen_picture(run)
  out = chosen_out(workdir, kind_of(picture))
  evaluations = run.use.evaluations(*([picture] if picture else []))
  record = {
    'step': run.step,
    'seed': config.seed,
    'evaluations': evaluations,
    'sampler': to_json(config)['sampler'],
    'cond': asked,
    **picture_record(picture),
  }
  with progress('samples', num) as advance:
    images = draw_samples(
      run,
      num,
      cond,
      seed=config.seed,
      batch_size=config.evaluation.batch_size,
      picture=picture,
      advance=advance,
    )
  if not hosts.is_first():
    return
  samples = samples_of(images, cond, spec, record)
  save_samples(out, samples)
  write_png(shown(out, 'png'), grid(by_class(images, samples.labels), COLUMNS))
  print(
    f'{samples}, {run.use.describe()}: {times(evaluations)} '
    f'for each, in {time.monotonic() - start:.0f} s\n{out}\n{shown(out, "png")}'
  )
  if ANIMATE.value:
    options = {'picture': picture} if picture else {}
    path = draw_path(run, cond, min(num, ROWS * COLUMNS), **options)
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
  """The run's config with what was typed; without a condition there is nothing to guide to."""
  tree, sampler = to_json(run.config), run.config.sampler
  if SAMPLER.value is not None and SAMPLER.value != sampler.name:
    for name in sampler.arguments:
      tree['sampler'].pop(name)
  put(tree['sampler'], name=SAMPLER, num_steps=STEPS, grid=GRID, noise=NOISE, guidance=GUIDANCE)
  tree['sampler'] |= dict(map(cli.read_option, OPTION.value))
  if not run.experiment.conditional:
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
  if run.use.denoiser is None:
    raise InputError(f"--init_image: '{run.config.task.name}' has no path to begin on")
  shape, codec = run.experiment.dataset.image_shape, run.experiment.codec
  under = run.config.dataset.arguments.get('background', 'white')
  pixels = read_picture(on_disk(INIT_IMAGE.value, '--init_image'), shape, '--init_image', under)
  image = encoded(run, pixels)
  mask, usual = None, 0.5
  if MASK.value is not None:
    if codec.shape[:2] != shape[:2]:
      raise InputError(f"--mask: '{run.config.codec.name}' has other places than the picture")
    white = read_picture(on_disk(MASK.value, '--mask'), (*shape[:2], 1), '--mask', under) > 127
    mask, usual = jnp.asarray(~white), 1.0
  strength = usual if STRENGTH.value is None else STRENGTH.value
  if not 0 < strength <= 1:
    raise InputError(f'--strength: {strength} is outside (0, 1]')
  return Picture(image, mask, strength, RESAMPLE.value or 1)


def encoded(run: Run, pixels: np.ndarray) -> Array:
  """A picture, uint8 (H, W, C), as what is diffused."""
  if run.config.codec.name == 'pixels':
    return scale(jnp.asarray(pixels), 256)  # a picture may have more levels than the data
  keys = jax.random.key(run.config.seed)[None]
  return run.experiment.encode(run.frozen, jnp.asarray(pixels)[None], keys)[0]


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


def chosen_cond(run: Run, num: int) -> tuple[dict[str, np.ndarray], str | None]:
  """The condition of each sample, and where it comes from; {} and None for an unconditional run."""
  dataset = run.experiment.dataset
  if LABEL.value is not None and COND.value is not None:
    raise InputError('--cond: give it or --label, not both')
  if LABEL.value is not None:
    return {chosen_class(dataset, LABEL.value): np.full(num, LABEL.value, np.int32)}, '--label'
  if COND.value is not None:
    return read_cond(run, num, COND.value), COND.value
  if not dataset.cond:
    return {}, None
  if all(field.classes is not None for field in dataset.cond.values()):
    return dataset.some_cond(num), 'classes in turn'
  return make_dataset(run.config).some_cond(num), 'held-out examples in turn'


def chosen_class(dataset: data.Dataset, label: int) -> str:
  """The entry that is a class, once the label is one of its classes."""
  name = class_name(dataset.cond)
  field = dataset.cond[name] if name else None
  if name is None or field is None or len(dataset.cond) > 1:
    raise InputError(f'--label: {label}: the run is not conditional on classes alone; leave it out')
  if label >= int(field.null):
    raise InputError(f'--label: {label} is no class; give 0 to {int(field.null) - 1}')
  if label not in (field.classes or ()):
    raise InputError(f'--label: {label} had no example in training; give another')
  return name


def read_cond(run: Run, num: int, file: str) -> dict[str, np.ndarray]:
  """The arrays of the file that --cond names, in turn, one for each entry of the condition."""
  spec, path = run.experiment.dataset.cond, on_disk(file, '--cond')
  try:
    with np.load(path, allow_pickle=False) as arrays:
      cond = {name: in_turn(arrays[name], num) for name in spec}
  except (*UNREADABLE, TypeError) as error:  # TypeError for a single array of its own
    raise InputError(
      f"--cond: '{path}' is no .npz file with arrays {', '.join(spec)} of (N, …) ({error})"
    ) from error
  try:
    return typed(spec, checked(spec, cond))
  except (InputError, TypeError) as error:  # TypeError for a type that the field's cannot hold
    raise InputError(f"--cond: '{path}': {error}") from error


def in_turn(values: np.ndarray, num: int) -> np.ndarray:
  """`num` of the values (N, …), the first again after the last; ValueError where there are none."""
  if values.dtype.kind not in 'biuf' or not values.ndim or not len(values):
    raise ValueError(f'{values.dtype} {values.shape}')
  return values[np.arange(num) % len(values)]


if __name__ == '__main__':
  cli.run(main)
