"""Timestep distributions: how the times of a batch are drawn.

Each is (step_key, index, batch_size, schedule, state) -> (t, correction), both (B,).

The correction is 1 where the distribution defines the objective. Where it only estimates the mean
over uniform times, the correction is the ratio of the two densities. Draws depend on the step and
on each example's index in the global stream, never on how the batch is laid out over devices.

`uniform`, `stratified`, `low_discrepancy`, `antithetic` and `importance` estimate the uniform mean.
The others draw log-SNR by a density of their own, and define the objective unless told to estimate.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.bounds import bounded
from ddpm_jax.diffusion.schedules import Discrete, Schedule
from ddpm_jax.keys import example_keys, for_purpose

TimestepDistribution = Callable[..., tuple[Array, Array]]

# A distribution of log-SNR reaches no lower: where the SNR ends at zero, it has to end somewhere.
LOWEST = -20.0

Scale = Annotated[float, Interval(ge=1e-3, le=100)]
LogSNR = Annotated[float, Interval(ge=-40, le=40)]
History = Annotated[int, Interval(ge=1, le=1000)]
Bins = Annotated[int, Interval(ge=1, le=10_000)]
Floor = Annotated[float, Interval(gt=0, le=1)]


class Memory(NamedTuple):
  """What a timestep distribution keeps from step to step.

  Attributes:
    init: schedule -> the state before the first step.
    update: (state, schedule, t, values) -> the next, from the times and losses of a whole batch.
  """

  init: Callable[..., Any]
  update: Callable[..., Any]


def remembers(init: Callable[..., Any], update: Callable[..., Any]) -> Callable[[Any], Any]:
  """Decorator of a timestep distribution with a memory; both get its own options too."""

  def mark(distribution: Any) -> Any:
    distribution.memory = Memory(init, update)
    return distribution

  return mark


def memory(distribution: TimestepDistribution) -> Memory | None:
  """A distribution's memory, its options bound; None where it has none."""
  function, options = (
    getattr(distribution, 'func', distribution),
    getattr(distribution, 'keywords', {}),
  )
  found = getattr(function, 'memory', None)
  if found is None:
    return None
  return Memory(
    lambda schedule: found.init(schedule, **options),
    lambda state, schedule, t, values: found.update(state, schedule, t, values, **options),
  )


def uniform(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """Every example's t is uniform over the chain (over [t_min, t_max] where time is continuous)."""
  del batch_size, state
  u = uniforms(step_key, index)
  return time_of(schedule, u), jnp.ones_like(u)


def stratified(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """Example i of the batch draws t uniformly from the i-th of batch_size equal parts of the chain.

  Over examples in random order, a batch's mean has the expectation that `uniform` gives it, and
  never a larger variance.
  """
  del state
  u = (index % batch_size + uniforms(step_key, index)) / batch_size
  return time_of(schedule, u), jnp.ones_like(u)


def low_discrepancy(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """u_i = (u + i / batch_size) mod 1: one draw for the batch, and all times at even distances.

  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630, appendix I; its code calls this
  antithetic.
  """
  del state
  offset = jax.random.uniform(for_purpose(step_key, 'time'))
  u = (offset + (index % batch_size) / batch_size) % 1.0
  return time_of(schedule, u), jnp.ones_like(u)


def antithetic(
  step_key: Array, index: Array, batch_size: int, schedule: Schedule, state: Any
) -> tuple[Array, Array]:
  """Pairs u, 1 - u: what is linear in time has no variance left.

  Reference: Song et al. 2021, https://arxiv.org/abs/2010.02502, its published code.
  """
  del state
  second = index % batch_size % 2
  u = uniforms(step_key, index - second)
  u = jnp.where(second == 1, 1 - u, u)
  return time_of(schedule, u), jnp.ones_like(u)


@bounded
def new_history(
  schedule: Schedule, *, history: History = 10, floor: Floor = 0.001, bins: Bins = 100
):
  """No losses yet, of each time of a chain or each of `bins` equal parts of continuous time.

  Raises:
    ValueError: where one of the options is out of bounds.
  """
  cells = schedule.num_steps if isinstance(schedule, Discrete) else bins
  return {'losses': jnp.zeros((cells, history)), 'count': jnp.zeros(cells, jnp.int32)}


def append(state: Any, schedule: Schedule, t: Array, values: Array, **options: Any) -> Any:
  """Each cell's losses with those of the batch (B,) after them; the oldest make room.

  Of the losses of one cell in one batch the last take their places, in the order of the batch.
  """
  del options
  cells, history = state['losses'].shape
  cell, place = cell_of(schedule, t, cells), jnp.arange(t.size)
  same = cell[:, None] == cell[None]
  earlier = jnp.sum(same & (place[None] < place[:, None]), axis=1)
  later = jnp.sum(same & (place[None] > place[:, None]), axis=1)
  row = jnp.where(later < history, cell, cells)  # one that is overwritten goes out of range
  slot = (state['count'][cell] + earlier) % history
  return {
    'losses': state['losses'].at[row, slot].set(values, mode='drop'),
    'count': state['count'].at[cell].add(1),
  }


@remembers(new_history, append)
def importance(
  step_key: Array,
  index: Array,
  batch_size: int,
  schedule: Schedule,
  state: Any,
  *,
  history: History = 10,
  floor: Floor = 0.001,
  bins: Bins = 100,
) -> tuple[Array, Array]:
  """p_t in proportion to sqrt(E L_t²) over the last `history` losses at t; correction 1 / (T p_t).

  So the mean of the corrected losses is the uniform one, with the least variance that a
  distribution can give where the second moments are those of all losses. Until each time has its
  history p is uniform; a share `floor` of it always is. Continuous time is taken in `bins` equal
  parts.

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 18; the floor is
  that of its published code.
  """
  del batch_size
  cells, p = state['count'].size, probabilities(state, history, floor)
  edges = jnp.cumsum(p)
  u = uniforms(step_key, index) * edges[-1]
  cell = jnp.minimum(jnp.searchsorted(edges, u, side='right'), cells - 1)
  if isinstance(schedule, Discrete):
    t = 1 + cell
  else:
    inside = jnp.clip((u - (edges[cell] - p[cell])) / p[cell], 0, 1)
    t = time_of(schedule, (cell + inside) / cells)
  return t, 1 / (cells * p[cell])


def probabilities(state: Any, history: int, floor: float) -> Array:
  """(cells,), in proportion to the root mean square of each cell's losses."""
  size = jnp.sqrt(jnp.mean(jnp.square(state['losses']), axis=1))
  complete = jnp.all(state['count'] >= history) & (jnp.sum(size) > 0)
  size = jnp.where(complete, size, 1.0)
  return (1 - floor) * size / jnp.sum(size) + floor / size.size


def cell_of(schedule: Schedule, t: Array, cells: int) -> Array:
  """The number from 0 of the cell that each time (B,) is in."""
  if isinstance(schedule, Discrete):
    return t - 1
  share = (t - schedule.t_min) / (schedule.t_max - schedule.t_min)
  return jnp.clip(jnp.floor(share * cells).astype(int), 0, cells - 1)


class LogSNRDistribution(NamedTuple):
  """A distribution of log-SNR, by its cumulative function and the inverse."""

  cdf: Callable[[Array], Array]
  quantile: Callable[[Array], Array]


def drawn(
  distribution: LogSNRDistribution,
  step_key: Array,
  index: Array,
  schedule: Schedule,
  estimate: bool,
) -> tuple[Array, Array]:
  """Times whose log-SNR follows the distribution, within the schedule's range of it.

  A chain takes the time of the nearest log-SNR; its probability is then known exactly.

  Args:
    distribution: of log-SNR.
    step_key: of the step.
    index: (B,).
    schedule: the path.
    estimate: whether to correct for the density, so as to estimate the mean over uniform times.
  """
  low, high = reach(schedule)
  first, last = distribution.cdf(low), distribution.cdf(high)
  u = uniforms(step_key, index)
  log_snr = jnp.clip(distribution.quantile(first + u * (last - first)), low, high)
  t = jax.vmap(schedule.time)(log_snr)
  if not estimate:
    return t, jnp.ones_like(u)
  if isinstance(schedule, Discrete):
    p = jnp.abs(jnp.diff(distribution.cdf(cell_edges(schedule)))) / (last - first)
    return t, 1 / (schedule.num_steps * p[t - 1])
  return t, (last - first) / jax.vmap(lambda t: density_of_share(distribution, schedule, t))(t)


def of_log_snr(distribution: Callable[..., LogSNRDistribution]) -> TimestepDistribution:
  """Decorator of (schedule, **options) -> LogSNRDistribution: the timestep distribution it makes.

  It takes the same options, and `estimate`: whether to correct for the density, so as to estimate
  the mean over uniform times. Without, the distribution defines the objective.
  """

  def timestep_distribution(
    step_key: Array,
    index: Array,
    batch_size: int,
    schedule: Schedule,
    state: Any,
    *,
    estimate: bool = False,
    **options: float,
  ) -> tuple[Array, Array]:
    del batch_size, state
    return drawn(distribution(schedule, **options), step_key, index, schedule, estimate)

  *common, estimate, _ = inspect.signature(timestep_distribution).parameters.values()
  _, *options = inspect.signature(distribution).parameters.values()
  found: Any = functools.update_wrapper(timestep_distribution, distribution)
  found.__signature__ = inspect.Signature([*common, *options, estimate])
  found.log_snr_distribution = distribution
  return found


def mass_within(distribution: TimestepDistribution, schedule: Schedule) -> float:
  """The share of a distribution of log-SNR that the schedule's range holds; 1 for one of t."""
  function, options = (
    getattr(distribution, 'func', distribution),
    dict(getattr(distribution, 'keywords', {})),
  )
  options.pop('estimate', None)
  if not hasattr(function, 'log_snr_distribution'):
    return 1.0
  low, high = (function.log_snr_distribution(schedule, **options).cdf(x) for x in reach(schedule))
  return float(high - low)


def reach(schedule: Schedule) -> tuple[Array, Array]:
  """The lowest log-SNR and the highest, the former no lower than LOWEST."""
  low, high = schedule.log_snr(schedule.t_max), schedule.log_snr(schedule.t_min)
  return jnp.maximum(low, LOWEST), jnp.asarray(high)


def cell_edges(schedule: Discrete) -> Array:
  """(T + 1,): the log-SNRs between which each time of a chain is the nearest, falling."""
  low, high = reach(schedule)
  log_snrs = schedule.log_snrs[1:]
  middles = jnp.maximum((log_snrs[1:] + log_snrs[:-1]) / 2, low)
  return jnp.concatenate([high[None], middles, low[None]])


def density_of_share(distribution: LogSNRDistribution, schedule: Schedule, t: Array) -> Array:
  """The density of u = (t - t_min) / (t_max - t_min) at t, the distribution being whole."""
  log_snr, rate = jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))
  return jax.grad(distribution.cdf)(log_snr) * -rate * (schedule.t_max - schedule.t_min)


@of_log_snr
def log_normal(schedule: Schedule, *, mean: LogSNR = -1.2, std: Scale = 1.2) -> LogSNRDistribution:
  """log(sigma / alpha) ~ N(mean, std²).

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1.
  """
  del schedule
  return normal(-2 * mean, 2 * std)


@of_log_snr
def logit_normal(schedule: Schedule, *, mean: LogSNR = 0.0, std: Scale = 1.0) -> LogSNRDistribution:
  """logit(u) ~ N(mean, std²), u = sigma / (alpha + sigma): the time on the path `flow`.

  As logit(u) = log(sigma / alpha), it is `log_normal` with other defaults.
  Reference: Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 3.
  """
  del schedule
  return normal(-2 * mean, 2 * std)


@of_log_snr
def cosine(schedule: Schedule, *, mean: LogSNR = 0.0) -> LogSNRDistribution:
  """log_snr = mean - 2 log tan(πu / 2), u uniform: the cosine schedule's, on any path.

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17, without its
  offset.
  """
  del schedule
  return LogSNRDistribution(
    lambda x: 1 - 2 / math.pi * jnp.arctan(jnp.exp((mean - x) / 2)),
    lambda u: mean - 2 * jnp.log(jnp.tan(math.pi / 2 * (1 - u))),
  )


@of_log_snr
def log_snr(schedule: Schedule) -> LogSNRDistribution:
  """Log-SNR is uniform over the schedule's range, from -20 where it ends at zero SNR."""
  low, high = reach(schedule)
  return LogSNRDistribution(lambda x: (x - low) / (high - low), lambda u: low + u * (high - low))


@of_log_snr
def laplace(schedule: Schedule, *, mean: LogSNR = 0.0, scale: Scale = 0.5) -> LogSNRDistribution:
  """log_snr has the density exp(-|log_snr - mean| / scale) / (2 scale).

  Reference: Hang et al. 2024, https://arxiv.org/abs/2407.03297.
  """
  del schedule

  def cdf(x: Array) -> Array:
    half = jnp.exp(-jnp.abs(x - mean) / scale) / 2
    return jnp.where(x < mean, half, 1 - half)

  def quantile(u: Array) -> Array:
    away = scale * -jnp.log(2 * jnp.minimum(u, 1 - u))
    return mean + jnp.where(u < 0.5, -away, away)

  return LogSNRDistribution(cdf, quantile)


def normal(mean: float, std: float) -> LogSNRDistribution:
  """N(mean, std²)."""
  return LogSNRDistribution(
    lambda x: jax.scipy.special.ndtr((x - mean) / std),
    lambda u: mean + std * jax.scipy.special.ndtri(u),
  )


def uniforms(step_key: Array, index: Array) -> Array:
  """One draw from [0, 1) for each example, (B,)."""
  return jax.vmap(jax.random.uniform)(for_purpose(example_keys(step_key, index), 'time'))


def time_of(schedule: Schedule, u: Array) -> Array:
  """The time at the share u in [0, 1] of the way from t_min to t_max."""
  if isinstance(schedule, Discrete):
    return jnp.minimum(1 + jnp.floor(u * schedule.num_steps).astype(int), schedule.num_steps)
  return schedule.t_min + u * (schedule.t_max - schedule.t_min)


TIMESTEP_DISTRIBUTIONS = {
  'uniform': uniform,
  'stratified': stratified,
  'low_discrepancy': low_discrepancy,
  'antithetic': antithetic,
  'importance': importance,
  'log_normal': log_normal,
  'logit_normal': logit_normal,
  'cosine': cosine,
  'log_snr': log_snr,
  'laplace': laplace,
}
