"""How a variational autoencoder is used: to draw samples, to reconstruct, and on held-out data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data
from ddpm_jax.keys import Keys, example_keys, for_purpose, step_key

if TYPE_CHECKING:  # it imports this module
  from ddpm_jax.training.experiment import Experiment

LOSSES = frozenset({'elbo'})


def generate(experiment: Experiment, params: Any, cond: dict[str, Array], keys: Array) -> Array:
  """E[x | z] for z from the prior, (B, H, W, C)."""
  coder: Any = experiment.network
  z = jax.vmap(lambda key: jax.random.normal(key, (coder.latents,)))(for_purpose(keys, 'prior'))
  return coder.decode(params, z, cond, experiment.dataset.image_shape)[0]


def reconstruct(experiment: Experiment, params: Any, x: Array, cond: dict[str, Array]) -> Array:
  """E[x | z] at the mean z of q(z | x), for images (B, H, W, C)."""
  coder: Any = experiment.network
  mean, _ = coder.encode(params, x, cond)
  return coder.decode(params, mean, cond, x.shape[-3:])[0]


def evaluations(experiment: Experiment) -> int:
  """Each sample takes the decoder once."""
  del experiment
  return 1


def describe(experiment: Experiment) -> str:
  """In words."""
  del experiment
  return 'the mean of p(x | z) at z from the prior'


def make_heldout(experiment: Experiment) -> Callable[[Any], dict[str, float]]:
  """Makes heldout(params) -> 'heldout/loss' and the loss's metrics.

  The examples are `evaluation.batch_size` of the test split, evenly spaced in it, and each meets
  the same noise whenever it is asked.
  """
  split, config = experiment.dataset.test, experiment.config
  count = min(len(split), config.evaluation.batch_size)
  batch = split[np.arange(count) * len(split) // count]
  problem = dataclasses.replace(experiment.problem, train=False)

  @jax.jit
  def values(params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    key = for_purpose(step_key(config.seed, 0), 'heldout')
    keys = Keys(key, example_keys(key, jnp.arange(count)))
    image = data.scale(batch['image'], experiment.dataset.num_levels)
    output = experiment.loss(problem, params, None, {**batch, 'image': image}, keys)
    return {'loss': jnp.mean(output.values), **jax.tree.map(jnp.mean, output.metrics)}

  return lambda params: {f'heldout/{k}': float(v) for k, v in values(params, batch).items()}
