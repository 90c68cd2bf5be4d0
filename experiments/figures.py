"""Draws the figures of docs/mathematics.md and docs/losses.md, where all is in closed form.

python -m experiments.figures
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from ddpm_jax.diffusion import VARIANCES, q_posterior, schedules
from ddpm_jax.diffusion.bound import bound_term
from ddpm_jax.diffusion.langevin import State, annealed, run, ula
from ddpm_jax.files import check_writable, whole
from ddpm_jax.losses import WEIGHTS
from ddpm_jax.samplers import ancestral, ddim, sample
from ddpm_jax.stores import path_of
from ddpm_jax.theory.information import on_grid
from ddpm_jax.theory.oracle import GaussianData, GaussianMixture, fractal
from experiments import cli

FOLDER = flags.DEFINE_string('folder', 'docs/images', 'Where the pictures go.')

PATH = schedules.cosine_log_snr(log_snr_min=-7.0, log_snr_max=9.0)
WIDE = schedules.cosine_log_snr()
LINE = GaussianMixture(
  np.array([0.3, 0.5, 0.2]), np.array([[-1.4], [0.1], [1.5]]), np.full((3, 1, 1), 0.02)
)
HILLS = GaussianMixture(
  np.array([0.7, 0.3]), np.array([[-2.0, 0.0], [2.0, 0.0]]), np.stack([0.2 * np.eye(2)] * 2)
)


def forward_marginals() -> Figure:
  """The density of xt while noise is added."""
  figure, axes = panels(1, width=7.0)
  image = density_over_time(axes[0])
  figure.colorbar(image, label='density of xt')
  return figure


def posterior() -> Figure:
  """q(xs | xt, x0): the bridge between x0 and xt, and its densities at several s."""
  x0, xt, t = jnp.array(1.2), jnp.array(-0.9), 0.75
  times = jnp.linspace(0.001, t - 0.001, 200)
  mean, variance = jax.vmap(q_posterior, (None, None, None, 0, None))(PATH, x0, xt, times, t)
  figure, (bridge, densities) = panels(2)
  bridge.fill_between(times, mean - 2 * variance**0.5, mean + 2 * variance**0.5, alpha=0.25)
  bridge.plot(times, mean, label='mean, ± 2 deviations')
  bridge.plot([0, t], [x0, xt], 'ko')
  bridge.annotate('x0', (0.0, 1.2), (8, 4), textcoords='offset points')
  bridge.annotate('xt', (t, -0.9), (-18, -12), textcoords='offset points')
  bridge.set(xlabel='s', ylabel='xs')
  bridge.legend()
  x = jnp.linspace(-2.2, 2.2, 600)
  for s in (0.05, 0.2, 0.4, 0.6, 0.72):
    law = q_posterior(PATH, x0, xt, s, t)
    densities.plot(x, np.exp(jax.vmap(law.log_prob)(x)), label=f's = {s}')
  densities.set(xlabel='xs', ylabel='q(xs | xt, x0)')
  densities.legend()
  return figure


def bound_terms() -> Figure:
  """The expected terms of the bound on Gaussian data, and their excess over the information."""
  data, chain = GaussianData(jnp.zeros(1), jnp.array(0.25)), schedules.cosine(30)
  # Terms are quadratic in x0 and eps: three nodes of Gauss and Hermite integrate them exactly.
  nodes, weights = jnp.sqrt(3.0) * jnp.array([-1.0, 0.0, 1.0]), jnp.array([1, 4, 1]) / 6
  x0, eps = (grid.reshape(-1, 1) for grid in jnp.meshgrid(0.5 * nodes, nodes))

  def expected(variance: str, t: Array) -> Array:
    s, t = jnp.full(9, t - 1), jnp.full(9, t)
    terms = bound_term(chain, data.denoiser(chain), x0, s, t, eps, variance)
    return jnp.outer(weights, weights).ravel() @ terms

  times = jnp.arange(2, 31)
  terms = {
    name: jax.lax.map(lambda t, name=name: expected(name, t), times)
    for name in VARIANCES
    if name != 'fraction'
  }
  figure, (whole, excess) = panels(2)
  # `large` is within a line's width of `optimal`: that one is drawn broad, and beneath.
  broad = {'optimal': {'lw': 5, 'alpha': 0.4, 'zorder': 1}}
  for name, values in terms.items():
    whole.plot(times, values, '.-', label=name, **broad.get(name, {}))
    if name != 'optimal':
      excess.semilogy(times, values - terms['optimal'], '.-', label=name)
  whole.set(xlabel='t', ylabel='expected term, nats', title='Terms')
  excess.set(xlabel='t', ylabel='nats', title='Excess over the optimal variance')
  whole.legend()
  excess.legend()
  return figure


def scores() -> Figure:
  """The density and the score of a fractal at three noise levels."""
  data, side = fractal(), np.linspace(-3.1, 3.1, 161)
  places = jnp.stack(jnp.meshgrid(side, side), axis=-1)
  figure, axes = panels(3, width=10.0, height=3.6)
  for axis, log_snr in zip(axes, (5.0, 2.0, -1.0), strict=True):
    t = PATH.time(log_snr)
    log_q = over(lambda x, t=t: data.log_marginal(PATH, x, t), places)
    arrows = places[5::10, 5::10]
    field = over(lambda x, t=t: data.score(PATH, x, t), arrows)
    field /= 1 + jnp.linalg.norm(field, axis=-1, keepdims=True)
    axis.pcolormesh(side, side, np.exp(log_q / 2), cmap='magma', rasterized=True)
    axis.quiver(*jnp.moveaxis(arrows, -1, 0), *jnp.moveaxis(field, -1, 0), color='w', alpha=0.7)
    axis.set(title=f'log-SNR {log_snr:g}', aspect='equal', xticks=[], yticks=[])
  return figure


def langevin() -> Figure:
  """Chains of unadjusted Langevin, which stay in their mode; annealed ones, which divide."""
  path, count = schedules.ve(sigma_min=0.02, sigma_max=8.0), 600
  starts = jnp.array([[-3.0, 1.8], [-0.6, -1.9], [-1.0, 1.5], [1.2, 1.7], [3.2, -1.6], [0.7, -1.2]])
  keys = jax.random.split(jax.random.key(0), (6, 400))
  kernel = ula(jax.grad(HILLS.log_prob), step=0.1, variance=0.2)
  _, trace = jax.vmap(lambda x, keys: run(kernel, State(x), keys))(starts, keys)
  times = jnp.linspace(path.t_max, path.t_min, 40)
  noise = 8.0 * jax.random.normal(jax.random.key(1), (count, 2))
  ends = annealed(
    path,
    HILLS.denoiser(path),
    times,
    noise,
    jax.random.split(jax.random.key(2), count),
    step=0.1,
    num_steps=20,
  )
  figure, axes = panels(2, width=9.0)
  for axis in axes:
    hills(axis)
  for start, chain in zip(starts, trace.x, strict=True):
    axes[0].plot(*np.vstack([start, chain]).T, lw=0.5, alpha=0.8)
    axes[0].plot(*start, 'ko', ms=4)
  axes[1].plot(*np.asarray(ends).T, '.', ms=2)
  share = float(jnp.mean(ends[:, 0] < 0))
  axes[0].set_title('Langevin: six chains and where they began')
  axes[1].set_title(f'Annealed: {share:.0%} of {count} in the hill of mass 70%')
  return figure


def paths() -> Figure:
  """The probability-flow ODE and the reverse SDE, over the density that they share."""
  times, count = jnp.linspace(PATH.t_max, PATH.t_min, 400), 14
  keys = jax.random.split(jax.random.key(3), count)
  # The quantiles of the prior, so that the smooth paths show how the mass is moved.
  xT = jax.scipy.stats.norm.ppf((jnp.arange(count) + 0.5) / count)[:, None]
  figure, axes = panels(2, width=9.0)
  for axis, (title, sampler) in zip(
    axes, {'Probability flow': ddim(), 'Reverse SDE': ancestral()}.items(), strict=True
  ):
    _, path = sample(
      sampler, LINE.denoiser(PATH), PATH, times, xT, keys, return_path=True, final='keep'
    )
    density_over_time(axis)
    axis.plot(jax.vmap(PATH.log_snr)(times), path[..., 0], color='w', lw=0.6, alpha=0.8)
    axis.set_title(title)
  return figure


def information() -> Figure:
  """I(x0; xt) along the chain, its slope, and half the mmse times the SNR, which is that slope."""
  line = on_grid(LINE.log_prob, jnp.linspace(-6.0, 6.0, 1501))
  log_snr = jnp.linspace(-7.0, 7.0, 85)
  nats, mmse = (jax.lax.map(f, jnp.exp(log_snr)) for f in (line.information, line.mmse))
  figure, (left, right) = panels(2)
  left.plot(log_snr, nats)
  left.set(xlabel='log-SNR', ylabel='nats', title='I(x0; xt)')
  right.plot(log_snr, mmse, label='mmse')
  right.plot(log_snr, jnp.exp(log_snr) * mmse / 2, label='½ SNR mmse')
  middle = (log_snr[1:] + log_snr[:-1]) / 2
  slope = jnp.diff(nats) / jnp.diff(log_snr)
  right.plot(middle[::4], slope[::4], 'k.', label='slope of I in log-SNR')
  right.set(xlabel='log-SNR', ylabel='mmse; nats per log-SNR', title='mmse, and I-MMSE')
  right.legend()
  for axis in (left, right):
    axis.invert_xaxis()
  return figure


def weights() -> Figure:
  """The weights of eps' squared error, and where under cosine's times they leave a loss."""
  log_snr = np.linspace(-9, 9, 400)
  times = jax.vmap(WIDE.time)(jnp.asarray(log_snr))
  density = 1 / (2 * np.pi * jnp.cosh(log_snr / 2))  # of log-SNR, times being uniform
  least = jax.nn.sigmoid(log_snr)  # the variance of eps given xt, for data N(0, 1)
  figure, (levels, shares) = panels(2, width=11.0, height=4.2)
  for number, (name, weight) in enumerate(WEIGHTS.items()):
    if name in ('snr', 'output'):  # simple's second name; what is predicted decides
      continue
    w = jax.vmap(weight, (None, 0))(WIDE, times)
    style = {'color': f'C{number % 10}', 'ls': '-' if number < 10 else '--', 'label': name}
    levels.semilogy(log_snr, w, **style)
    shares.plot(log_snr, density * w * least / jnp.max(density * w * least), **style)
  levels.set(xlabel='log-SNR', ylabel='weight', ylim=(1e-3, 1e5), title='Weight')
  shares.set(xlabel='log-SNR', ylabel='relative to its largest', title='Least loss of data N(0, 1)')
  figure.legend(*levels.get_legend_handles_labels(), loc='outside right upper')
  return figure


FIGURES: dict[str, Callable[[], Figure]] = {
  'forward_marginals': forward_marginals,
  'posterior': posterior,
  'bound_terms': bound_terms,
  'scores': scores,
  'langevin': langevin,
  'paths': paths,
  'information': information,
  'weights': weights,
}


def panels(count: int, width: float = 9.0, height: float = 3.4) -> tuple[Figure, np.ndarray]:
  """A figure with so many panels in a row."""
  figure = Figure(figsize=(width, height), layout='constrained')
  return figure, figure.subplots(1, count, squeeze=False)[0]


def density_over_time(axis: Axes) -> QuadMesh:
  """The marginals of LINE as columns, from data on the left to noise on the right."""
  log_snr, x = jnp.linspace(9, -7, 240), jnp.linspace(-3, 3, 300)

  def column(t: Array) -> Array:
    return jax.vmap(lambda x: LINE.log_marginal(PATH, x[None], t))(x)

  log_q = jax.lax.map(column, jax.vmap(PATH.time)(log_snr))
  image = axis.pcolormesh(log_snr, x, np.exp(log_q).T, cmap='magma', rasterized=True)
  axis.set(xlabel='log-SNR', ylabel='xt', xlim=(9, -7))
  return image


def hills(axis: Axes) -> None:
  """Contours of HILLS and its score, arrows of one length."""
  x, y = np.linspace(-4, 4, 120), np.linspace(-2.5, 2.5, 80)
  log_q = over(HILLS.log_prob, jnp.stack(jnp.meshgrid(x, y), axis=-1))
  axis.contour(x, y, log_q, levels=np.arange(-14, 0, 2), colors='0.8', linewidths=0.7)
  arrows = jnp.stack(jnp.meshgrid(x[4::8], y[4::8]), axis=-1)
  field = over(jax.grad(HILLS.log_prob), arrows)
  field /= jnp.linalg.norm(field, axis=-1, keepdims=True)
  axis.quiver(*jnp.moveaxis(arrows, -1, 0), *jnp.moveaxis(field, -1, 0), color='0.6', width=0.002)
  axis.set(aspect='equal', xlim=(-4, 4), ylim=(-2.5, 2.5))


def over(f: Callable[[Array], Array], places: Array) -> Array:
  """f at each place of a grid (h, w, 2)."""
  return jax.vmap(jax.vmap(f))(places)


def main() -> None:
  """The command."""
  folder = path_of(FOLDER.value, '--folder')
  check_writable(folder, '--folder')
  for name, draw in FIGURES.items():
    with whole(folder / f'{name}.png') as part:
      draw().savefig(part, dpi=110)
    print(folder / f'{name}.png')


if __name__ == '__main__':
  cli.run(main)
