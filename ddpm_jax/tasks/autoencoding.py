"""The task of a variational autoencoder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax import models
from ddpm_jax.condition import Cond
from ddpm_jax.config.settings import naming
from ddpm_jax.errors import InputError
from ddpm_jax.keys import Keys, example_keys, for_purpose, step_key
from ddpm_jax.losses import OF_AUTOENCODERS, LossContext, LossOutput
from ddpm_jax.tasks import evidence
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.tasks.heldout import evenly_spaced
from ddpm_jax.tasks.parts import begin, encoded, later, make_preview
from ddpm_jax.training.task import Batch, Frozen, Task, Use


def autoencoding(experiment: Experiment, teacher: Frozen | None = None) -> Task:
  """Training an autoencoder by the evidence lower bound.

  Its params are {'network', 'schedule', 'loss'}; it has no schedule, and that branch is empty.

  Args:
    experiment: of a module with an encoder and a decoder.
    teacher: has no part in it.

  Raises:
    InputError: the experiment is one of another task.
  """
  del teacher
  check(experiment)
  context, use = make_context(experiment), make_use(experiment)
  return Task(
    init=functools.partial(begin, experiment, context, models.init_coder),
    loss=functools.partial(loss, experiment, context),
    optimizer=experiment.optimizer,
    learning_rate=experiment.learning_rate,
    heldout=later(lambda: make_heldout(experiment, context)),
    preview=later(lambda: make_preview(experiment, use.generate)),
    use=use,
  )


def check(experiment: Experiment) -> None:
  """Raises InputError where the experiment is one of another task."""
  config, module = experiment.config, experiment.module
  if not (hasattr(module, 'encode') and hasattr(module, 'decode')):
    raise InputError(
      f"config.model.name: '{config.model.name}' has no encoder and decoder; take 'autoencoder', "
      'or set config.task.name=denoising'
    )
  if config.loss.name not in OF_AUTOENCODERS:
    raise InputError(
      f"config.loss.name: '{config.loss.name}' trains no autoencoder; choose one of "
      f'{", ".join(sorted(OF_AUTOENCODERS))}'
    )
  with naming('config'):
    experiment.codec.levels('the evidence lower bound')


def make_context(experiment: Experiment) -> LossContext:
  """What the loss is given beside parameters and data."""
  nothing: Any = None  # no schedule and no parameterization
  module: Any = experiment.module
  coder: Any = models.make_coder(module)
  size = experiment.config.dataset.batch_size
  return LossContext(coder, nothing, nothing, experiment.factors, size, codec=experiment.codec)


def loss(
  experiment: Experiment,
  context: LossContext,
  params: Any,
  state: Any,
  frozen: Any,
  batch: Batch,
  keys: Keys,
  gather: Callable[[Array], Array],
) -> LossOutput:
  """The config's loss of a batch as it is stored."""
  bound = dataclasses.replace(context, frozen=frozen, gather=gather)
  return experiment.loss(bound, params, state, encoded(experiment, frozen, batch, keys), keys)


def make_use(experiment: Experiment) -> Use:
  """Samples, likelihoods and reconstructions."""
  module: Any = experiment.module
  coder: Any = models.make_coder(module)
  shape = experiment.codec.shape

  def generate(params: Any, frozen: Any, cond: Cond, keys: Array, **options: Any) -> Array:
    """E[x | z] for z from the prior."""
    del frozen
    if options:
      raise InputError(f'an autoencoder has no path, and draws nothing by {", ".join(options)}')
    z = jax.vmap(lambda key: jax.random.normal(key, (coder.latents,)))(for_purpose(keys, 'prior'))
    return coder.decode(params['network'], z, cond, shape)[0]

  def reconstruct(params: Any, frozen: Any, x: Array, cond: Cond) -> Array:
    """E[x | z] at the mean z of q(z | x)."""
    keys = example_keys(jax.random.key(0), jnp.arange(x.shape[0]))  # a whole codec draws nothing
    mean, _ = coder.encode(params['network'], experiment.encode(frozen, x, keys), cond)
    return coder.decode(params['network'], mean, cond, shape)[0]

  return Use(
    generate=generate,
    describe=lambda: 'the mean of p(x | z) at z from the prior',
    bits=functools.partial(evidence.measures, experiment),
    reconstruct=reconstruct,
  )


def make_heldout(
  experiment: Experiment, context: LossContext
) -> Callable[[Any, Any], dict[str, float]]:
  """Makes heldout(params, frozen) -> 'heldout/loss' and the loss's metrics.

  The examples are `evaluation.batch_size` of the test split, evenly spaced in it, and each meets
  the same noise whenever it is asked.
  """
  batch = evenly_spaced(experiment)
  still = dataclasses.replace(context, train=False)

  @jax.jit
  def values(params: Any, frozen: Any, batch: Batch) -> dict[str, Array]:
    key = for_purpose(step_key(experiment.config.seed, 0), 'heldout')
    keys = Keys(key, example_keys(key, jnp.arange(len(batch['x']))))
    x, index = experiment.encode(frozen, batch['x'], keys.examples), jnp.arange(len(batch['x']))
    told = dataclasses.replace(still, frozen=frozen)
    output = experiment.loss(told, params, None, {**batch, 'x': x, 'index': index}, keys)
    return {'loss': jnp.mean(output.values), **jax.tree.map(jnp.mean, output.metrics)}

  def heldout(params: Any, frozen: Any) -> dict[str, float]:
    return {f'heldout/{name}': float(v) for name, v in values(params, frozen, batch).items()}

  return heldout
