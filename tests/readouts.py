"""How a network that predicts so says x0 at xt, and by what it sees xt multiplied."""

import functools

import jax.numpy as jnp

SIGMA_DATA, SIGMA_MIN = 0.5, 0.002


def preconditioned(xt, x0, alpha, sigma, sigma_min):
  """F of x0 = c_skip y + c_out F, at y = xt / alpha with noise n = sigma / alpha.

  Karras et al. 2022, table 1, for sigma_min = 0; Song et al. 2023, appendix C.
  """
  y, n = xt / alpha, sigma / alpha
  c_skip = SIGMA_DATA**2 / ((n - sigma_min) ** 2 + SIGMA_DATA**2)
  c_out = SIGMA_DATA * (n - sigma_min) / jnp.sqrt(n**2 + SIGMA_DATA**2)
  return (x0 - c_skip * y) / c_out


READOUTS = {
  'x0': lambda xt, x0, alpha, sigma: x0,
  'eps': lambda xt, x0, alpha, sigma: (xt - alpha * x0) / sigma,
  'v': lambda xt, x0, alpha, sigma: alpha * (xt - alpha * x0) / sigma - sigma * x0,
  'score': lambda xt, x0, alpha, sigma: -(xt - alpha * x0) / sigma**2,
  'flow': lambda xt, x0, alpha, sigma: (xt - alpha * x0) / sigma - x0,
  'edm': functools.partial(preconditioned, sigma_min=0.0),
  'consistency': functools.partial(preconditioned, sigma_min=SIGMA_MIN),
}


def seen(name, alpha, sigma):
  """c_in / alpha, for those whose input has variance one."""
  if name in ('edm', 'consistency'):
    return 1 / jnp.sqrt(sigma**2 + (alpha * SIGMA_DATA) ** 2)
  return 1.0
