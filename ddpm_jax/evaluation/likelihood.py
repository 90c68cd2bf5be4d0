"""Bits per dimension of a data split under a trained network: the variational bound, measured."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax import data
from ddpm_jax.data.dataset import Split
from ddpm_jax.diffusion import bits_per_dim, discretized, stratified_bound, variational_bound
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.schedules import Discrete
from ddpm_jax.evaluation.batching import even_size, map_batches, replicate
from ddpm_jax.keys import for_purpose
from ddpm_jax.samplers import clip_x0

Make = Callable[[Any, dict[str, Array]], Denoiser]
Bits = Callable[[Any, Array, dict[str, Array]], Array]


class Estimate(NamedTuple):
  """A mean over examples and the standard error of its Monte-Carlo draws.

  The error says how far another set of draws would land on the same examples; it does not say how
  far another set of examples would.
  """

  mean: float
  error: float
  replicates: int


def make_bits(
  make: Make,
  schedule: Discrete,
  num_levels: int,
  *,
  conditional: bool,
  variance: str,
  strata: int | None,
) -> Bits:
  """Makes bits(params, key, batch) -> (B,), the bound on each example in bits/dim, compiled.

  The batch has uint8 'image' of num_levels levels, 'label', and 'index', which decides the draws.
  The predicted x0 is clipped to [-1, 1], as in DDPM's code: the data lies there, so that this only
  tightens the bound of a fixed variance. For a conditional network the bits are those of an image
  given its label.

  Args:
    make: (params, cond) -> denoiser.
    schedule: the path, of T steps.
    num_levels: of the data; the decoder is a Gaussian's mass of each level.
    conditional: whether the network is told labels.
    variance: of the reverse steps, a key of VARIANCES.
    strata: the number of terms drawn for each example by `stratified_bound`; None takes all T.
  """
  times = jnp.arange(schedule.num_steps, 0, -1)
  bound = functools.partial(stratified_bound, strata=strata) if strata else variational_bound

  @jax.jit
  def bits(params: Any, key: Array, batch: dict[str, Array]) -> Array:
    x0 = data.scale(batch['image'], num_levels)
    cond = {'label': batch['label']} if conditional else {}
    total = bound(
      schedule,
      clip_x0(make(params, cond)),
      x0,
      key,
      times=times,
      variance=variance,
      decoder=discretized(num_levels),
      index=batch['index'],
    ).total
    return bits_per_dim(total, x0[0])

  return bits


def split_bits(
  bits: Bits,
  params: Any,
  split: Split,
  *,
  seed: int,
  batch_size: int,
  tolerance: float = 0.02,
  most: int = 16,
  advance: Callable[[int], Any] = lambda rows: None,
) -> Estimate:
  """The mean bits/dim of a split.

  Independent replicates of the estimate, two at least, are drawn until its standard error is at
  most `tolerance` or there are `most`.

  Args:
    bits: from `make_bits`.
    params: as `make` takes them.
    split: the examples.
    seed: of the draws.
    batch_size: examples at a time, over this host's devices.
    tolerance: bits/dim.
    most: replicates.
    advance: told how many more examples are done, in each replicate anew.
  """
  size = even_size(len(split), batch_size)
  key = for_purpose(jax.random.key(seed), 'bound')
  params, key = replicate((params, key))
  replicates: list[np.ndarray] = []
  while len(replicates) < most:
    of_replicate = functools.partial(bits, params, jax.random.fold_in(key, len(replicates)))
    batches = data.batches(split, size)
    replicates.append(map_batches(of_replicate, batches, size, advance))
    if len(replicates) >= 2 and estimate(np.stack(replicates)).error <= tolerance:
      break
  return estimate(np.stack(replicates))


def estimate(values: np.ndarray) -> Estimate:
  """The mean of values (R, N) of R >= 2 independent replicates for each of N examples.

  Its standard error is sqrt(Σ_n s_n² / R) / N, with s_n² the variance over example n's replicates.
  """
  replicates, examples = values.shape
  within = values.astype(np.float64).var(axis=0, ddof=1)
  error = math.sqrt(within.sum() / replicates) / examples
  return Estimate(float(values.mean(dtype=np.float64)), error, replicates)
