"""The share of noise that a step renews, where single precision is at its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.samplers.formulas import kept, renewed


def levels(*alphas_bar):
  """A chain with these levels, from data to noise."""
  return schedules.from_alphas_bar(alphas_bar)


@pytest.mark.parametrize('eta', [0.0, 0.3, 0.999, 1.0])
def test_what_is_kept_is_never_below_zero_and_has_its_digits(eta):
  # From q = 1e-3 to 1e-9 the difference 1 - eta² r loses all of its digits, and then its sign.
  for power in range(3, 10):
    alpha_bar = 10.0 ** (-2 * power)
    chain = levels(0.5, alpha_bar)
    exact = 1 - eta**2 * (1 - alpha_bar / (1 - alpha_bar))
    assert kept(chain, 1, 2, eta) == pytest.approx(exact, rel=1e-6)


def test_levels_that_single_precision_cannot_tell_apart_renew_nothing():
  for share in np.random.default_rng(0).uniform(0.01, 0.99, 200):
    chain = levels(share, share * (1 - 1e-9))
    for eta in (0.5, 1.0):
      x = renewed(chain, jnp.ones(3), jnp.ones(3), 1, 2, eta)
      np.testing.assert_allclose(x, 1, atol=2e-3)


@pytest.mark.parametrize('last', [0.5 - 1e-9, 0.0])
def test_derivatives_are_finite_where_nothing_or_all_is_renewed(last):
  chain = levels(0.5, last)

  def total(tables, eps):
    return jnp.sum(renewed(chain.replace(**tables), eps, jnp.ones(3), 1, 2, 1.0))

  names = 'alphas', 'sigmas', 'log_snrs'
  tables = {name: getattr(chain, name) for name in names}
  for leaf in jax.tree.leaves(jax.grad(total, (0, 1))(tables, jnp.ones(3))):
    assert np.isfinite(leaf).all()
