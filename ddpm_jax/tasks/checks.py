"""What is said before training of an experiment that would train in vain, or cannot begin."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.condition import shapes
from ddpm_jax.config import Config
from ddpm_jax.config.plugins import PLUGIN
from ddpm_jax.data.dataset import EARLIER, Dataset
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, step_key
from ddpm_jax.losses import LOSSES, LossOutput, trained_variance
from ddpm_jax.models.unet import UNet
from ddpm_jax.tasks.building import rate_of
from ddpm_jax.tasks.denoising import make_context
from ddpm_jax.tasks.drawing import check_guidance, warn_unstable
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.training.advance import refuse_gather
from ddpm_jax.training.job import Job
from ddpm_jax.training.parallel import all_devices, in_slices
from ddpm_jax.training.state import TrainState
from ddpm_jax.training.task import Batch


def rate_jump(config: Config, before: int, step: int) -> str | None:
  """What to say where a run that goes on with another number of steps changes its learning rate.

  Args:
    config: of the run that goes on.
    before: the same run's config.training.num_steps until now.
    step: the number of updates made.

  Returns:
    A line that names both rates; None where the rate goes on as it would have.
  """
  ours = config.optimizer
  new, old = (rate_of(ours, num_steps) for num_steps in (config.training.num_steps, before))
  if np.isclose(new(step), old(step), rtol=1e-3, atol=0):
    return None
  was, will_be = (np.asarray(rate).item() for rate in (old(step - 1), new(step)))
  return (
    f"config.optimizer.lr_schedule: '{ours.lr_schedule}' runs over config.training.num_steps, "
    f'which was {before} and is {config.training.num_steps}: the learning rate jumps from '
    f'{was:.3g} to {will_be:.3g}; to choose it, train another run from this one with '
    'config.training.init_from and config.optimizer.learning_rate'
  )


def check_attention(experiment: Experiment, job: Job) -> None:
  """Raises InputError where attention is asked for at a height that images halve to at no level."""
  if not isinstance(experiment.module, UNet):
    return
  height = experiment.codec.shape[0]
  heights = [height >> level for level in range(height.bit_length())]
  for wanted in job.config.model.arguments.get('attention_resolutions', ()):
    if wanted not in heights:
      raise InputError(
        f'config.model.attention_resolutions: no level has images {wanted} high; they halve to '
        f'{", ".join(map(str, heights))}'
      )


def remarks(experiment: Experiment) -> Iterator[str]:
  """What a run will not do that its config asks for, though it may have been meant so.

  A short trial of a long run's config, or a shallow network in place of a deep one, may go on.
  """
  config, module = experiment.config, experiment.module
  warmup, steps = config.optimizer.warmup_steps, config.training.num_steps
  if warmup > steps:
    yield (
      f'config.optimizer.warmup_steps: {warmup} is beyond the run of {steps} steps, which ends at '
      f'{steps / warmup:.2g} of its learning rate'
    )
  parallel = config.parallel
  if parallel.mode == 'hsdp' and len(in_slices(all_devices(), parallel.slices)) == 1:
    yield (
      "config.parallel.mode: all devices are of one slice, in which 'hsdp' is 'fsdp'; "
      'config.parallel.slices makes several of them'
    )
  if isinstance(module, UNet):
    height = experiment.codec.shape[0]
    heights = [height >> level for level in range(len(module.multipliers))]
    for wanted in config.model.arguments.get('attention_resolutions', ()):
      if wanted not in heights:
        yield (
          f'config.model.attention_resolutions: no level has images {wanted} high; they are '
          f'{", ".join(map(str, heights))} high'
        )


def check_memory(experiment: Experiment, job: Job) -> None:
  """Raises InputError where what every step holds is more than the machine has.

  A step takes several times as much; what passes may still be too large.
  """
  limit, examples, devices = memory_limit(), job.config.dataset.batch_size, jax.device_count()
  images = 4 * examples * math.prod(experiment.codec.shape) // devices
  layout = job.parallel.layout(job.shapes)
  held = size_on_each(layout) + size_on_each(layout.params)
  held += size_on_each(job.parallel.layout(job.frozen))
  parts = {
    'config.dataset.batch_size': (f'{examples} examples', images),
    'config.model': ('parameters, gradients, averages and what is frozen', held),
  }
  for field, (what, size) in parts.items():
    if size > limit:
      raise InputError(
        f'{field}: {what} take {size / 2**30:.3g} GiB of each device, and it has '
        f'{limit / 2**30:.3g} GiB'
      )


def size_on_each(layout: Any) -> int:
  """The bytes that each device has of a tree of arrays laid out on several."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(layout)
  )


def memory_limit() -> int:
  """The bytes that a device has: its own, or those of the host whose memory it shares."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit') or os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def check_learned_variance(experiment: Experiment, job: Job) -> None:
  """Raises InputError where nothing trains or nothing draws by the variance that is learned.

  What only samples or evaluates is free to leave it alone.
  """
  parameterization = experiment.parameterization
  if parameterization is None or not getattr(experiment.module, 'learn_variance', False):
    return
  variance = parameterization.head.variance
  loss, sampler = job.config.loss, job.config.sampler
  if loss.name in LOSSES and not trained_variance(loss.name, loss.arguments):
    raise InputError(
      f"config.model.learn_variance: the loss '{loss.name}' does not train it; take 'hybrid', or "
      f"'variational' with config.loss.variance={variance}"
    )
  if loss.arguments.get('variance', variance) != variance:
    raise InputError(
      f"config.loss.variance: the network's learned variance is read as '{variance}' "
      f'(config.parameterization.variance_head)'
    )
  if sampler.arguments.get('variance') != variance:
    raise InputError(
      f"config.sampler.name: '{sampler.name}' as it is set ignores the variance that the network "
      f"learns; take 'ancestral' with config.sampler.variance={variance}, or unset "
      'config.model.learn_variance'
    )


def check_estimates(experiment: Experiment, job: Job) -> None:
  """Raises InputError where the mean over uniform times is wanted and t is drawn otherwise."""
  loss = job.config.loss
  options = inspect.signature(experiment.factors.timestep_distribution).parameters
  if loss.name == 'hybrid' and 'estimate' in options and not options['estimate'].default:
    raise InputError(
      f"config.loss.timestep_distribution: '{loss.timestep_distribution}' does not estimate the "
      "mean over uniform times, of which the bound in 'hybrid' is a part; set (estimate=True)"
    )


def check_plug_in(experiment: Experiment, job: Job) -> None:
  """Raises InputError where a loss or a task from elsewhere does not return what a loss returns."""
  config = job.config
  foreign = [group for group in ('loss', 'task') if PLUGIN.fullmatch(getattr(config, group).name)]
  if not foreign:
    return
  group = foreign[0]
  where = f"config.{group}.name: '{getattr(config, group).name}'"
  output = traced(where, traced_loss, job)
  size = config.dataset.batch_size
  if not isinstance(output, LossOutput) or getattr(output.values, 'shape', None) != (size,):
    raise InputError(f'{where} does not return LossOutput(values (B,), metrics, state)')


def traced_loss(job: Job, gather: Callable[[Array], Array] = lambda values: values) -> Any:
  """The shapes that the task's loss returns for a batch."""

  def run(state: TrainState, frozen: Any, batch: Batch, keys: Keys) -> Any:
    return job.task.loss(state.params, state.loss_state, frozen, batch, keys, gather)

  return jax.eval_shape(run, job.shapes, job.frozen, *batch_and_keys(job))


def batch_and_keys(job: Job) -> tuple[Batch, Keys]:
  """The shapes of what a task's loss is given in training."""
  stored = jax.ShapeDtypeStruct(job.dataset.image_shape, jnp.uint8)
  return shapes_of_batch(job.config.dataset.batch_size, stored, job.dataset)


def shapes_of_batch(size: int, x: jax.ShapeDtypeStruct, dataset: Dataset) -> tuple[Batch, Keys]:
  """The shapes of a batch of `size` examples like x, with their conditions, and their keys."""
  key = step_key(0, 0)
  batch = {
    'x': jax.ShapeDtypeStruct((size, *x.shape), x.dtype),
    'cond': shapes(dataset.cond, size),
    'index': jax.ShapeDtypeStruct((size,), jnp.int32),
  }
  return batch, Keys(key, example_keys(key, jnp.arange(size)))


def check_noise_distribution(experiment: Experiment, job: Job) -> None:
  """Raises InputError where a noise distribution does not return two noises like x."""
  if not job.config.loss.noise_distribution:
    return
  context = make_context(experiment)
  diffused = jax.ShapeDtypeStruct(experiment.codec.shape, jnp.float32)
  size = job.config.dataset.batch_size
  batch, keys = shapes_of_batch(size, diffused, experiment.dataset)
  where = f"config.loss.noise_distribution: '{job.config.loss.noise_distribution}'"
  distribution = functools.partial(context.factors.noise_distribution, context)
  found = traced(where, jax.eval_shape, distribution, batch, keys)
  sizes = [getattr(noise, 'shape', None) for noise in jax.tree.leaves(found)]
  if sizes != [batch['x'].shape] * 2:
    raise InputError(f"{where} does not return (eps, shown), both like batch['x']")


def traced(where: str, function: Callable, *args: Any) -> Any:
  """What function(*args) returns; InputError naming the place where it raises."""
  try:
    return function(*args)
  except Exception as error:
    line = str(error).strip().split('\n')[0]
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    mend = f'; it is {EARLIER[key]} now' if key in EARLIER else ''
    raise InputError(f'{where}: {type(error).__name__}: {line}{mend}') from error


def check_parts(experiment: Experiment, job: Job) -> None:
  """Raises InputError where a loss needs a batch whole that is taken in parts."""
  if job.config.parallel.microbatches > 1:
    traced_loss(job, refuse_gather)


def check_sampler(experiment: Experiment, job: Job) -> None:
  """Raises InputError for guidance that is not possible.

  A sampler that would blow up what previews show is only warned of.
  """
  if experiment.sampler:
    check_guidance(experiment)
    if experiment.schedule is not None:
      warn_unstable(experiment)


CHECKS: tuple[Callable[[Experiment, Job], None], ...] = (
  check_learned_variance,
  check_estimates,
  check_attention,
  check_memory,
  check_noise_distribution,
  check_plug_in,
  check_parts,
  check_sampler,
)


def check_training(experiment: Experiment, job: Job) -> None:
  """Raises InputError where training would be in vain, or a loss or a plug-in cannot begin."""
  for passes in CHECKS:
    passes(experiment, job)
