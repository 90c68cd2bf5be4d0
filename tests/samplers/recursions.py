"""Weak orders in closed form: the mean and covariance of a run on Gaussian data, without a draw.

The denoiser of Gaussian data is affine, dimension by dimension, and so is each update here in the
leaves of the state and in the noise. The moments of a Gaussian state then follow

  mean ← f(mean, 0)        covariance ← A covariance Aᵀ + C Cᵀ

with A and C the derivatives of the update f by leaves and by draws. Draws are independent, as white
noise is.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.samplers import Step
from tests.samplers.orders import COUNTS, DATA

DRAWS, PARTS = 4, 2  # what an update may ask for


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


def advance(sampler, schedule, denoiser, state, covariance, step):
  """The state at its mean after an update, and the covariance (dims, leaves, leaves) of its leaves.

  Of a function that leaves dimensions to themselves one push along each leaf, in all dimensions
  together, is the whole derivative.
  """
  rows, together = split(state, state.x.shape)

  def update(random):
    rows, draws = random

    def noise(t, s, draw=0, part=0):
      return draws[PARTS * draw + part][None]

    return sampler.update(schedule, denoiser, together(rows), step, noise)

  random = rows, jnp.zeros((DRAWS * PARTS, *rows.shape[1:]))
  new, push = jax.linearize(update, random)
  each = jnp.eye(len(rows) + DRAWS * PARTS)
  along = jnp.broadcast_to(each[:, :, None], (*each.shape, *rows.shape[1:]))
  pushed = jax.vmap(lambda rows, draws: split(push((rows, draws)), state.x.shape)[0])(
    along[:, : len(rows)], along[:, len(rows) :]
  )
  of_rows, of_draws = jnp.split(jnp.transpose(pushed, (2, 1, 0)), [len(rows)], axis=2)
  return new, of_rows @ covariance @ of_rows.mT + of_draws @ of_draws.mT


def moments(sampler, schedule, times, count=None, data=DATA):
  """Mean and variance of x at times[count], the last if not given; exact ones at times[0]."""
  mean, variance = marginal(schedule, times[0], data)
  state = sampler.init(schedule, times, mean[None])
  leaves = len(split(state, state.x.shape)[0])
  covariance = jnp.zeros((mean.size, leaves, leaves)).at[:, 0, 0].set(variance)

  def body(index, carry):
    step = Step(times[index], times[index + 1], index)
    return advance(sampler, schedule, data.denoiser(schedule), *carry, step)

  count = len(times) - 1 if count is None else count
  state, covariance = jax.lax.fori_loop(0, count, body, (state, covariance))
  return state.x[0], covariance[:, 0, 0]


def marginal(schedule, t, data=DATA):
  """Mean and variance of xt."""
  exact = data.marginal(schedule, t)
  return exact.mean, jnp.broadcast_to(exact.variance, exact.mean.shape)


def weak_error(sampler, schedule, times, count=None):
  """The root mean square error of mean and variance, in units of the marginal's deviation."""
  count = len(times) - 1 if count is None else count
  mean, variance = moments(sampler, schedule, times, count)
  exact_mean, exact = marginal(schedule, times[count])
  errors = jnp.stack([(mean - exact_mean) / jnp.sqrt(exact), variance / exact - 1])
  return jnp.sqrt(jnp.mean(jnp.square(errors)))


def weak_slope(sampler, schedule, grid, counts=COUNTS):
  """-d log error / d log n by least squares, for runs of n updates over grid(schedule, n)."""
  # Grids of one length, of which the run takes the first n, so that there is one program.
  compiled = jax.jit(lambda times, count: weak_error(sampler, schedule, times, count))
  longest = max(counts) + 1
  grids = [np.resize(grid(schedule, n), longest) for n in counts]
  errors = [float(compiled(times, n)) for times, n in zip(grids, counts, strict=True)]
  assert all(small < large for large, small in itertools.pairwise(errors)), errors
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]
