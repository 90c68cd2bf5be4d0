"""What the tasks of one network share: how it begins, and what is looked at while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data
from ddpm_jax.condition import Cond
from ddpm_jax.config.settings import naming
from ddpm_jax.diffusion.schedules import parameters
from ddpm_jax.keys import Keys, example_keys, for_purpose
from ddpm_jax.losses import LossContext, start
from ddpm_jax.tasks.experiment import Experiment
from ddpm_jax.training.task import Batch, Frozen

PREVIEWS = 40

Preview = Callable[[Any, Any], np.ndarray]


def later(make: Callable[[], Callable]) -> Callable:
  """The function that make() makes, which is called at its first use."""
  made = functools.cache(make)
  return lambda *args: made()(*args)


def codec_of(experiment: Experiment) -> dict[str, Frozen]:
  """The codec's parameters as what is frozen."""
  return {'codec': Frozen(experiment.codec.source, experiment.codec.load)}


def begin(
  experiment: Experiment,
  context: LossContext,
  make: Callable[[Any, Array, tuple[int, ...]], Any],
  given: Any = None,
) -> tuple[dict[str, Any], Any]:
  """The parameters before training, from the config's seed, and the loss's first state.

  Args:
    experiment: what is trained.
    context: as the loss is given it.
    make: (module, key, shape of an example) -> the network's parameters.
    given: {'network', 'schedule'} to begin with.

  Returns:
    {'network', 'schedule', 'loss'}: the network's, what a schedule learns, and what the loss trains
    beside them; and the loss's state.
  """
  seed = jax.random.key(experiment.config.seed)
  if given is None:
    with naming('config.model'):
      network = make(experiment.module, for_purpose(seed, 'init'), experiment.codec.shape)
    given = {'network': network, 'schedule': parameters(experiment.schedule)}
  own, state = start(experiment.loss, context, given, for_purpose(seed, 'loss'))
  return {**given, 'loss': own}, state


def encoded(experiment: Experiment, frozen: Any, batch: Batch, keys: Keys) -> Batch:
  """The batch in training, encoded, its images flipped as the config says."""
  x = batch['x']
  if experiment.config.dataset.flip:
    x = data.random_flip(x, for_purpose(keys.examples, 'flip'))
  return {**batch, 'x': experiment.encode(frozen, x, keys.examples)}


def make_preview(
  experiment: Experiment,
  generate: Callable[..., Array],
  options: Callable[[Any], dict[str, Any]] = lambda params: {},
) -> Preview:
  """Makes preview(params, frozen) -> PREVIEWS samples as pictures, uint8 (N, H, W, C).

  Args:
    experiment: whose seed makes the noise, the same each time.
    generate: (params, frozen, cond, keys, **options) -> samples, as that of a `Use`.
    options: params -> arrays by name, such as the times to draw at, found on the host.
  """
  keys = example_keys(jax.random.key(experiment.config.seed), jnp.arange(PREVIEWS))
  cond = experiment.dataset.some_cond(PREVIEWS)

  @jax.jit
  def pictures(params: Any, frozen: Any, cond: Cond, keys: Array, options: Any) -> Array:
    return experiment.decode(frozen, generate(params, frozen, cond, keys, **options))

  return lambda params, frozen: np.asarray(pictures(params, frozen, cond, keys, options(params)))
