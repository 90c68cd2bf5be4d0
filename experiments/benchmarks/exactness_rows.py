"""The rows of the table of exactness: their settings, their training, how they are judged."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from ddpm_jax import data
from ddpm_jax.codec import scale
from ddpm_jax.config import Config, from_config_dict
from ddpm_jax.diffusion import PARAMETERIZATIONS
from ddpm_jax.evaluation.noise_levels import make_bin_errors
from ddpm_jax.keys import example_keys
from ddpm_jax.losses import FACTORS, LOSSES, OF_AUTOENCODERS, PRESETS
from ddpm_jax.tasks.run import Run, load_run
from ddpm_jax.tasks.train import train
from experiments.benchmarks import excess

COUNT = 4096

Settings = dict[str, object]
# Even in log sigma, from the level at which a consistency function begins.
WIDE: Settings = {
  'schedule.name': 've',
  'schedule.sigma_min': 0.002,
  'schedule.sigma_max': 80.0,
  'parameterization.name': 'edm',
}
CONSISTENCY: Settings = WIDE | {
  'parameterization.name': 'consistency',
  'sampler.name': 'consistency',
  'sampler.num_steps': 2,
}
FLOW: Settings = {
  'schedule.name': 'flow',
  'parameterization.name': 'flow',
  'loss.name': 'flow_matching',
}
# What a row needs beyond its own name; a teacher is another row's run.
NEEDS: dict[str, Settings] = {
  'flow_matching': FLOW,
  'transport': FLOW | {'dataset.batch_size': 64},  # cubic in the batch
  'edm teacher': WIDE | {'loss.weight': 'output'},
  'consistency_training': CONSISTENCY | {'loss.double_every': 500, 'loss.last_steps': 160},
  'consistency_distillation': CONSISTENCY | {'training.init_from': 'edm teacher'},
  'progressive': {'training.init_from': 'simple', 'sampler.num_steps': 8},
  'self_condition': {'model.self_condition': True},
  'hybrid': {
    'model.learn_variance': True,
    'sampler.name': 'ancestral',
    'sampler.variance': 'fraction',
  },
}
# Not of E[x0 | xt]: other distances, other noise than the schedule's, a sampler's own step.
OTHER_OPTIMUM = {'l1', 'huber', 'pseudo_huber', 'offset', 'perturbed', 'transport', 'progressive'}


def variants() -> dict[str, Settings]:
  """The settings of each row; teachers come first."""
  rows: dict[str, Settings] = {'simple': {}, 'edm teacher': {}, 'self_condition': {}}
  for name in sorted(set(LOSSES) - OF_AUTOENCODERS):
    rows[name] = {'loss.name': name}
  for factor, table in FACTORS.items():
    for name, function in table.items():
      if function not in PRESETS['simple']:
        rows.setdefault(name, {f'loss.{factor}': name})
  for name in PARAMETERIZATIONS:
    rows[f'predicts {name}'] = {'parameterization.name': name}
  return {name: settings | NEEDS.get(name, {}) for name, settings in rows.items()}


def make_config(
  tree: ConfigDict, settings: Settings, workdir: epath.Path, num_steps: int
) -> Config:
  """The config with these settings; a teacher is another run in the folder."""
  settings = {'training.num_steps': num_steps, **settings}
  if 'training.init_from' in settings:
    settings['training.init_from'] = str(workdir / str(settings['training.init_from']))
  for place, value in settings.items():
    group, name = place.split('.')
    with tree[group].unlocked():
      tree[group][name] = value
  return from_config_dict(tree, settings)


def trained(
  tree: ConfigDict, settings: Settings, workdir: epath.Path, name: str, num_steps: int
) -> Run:
  """The run of that name, trained as far as it was not."""
  train(make_config(tree, settings, workdir, num_steps), workdir / name)
  return load_run(workdir / name)


def judged(run: Run) -> tuple[float, float]:
  """The excess error of x0, a mean over levels, and the samples' distance from the data."""
  x0 = scale(jnp.asarray(run.config.dataset.build(data.DATASETS).test[:COUNT]['x']), 256)
  keys = example_keys(jax.random.key(1), jnp.arange(COUNT))
  schedule = run.schedule
  of_flow = (
    run.config.parameterization.name == 'consistency' and 'consistency' in run.config.loss.name
  )
  exact = (excess.exact_consistency if of_flow else excess.exact_denoiser)(schedule)

  read: Any = run.use.denoiser

  @jax.jit
  def measure(params, frozen, x0, keys):
    errors = excess.excess_errors(schedule, read(params, {}, schedule), exact, x0, keys)
    return errors, run.use.generate(params, frozen, {}, keys)

  errors, samples = measure(run.trained, run.frozen, x0, keys)
  drawn, real = (np.asarray(part).reshape(-1, 2) for part in (samples, x0))
  return float(jnp.mean(errors)), excess.sliced_wasserstein(drawn, real)


def error_of_eps(run: Run) -> float:
  """|eps_hat - eps|² of held-out digits, the mean over log-SNRs from -4 to 4."""
  dataset = run.config.dataset.build(data.DATASETS)
  errors = make_bin_errors(run, dataset)()
  return float(np.mean([errors[low, low + 2] for low in (-4, -2, 0, 2)]))
