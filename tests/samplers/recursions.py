"""Weak orders in closed form: the mean and covariance of a run on Gaussian data, without a draw.

The denoiser of Gaussian data is affine, dimension by dimension, and so is each update here in the
leaves of the state and in the noise. The moments of a Gaussian state then follow

  mean ← f(mean, 0)        covariance ← A covariance Aᵀ + C Cᵀ

with A and C the derivatives of the update f by leaves and by draws. Draws are independent, as white
noise is.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import Step
from tests.samplers.orders import COUNTS, DATA

DRAWS, PARTS = 4, 2  # what an update may ask for


class Moments(NamedTuple):
  """Of the leaves that are random: mean (leaves, dims), covariance (dims, leaves, leaves)."""

  mean: jax.Array
  covariance: jax.Array


def split(state, shape):
  """The leaves like x as one array (leaves, dims), and how to put a state together from such."""
  leaves, tree = jax.tree.flatten(state)
  random = [leaf.shape == shape for leaf in leaves]

  def together(rows):
    rows = iter(rows)
    mixed = [next(rows)[None] if new else leaf for new, leaf in zip(random, leaves, strict=True)]
    return jax.tree.unflatten(tree, mixed)

  rows = [leaf[0] for leaf, new in zip(leaves, random, strict=True) if new]
  return jnp.stack(rows), together


def by_dimension(function, rows):
  """The derivative (dims, out, in) of a function that leaves the dimensions to themselves."""
  basis = jnp.broadcast_to(jnp.eye(len(rows))[:, :, None], (len(rows), *rows.shape))
  columns = jax.vmap(lambda tangent: jax.jvp(function, (rows,), (tangent,))[1])(basis)
  return jnp.transpose(columns, (2, 1, 0))


def advance(sampler, schedule, denoiser, state, covariance, step):
  """The state at its mean after an update, and its covariance."""
  rows, together = split(state, state.x.shape)
  silence = jnp.zeros((DRAWS * PARTS, *rows.shape[1:]))

  def update(rows, draws):
    def noise(t, s, draw=0, part=0):
      return draws[PARTS * draw + part][None]

    return sampler.update(schedule, denoiser, together(rows), step, noise)

  moved = lambda rows, draws: split(update(rows, draws), state.x.shape)[0]  # noqa: E731
  of_state = by_dimension(lambda rows: moved(rows, silence), rows)
  of_draws = by_dimension(lambda draws: moved(rows, draws), silence)
  spread = of_state @ covariance @ of_state.mT + of_draws @ of_draws.mT
  return update(rows, silence), spread


def moments(sampler, schedule, times, data=DATA, begin=None):
  """Mean and variance of x at times[-1], from the marginal at times[0] or from `begin`'s."""
  mean, variance = begin or marginal(schedule, times[0], data)
  state = sampler.init(schedule, times, mean[None])
  count = len(split(state, state.x.shape)[0])
  covariance = jnp.zeros((mean.size, count, count)).at[:, 0, 0].set(variance)

  def body(carry, step):
    return advance(sampler, schedule, data.denoiser(schedule), *carry, step), None

  steps = Step(times[:-1], times[1:], jnp.arange(len(times) - 1))
  (state, covariance), _ = jax.lax.scan(body, (state, covariance), steps)
  return state.x[0], covariance[:, 0, 0]


def marginal(schedule, t, data=DATA):
  """Mean and variance of xt."""
  exact = data.marginal(schedule, t)
  return exact.mean, jnp.broadcast_to(exact.variance, exact.mean.shape)


def weak_error(sampler, schedule, times):
  """The root mean square error of mean and variance, in units of the marginal's deviation."""
  (mean, variance), (exact_mean, exact) = (
    moments(sampler, schedule, times),
    marginal(schedule, times[-1]),
  )
  errors = jnp.stack([(mean - exact_mean) / jnp.sqrt(exact), variance / exact - 1])
  return jnp.sqrt(jnp.mean(jnp.square(errors)))


def weak_slope(sampler, schedule, grid, counts=COUNTS):
  """-d log error / d log n by least squares, for runs of n updates over grid(schedule, n)."""
  compiled = jax.jit(lambda times: weak_error(sampler, schedule, times))
  errors = [compiled(grid(schedule, n)) for n in counts]
  assert all(small < large for large, small in itertools.pairwise(errors)), errors
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]
