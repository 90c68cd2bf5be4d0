"""Whether the parts of an experiment fit together, whatever is to be done with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.config.settings import naming
from ddpm_jax.diffusion.parameterization import check_invertible
from ddpm_jax.errors import InputError
from ddpm_jax.losses import trained_variance
from ddpm_jax.losses.timestep_distributions import mass_within, memory, reach, time_of
from ddpm_jax.samplers import Sampler, Solver
from ddpm_jax.tasks.experiment import Experiment

# A distribution of log-SNR keeps to the schedule's range; with less of it there it is another one.
LEAST_MASS = 0.5
# What a schedule answers: see `diffusion.protocol.Schedule`.
ANSWERS = ('t_min', 't_max', 'alpha', 'sigma', 'log_snr', 'time', 'network_time')


def check_schedule(experiment: Experiment) -> None:
  """Raises InputError where the entry is no schedule, or x0 cannot be read from a prediction."""
  schedule, parameterization = experiment.schedule, experiment.parameterization
  if schedule is None:
    return
  if missing := [name for name in ANSWERS if not hasattr(schedule, name)]:
    name = experiment.config.schedule.name
    raise InputError(f"config.schedule.name: '{name}' answers no {', '.join(missing)}")
  if parameterization is not None:
    with naming('config.parameterization', otherwise='config.parameterization.name'):
      check_invertible(parameterization, schedule)


def check_sampler(experiment: Experiment) -> None:
  """Raises InputError where the entry is no sampler."""
  name = experiment.config.sampler.name
  if name and not isinstance(experiment.sampler, (Sampler, Solver)):
    raise InputError(f"config.sampler.name: '{name}' does not return a Sampler")


def check_variance(experiment: Experiment) -> None:
  """Raises InputError where loss or sampler want a variance that the network does not learn."""
  loss, sampler = experiment.config.loss, experiment.config.sampler
  if getattr(experiment.module, 'learn_variance', False):
    return
  mend = 'set config.model.learn_variance'
  if sampler.arguments.get('variance') == 'fraction':
    raise InputError(f"config.sampler.variance: 'fraction' is a learned variance; {mend}")
  if trained_variance(loss.name, loss.arguments):
    raise InputError(f"config.loss.name: '{loss.name}' trains a learned variance; {mend}")


def check_augmented(experiment: Experiment) -> None:
  """Raises InputError where images are augmented that are no pixels, or the network is not told."""
  if not experiment.config.dataset.augment:
    return
  if not getattr(experiment.module, 'augmented', False):
    raise InputError(
      'config.dataset.augment: samples would show it unless the network is told; '
      'set config.model.augmented'
    )
  if experiment.codec.bounds is None:
    name = experiment.config.codec.name
    raise InputError(f"config.dataset.augment: it moves pixels, and '{name}' has none; set it to 0")


def check_moved(experiment: Experiment) -> None:
  """Raises InputError where images are moved, and those in their conditions are not."""
  dataset, asked = experiment.dataset, experiment.config.dataset
  sides = dataset.image_shape[:2]
  beside = [name for name, field in dataset.cond.items() if field.shape[:2] == sides]
  for setting in ('flip', 'augment'):
    if beside and getattr(asked, setting):
      raise InputError(
        f"config.dataset.{setting}: it would move an image but not the '{beside[0]}' of the same "
        'size in its condition; leave it unset'
      )


def check_factors(experiment: Experiment) -> None:
  """Raises InputError where a factor does not answer, at three times, as its table's entries do."""
  if experiment.schedule is None:
    return
  factors, schedule = experiment.factors, experiment.schedule
  keys = jax.random.key(0), jnp.arange(3)

  def weigh() -> Any:
    return [factors.weight(schedule, t) for t in time_of(schedule, jnp.array([0.05, 0.5, 0.95]))]

  def draw() -> Any:
    kept = memory(factors.timestep_distribution)
    state = kept.init(schedule) if kept else ()
    t, correction = factors.timestep_distribution(*keys, 3, schedule, state)
    return [*jax.vmap(schedule.sigma)(t), *correction]

  def measure() -> Any:
    return jnp.atleast_1d(factors.distance(jnp.linspace(-1, 1, 5))).tolist()

  for factor, probe in (('weight', weigh), ('timestep_distribution', draw), ('distance', measure)):
    given = getattr(experiment.config.loss, factor)
    where = f"config.loss.{factor}: '{given}'" if given else f'config.loss.name: its {factor}'
    try:
      values = np.asarray(probe())
    except Exception as error:
      raise InputError(f'{where} cannot be used: {error}') from error
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0)).all():
      raise InputError(f'{where} gives {values}, which are not all finite, positive and scalar')


def check_timestep_distribution(experiment: Experiment) -> None:
  """Raises InputError where most of a distribution of times is beyond the schedule."""
  schedule = experiment.schedule
  if schedule is None:
    return
  mass = mass_within(experiment.factors.timestep_distribution, schedule)
  if mass < LEAST_MASS:
    low, high = (float(level) for level in reach(schedule))
    raise InputError(
      f'config.loss.timestep_distribution: only {mass:.1%} of its log-SNRs are within the '
      f"schedule's, {low:.1f} to {high:.1f}; move the distribution or widen the schedule"
    )


CHECKS: tuple[Callable[[Experiment], None], ...] = (
  check_schedule,
  check_sampler,
  check_variance,
  check_augmented,
  check_moved,
  check_factors,
  check_timestep_distribution,
)


def check(experiment: Experiment) -> None:
  """Raises InputError, naming the field, where parts of an experiment do not fit together."""
  for fits in CHECKS:
    fits(experiment)
