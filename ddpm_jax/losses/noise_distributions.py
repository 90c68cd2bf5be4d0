"""Timestep distributionshe noise: (context, batch, keys) -> (eps, shown), both like batch['x'].

`eps` is the noise that the target knows, `shown` the noise that the network sees: xt is
alpha x0 + sigma shown. But for `white`, the best denoiser is no longer that of the data under the
schedule's own noise, and so each says what becomes of it.
"""

from __future__ import annotations

from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array
from optax.assignment import hungarian_algorithm

from ddpm_jax.keys import Keys, for_purpose
from ddpm_jax.losses.context import Batch, LossContext, noise_like, white

Scale = Annotated[float, Interval(ge=0, le=100)]


def offset(
  context: LossContext, batch: Batch, keys: Keys, *, scale: Scale = 0.1
) -> tuple[Array, Array]:
  """eps = z + scale m, with z white and m one standard normal for each channel of an example.

  A channel's pixels then have the covariance I + scale² 1 1ᵀ. White noise hides a picture's mean
  last, so that samples come out of a middling brightness; here it is hidden with the rest, and
  learned. The chain's end is no longer standard normal: its channel means have the variance
  1 / pixels + scale² that sampling, which begins with white noise, understates.

  Reference: Guttenberg 2023, https://www.crosslabs.org/blog/diffusion-with-offset-noise.
  """
  z, _ = white(context, batch, keys)

  def means(key: Array) -> Array:
    return jax.random.normal(key, z.shape[-1:], z.dtype)

  m = jax.vmap(means)(for_purpose(keys.examples, 'perturbation'))
  eps = z + scale * jnp.expand_dims(m, tuple(range(1, z.ndim - 1)))
  return eps, eps


def perturbed(
  context: LossContext, batch: Batch, keys: Keys, *, scale: Scale = 0.1
) -> tuple[Array, Array]:
  """Input perturbation: shown = eps + scale z, with eps and z white.

  The network meets inputs as far off the path as its own errors will take it in sampling, and is to
  say the eps that would put it right. So the best eps_hat is sigma / Var[xt] of the input's
  deviation with (1 + scale²) sigma² in the variance: it is smaller than without. The target's
  x0 and eps make another xt than the one shown, and one weight is no longer one objective under
  every parameterization; the paper predicts eps.

  Reference: Ning et al. 2023, https://arxiv.org/abs/2301.11706.
  """
  eps, _ = white(context, batch, keys)
  return eps, eps + scale * noise_like(eps, keys, 'perturbation')


def transport(context: LossContext, batch: Batch, keys: Keys) -> tuple[Array, Array]:
  """White noises dealt out to the batch so that Σ |x0_i - eps_i|² is least: optimal transport.

  Each eps is still standard normal over batches, but no longer independent of its x0: paths from
  data to noise cross less, and the probability flow from the same noise to the same data is
  straighter, the more so the larger the batch. What is learned is that flow's velocity,
  E[eps - x0 | xt] under the coupling, and not the score: ODE samplers alone fit it, and no
  likelihood bound.

  The whole batch of all devices is coupled: images and noises are gathered, each device solves the
  same problem, in O(B³) and one step after another, and keeps its own rows. For a large batch on
  many devices that costs more than it brings; then couple the examples of a device in a
  distribution of your own.

  Reference: Tong et al. 2023, https://arxiv.org/abs/2302.00482, its minibatch OT-CFM; Pooladian et
  al. 2023, https://arxiv.org/abs/2304.14772.
  """
  eps, _ = white(context, batch, keys)
  index, images, noises = (context.gather(a) for a in (batch['index'], batch['x'], eps))
  order = jnp.argsort(index)  # the same problem whatever the order of devices
  rows, columns = hungarian_algorithm(squared_distances(images[order], noises[order]))
  dealt = jnp.zeros_like(noises).at[order[rows]].set(noises[order[columns]])
  mine = jnp.argmax(batch['index'][:, None] == index[None], axis=1)
  return dealt[mine], dealt[mine]


def squared_distances(x: Array, y: Array) -> Array:
  """|x_i - y_j|², (N, M), for batches of N and M examples."""
  x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
  return jnp.sum(jnp.square(x), 1)[:, None] + jnp.sum(jnp.square(y), 1)[None] - 2 * x @ y.T


NOISE_DISTRIBUTIONS = {
  'white': white,
  'offset': offset,
  'perturbed': perturbed,
  'transport': transport,
}
