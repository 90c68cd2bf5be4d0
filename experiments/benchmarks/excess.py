"""How far a network trained on the data set `mixture` is from what it should have learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddpm_jax.data.plane import COVARIANCES, MEANS, WEIGHTS
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised, q_sample
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers import sample
from ddpm_jax.samplers.runge_kutta import heun
from ddpm_jax.theory.oracle import GaussianMixture

# Where they are judged: from noise that hides the components to noise below their width.
LOG_SNRS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)


def exact_denoiser(schedule: Schedule) -> Denoiser:
  """E[x0 | xt] and Var[x0 | xt] of the mixture, for images (B, 1, 2, 1)."""
  plane = GaussianMixture(WEIGHTS, MEANS, COVARIANCES).denoiser(schedule)

  def denoiser(xt: Array, t: Time) -> Denoised:
    found = plane(xt.reshape(-1, 2), t)
    return jax.tree.map(lambda leaf: leaf.reshape(xt.shape), found)

  return denoiser


def exact_consistency(schedule: Schedule, num_steps: int = 64) -> Denoiser:
  """The end, at t_min, of the flow through xt by Heun's method; with the denoiser's variance."""
  exact = exact_denoiser(schedule)

  def denoiser(xt: Array, t: Time) -> Denoised:
    log_snrs = jnp.linspace(schedule.log_snr(t), schedule.log_snr(schedule.t_min), num_steps)
    times = jax.vmap(schedule.time)(log_snrs)
    keys = jax.random.split(jax.random.key(0), xt.shape[0])  # of a sampler that draws nothing
    x = sample(heun(), exact, schedule, times, xt, keys, final='keep')
    return exact(xt, t)._replace(x0=x / schedule.alpha(schedule.t_min))

  return denoiser


def excess_errors(
  schedule: Schedule, denoiser: Denoiser, exact: Denoiser, x0: Array, keys: Array
) -> Array:
  """E |x0_hat - x0*|² / E Var[x0 | xt] at each of LOG_SNRS: (7,).

  By it a denoiser's squared error of x0 exceeds the least possible; 0 is exact, and what says the
  data's mean everywhere has Var[x0] / E Var[x0 | xt] - 1.

  Args:
    schedule: the path.
    denoiser: what is judged.
    exact: what it should be; its variance is the measure.
    x0: (B, 1, 2, 1), data.
    keys: (B,), of its noise.
  """

  def at(level: tuple[Array, Array]) -> Array:
    number, log_snr = level
    t = schedule.time(log_snr)
    level_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
    eps = jax.vmap(lambda key: jax.random.normal(key, x0.shape[1:]))(level_keys)
    xt = jax.vmap(q_sample, (None, 0, None, 0))(schedule, x0, t, eps)
    truth = exact(xt, t)
    error = jnp.mean(jnp.square(denoiser(xt, t).x0 - truth.x0))
    return error / jnp.mean(jnp.asarray(truth.x0_variance))

  return jax.lax.map(at, (jnp.arange(len(LOG_SNRS)), jnp.asarray(LOG_SNRS)))


def sliced_wasserstein(x: np.ndarray, y: np.ndarray, directions: int = 16) -> float:
  """The mean over directions in the plane of the distance W1 between projections of x and y (N, 2).

  Reference: Rabin et al. 2012, https://doi.org/10.1007/978-3-642-24785-9_37.
  """
  angles = np.pi * np.arange(directions) / directions
  rays = np.stack([np.cos(angles), np.sin(angles)])
  return float(np.abs(np.sort(x @ rays, axis=0) - np.sort(y @ rays, axis=0)).mean())
