"""Noise schedules: how much of the data, alpha(t), and of the noise, sigma(t), there is in x_t.

A discrete chain has the times t = 1 … T. Index 0 is the data itself: tables have T + 1 rows, row t
belongs to t, and alpha(0) = 1, sigma(0) = 0. Here are the chains and what is made of them;
continuous.py has the formulas, learned.py the schedule that trains. SCHEDULES names them all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.continuous import (
  Continuous,
  as_float,
  check_increasing,
  cosine_log_snr,
  edm,
  flow,
  sub_vp,
  ve,
  vp,
)
from ddpm_jax.diffusion.learned import bind, learned, parameters
from ddpm_jax.diffusion.protocol import Schedule, Time, check_range, check_scalar

__all__ = [
  'CONTINUOUS',
  'DISCRETE',
  'SCHEDULES',
  'Continuous',
  'Discrete',
  'Interpolated',
  'Schedule',
  'Time',
  'bind',
  'check_range',
  'check_scalar',
  'cosine',
  'cosine_log_snr',
  'edm',
  'flow',
  'from_alphas_bar',
  'from_betas',
  'interpolate',
  'learned',
  'linear',
  'parameters',
  'quadratic',
  'respace',
  'scaled_linear',
  'sigmoid',
  'sub_vp',
  've',
  'vp',
  'zero_terminal_snr',
]

# Bounds of what a config may say of a chain.
Chain = Annotated[int, Interval(ge=2, le=1_000_000)]
Beta = Annotated[float, Interval(gt=0, le=1)]
Offset = Annotated[float, Interval(ge=0, le=1)]
Logit = Annotated[float, Interval(ge=-50, le=50)]


@flax.struct.dataclass
class Discrete:
  """A chain of T steps given by its tables, each of T + 1 rows; row 0 is the data.

  Times are integers. One that is out of range raises IndexError where it is concrete and is
  clamped to [0, T] where it is traced; it never wraps around.

  Attributes:
    betas: beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}, with betas[0] = 0.
    alphas_bar: alpha_bar_t = ∏ (1 - beta_i), with alphas_bar[0] = 1.
    alphas: sqrt(alpha_bar_t).
    sigmas: sqrt(1 - alpha_bar_t).
    log_snrs: log(alpha_bar_t / (1 - alpha_bar_t)), with log_snrs[0] = inf.
    log_snr_rests: what rounding left of each log_snr: the sum of the two is exact to twice the
      digits, and so is a difference of such sums, however close the times.
    original: the index of each row in the chain that a network was trained on, as a float.
  """

  betas: Array
  alphas_bar: Array
  alphas: Array
  sigmas: Array
  log_snrs: Array
  log_snr_rests: Array
  original: Array

  @property
  def num_steps(self) -> int:
    """T."""
    return self.betas.shape[0] - 1

  @property
  def t_min(self) -> int:
    """1: the first time with noise in it."""
    return 1

  @property
  def t_max(self) -> int:
    """T."""
    return self.num_steps

  def alpha(self, t: Time) -> Array:
    """sqrt(alpha_bar_t)."""
    return self.alphas[self._row(t, 'schedule.alpha')]

  def sigma(self, t: Time) -> Array:
    """sqrt(1 - alpha_bar_t)."""
    return self.sigmas[self._row(t, 'schedule.sigma')]

  def log_snr(self, t: Time) -> Array:
    """log(alpha_bar_t / (1 - alpha_bar_t)): inf at t = 0."""
    return self.log_snrs[self._row(t, 'schedule.log_snr')]

  def log_snr_change(self, s: Time, t: Time) -> Array:
    """log_snr(t) - log_snr(s), to two roundings of the difference itself."""
    s, t = (self._row(time, 'schedule.log_snr_change') for time in (s, t))
    return (self.log_snrs[t] - self.log_snrs[s]) + (self.log_snr_rests[t] - self.log_snr_rests[s])

  def time(self, log_snr: Array | float) -> Array:
    """The integer t in 1 … T whose log-SNR is nearest."""
    check_scalar(log_snr, 'schedule.time', '(0,)')
    middles = (self.log_snrs[1:-1] + self.log_snrs[2:]) / 2
    return 1 + jnp.sum(middles >= log_snr)

  def network_time(self, t: Time) -> Array:
    """The index in the chain that the network was trained on, as a float."""
    return self.original[self._row(t, 'schedule.network_time')]

  def _row(self, t: Time, name: str) -> Array | int:
    check_scalar(t, name, '(0,)')
    if not jnp.issubdtype(jnp.result_type(t), jnp.integer):
      raise TypeError(f'{name}: a discrete chain takes integer times, not {jnp.result_type(t)}')
    if isinstance(t, jax.core.Tracer):
      return jnp.clip(t, 0, self.num_steps)
    if not 0 <= int(t) <= self.num_steps:
      raise IndexError(f'{name}: t = {int(t)} is outside the chain 0 … {self.num_steps}')
    return int(t)


def from_betas(betas: Sequence[float] | np.ndarray) -> Discrete:
  """The chain q(xt | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t) with the given beta_1 … beta_T.

  The tables are built in float64 on the host and stored in the default float type.

  Args:
    betas: shape (T,), each in (0, 1); the last may be 1 (zero terminal SNR).

  Raises:
    ValueError: where a beta is outside, naming it.
  """
  betas = np.asarray(betas, np.float64)
  check_vector(betas, 'betas')
  inside = (betas > 0) & (betas < 1)
  inside[-1] |= betas[-1] == 1
  if not inside.all():
    t = 1 + int(np.argmin(inside))
    raise ValueError(f'beta_{t} = {betas[t - 1]} is outside (0, 1); only the last beta may be 1')
  with np.errstate(divide='ignore'):
    return make_tables(betas, np.cumsum(np.log1p(-betas)))


def from_alphas_bar(alphas_bar: Sequence[float] | np.ndarray) -> Discrete:
  """The chain with the marginals q(xt | x0) = N(sqrt(alpha_bar_t) x0, 1 - alpha_bar_t).

  Args:
    alphas_bar: shape (T,), alpha_bar_1 … alpha_bar_T, each in (0, 1) and below the one before; the
      last may be 0 (zero terminal SNR).

  Raises:
    ValueError: where one is not, naming it.
  """
  alphas_bar = np.asarray(alphas_bar, np.float64)
  check_vector(alphas_bar, 'alphas_bar')
  before = np.concatenate([[1.0], alphas_bar[:-1]])
  falling = (alphas_bar > 0) & (alphas_bar < before)
  falling[-1] |= alphas_bar[-1] == 0 < before[-1]
  if not falling.all():
    t = 1 + int(np.argmin(falling))
    raise ValueError(
      f'alpha_bar_{t} = {alphas_bar[t - 1]} is outside (0, {before[t - 1]}): alphas_bar falls '
      'from 1; only the last may be 0'
    )
  with np.errstate(divide='ignore'):
    return make_tables((before - alphas_bar) / before, np.log(alphas_bar))


def make_tables(betas: np.ndarray, log_alphas_bar: np.ndarray) -> Discrete:
  """All tables from beta_t and log alpha_bar_t for t = 1 … T, float64, with row 0 put before."""
  betas, log_alphas_bar = (np.concatenate([[0.0], rows]) for rows in (betas, log_alphas_bar))
  one_minus = np.abs(np.expm1(log_alphas_bar))  # not -expm1: sigma(0) would be -0
  with np.errstate(divide='ignore', invalid='ignore'):
    log_snrs = log_alphas_bar - np.log(one_minus)
    rests = log_snrs - np.asarray(log_snrs, jnp.result_type(float))
  return Discrete(
    betas=jnp.asarray(betas),
    alphas_bar=jnp.asarray(np.exp(log_alphas_bar)),
    alphas=jnp.asarray(np.exp(log_alphas_bar / 2)),
    sigmas=jnp.asarray(np.sqrt(one_minus)),
    log_snrs=jnp.asarray(log_snrs),
    log_snr_rests=jnp.asarray(np.where(np.isfinite(log_snrs), rests, 0.0)),
    original=jnp.arange(float(betas.size)),
  )


def check_vector(values: np.ndarray, name: str) -> None:
  """Refuses what is no vector of at least one value."""
  if values.ndim != 1 or not values.size:
    raise ValueError(f'{name} has shape {values.shape}: a chain needs a vector of at least one')


def linear(
  num_steps: Chain = 1000,
  beta_start: Beta = 1e-4,
  beta_end: Beta = 0.02,
  rescale: bool = False,
) -> Discrete:
  """Betas evenly spaced from beta_start to beta_end.

  With `rescale` both ends are multiplied by 1000 / num_steps, so that chains of other lengths end
  at about the same noise (improved diffusion); without it the ends are taken as they stand.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, section 4.

  Raises:
    ValueError: where a rescaled beta exceeds 1, for fewer than 20 steps with these ends.
  """
  factor = 1000 / num_steps if rescale else 1.0
  return from_betas(np.linspace(factor * beta_start, factor * beta_end, num_steps))


def cosine(
  num_steps: Chain = 1000,
  offset: Offset = 0.008,
  max_beta: Beta = 0.999,
) -> Discrete:
  """beta_t = min(1 - f(t) / f(t-1), max_beta), with f(t) = cos²((t/T + offset) / (1 + offset) π/2).

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17.
  """
  u = np.arange(num_steps + 1) / num_steps
  f = np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2
  return from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


def quadratic(num_steps: Chain = 1000, beta_start: Beta = 1e-4, beta_end: Beta = 0.02) -> Discrete:
  """Betas whose square roots are evenly spaced.

  Reference: Ho et al. 2020, https://arxiv.org/abs/2006.11239, appendix B (one not chosen).
  """
  return from_betas(np.linspace(beta_start**0.5, beta_end**0.5, num_steps) ** 2)


def scaled_linear(
  num_steps: Chain = 1000, beta_start: Beta = 0.00085, beta_end: Beta = 0.012
) -> Discrete:
  """Stable Diffusion's: `quadratic` between its ends, which leave sqrt(alpha_bar_T) = 0.068.

  Reference: Rombach et al. 2022, https://arxiv.org/abs/2112.10752, its published code.
  """
  return quadratic(num_steps, beta_start, beta_end)


def sigmoid(
  num_steps: Chain = 1000,
  start: Logit = -3.0,
  end: Logit = 3.0,
  tau: Annotated[float, Interval(gt=0, le=1000)] = 1.0,
  max_beta: Beta = 0.999,
) -> Discrete:
  """alpha_bar_t = (f(1) - f(t/T)) / (f(1) - f(0)), f(u) = sigmoid((start + u (end - start)) / tau).

  As for `cosine`, beta_t is at most max_beta, so that some of the data remains at T.
  Reference: Chen 2023, https://arxiv.org/abs/2301.10972, algorithm 1.

  Raises:
    ValueError: unless start < end.
  """
  check_increasing('start < end', start, end)
  f = 1 / (1 + np.exp(-np.linspace(start, end, num_steps + 1) / tau))
  return from_betas(np.minimum(np.diff(f) / (f[-1] - f[:-1]), max_beta))


def zero_terminal_snr(schedule: Discrete) -> Discrete:
  """sqrt(alpha_bar_t) shifted and scaled: the first stays, the last becomes 0.

  Reference: Lin et al. 2023, https://arxiv.org/abs/2305.08891, algorithm 1.

  Raises:
    ValueError: for a chain of one step, whose first is its last.
  """
  if schedule.num_steps < 2:
    raise ValueError('zero terminal SNR needs a chain of two steps or more')
  with np.errstate(divide='ignore'):
    steps = np.log1p(-np.asarray(schedule.betas, np.float64)[1:])
  alphas = np.exp(np.cumsum(steps) / 2)
  excess = alphas - alphas[-1]
  changed = from_alphas_bar((alphas[0] * excess / excess[0]) ** 2)
  return dataclasses.replace(changed, original=schedule.original)


def respace(schedule: Discrete, steps: Sequence[int] | np.ndarray) -> Discrete:
  """The chain through some of the times: alpha_bar is kept there, the betas follow from it.

  beta'_i = 1 - alpha_bar_{steps[i]} / alpha_bar_{steps[i-1]}. The network is still told the indices
  of its own chain, however often a chain is respaced.
  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 19.

  Args:
    schedule: a chain.
    steps: the times to keep, strictly increasing within 1 … T.

  Raises:
    ValueError: where they are not.
  """
  steps = np.asarray(steps)
  check_vector(steps, 'steps')
  if not np.issubdtype(steps.dtype, np.integer):
    raise TypeError(f'steps are times of a discrete chain: integers, not {steps.dtype}')
  if steps[0] < 1 or steps[-1] > schedule.num_steps or np.any(np.diff(steps) < 1):
    raise ValueError(f'steps {steps} do not strictly increase within 1 … {schedule.num_steps}')
  kept = np.concatenate([[0], steps])
  with np.errstate(divide='ignore', invalid='ignore'):
    log_steps = np.log1p(-np.asarray(schedule.betas, np.float64))
  # Each sum over the betas between, and not a difference of two sums from 1, which cancels.
  betas = -np.expm1([log_steps[s + 1 : t + 1].sum() for s, t in zip(kept, steps, strict=False)])
  tables = jax.tree.map(lambda table: table[kept], schedule)
  return dataclasses.replace(tables, betas=jnp.asarray(np.concatenate([[0.0], betas])))


@flax.struct.dataclass
class Interpolated(Continuous):
  """A chain in continuous time: t in [1, T], log_snr piecewise linear, VP.

  At t = 1 … T it is the chain. Integer times mean the same here and there: both kinds are taken.
  """

  chain: Discrete
  t_min: float = flax.struct.field(pytree_node=False)
  t_max: float = flax.struct.field(pytree_node=False)
  t_first = 1.0

  def log_ratio(self, t: Array) -> Array:
    """Linear between the chain's."""
    return interpolated(self.chain.log_snrs, t)

  def inverse(self, log_snr: Array) -> Array:
    """Linear between the chain's times."""
    log_snrs = as_float(self.chain.log_snrs)
    below = jnp.clip(jnp.sum(log_snrs[1:] >= log_snr), 1, self.chain.num_steps - 1)
    return below + (log_snrs[below] - log_snr) / (log_snrs[below] - log_snrs[below + 1])

  def network_time(self, t: Time) -> Array:
    """The index in the chain that the network was trained on, interpolated."""
    return interpolated(self.chain.original, self._inside(t, 'schedule.network_time'))

  def _inside(self, t: Time, name: str) -> Array:
    check_scalar(t, name, '(0,)')
    return self._in_range(t, name)


def interpolated(table: Array, t: Array) -> Array:
  """Row t of a table, between its rows 1 … T linearly."""
  below = jnp.clip(jnp.floor(t).astype(int), 1, table.shape[0] - 2)
  share = t - below
  return (1 - share) * table[below] + share * table[below + 1]


def interpolate(schedule: Discrete) -> Interpolated:
  """The chain's continuous reading on [1, T], log_snr piecewise linear in t.

  Raises:
    ValueError: for a chain of one step, or one whose SNR ends at zero, where nothing is linear.
  """
  if schedule.num_steps < 2:
    raise ValueError('a chain of one step has no times between')
  last = schedule.log_snrs[-1]
  if not isinstance(last, jax.core.Tracer) and not np.isfinite(last):
    raise ValueError('the last log-SNR is -inf: respace the chain to its first T - 1 steps')
  return Interpolated(schedule, 1.0, float(schedule.num_steps))


DISCRETE = {
  'linear': linear,
  'scaled_linear': scaled_linear,
  'quadratic': quadratic,
  'cosine': cosine,
  'sigmoid': sigmoid,
}

CONTINUOUS = {
  'vp': vp,
  'sub_vp': sub_vp,
  've': ve,
  'edm': edm,
  'flow': flow,
  'cosine_log_snr': cosine_log_snr,
  'learned': learned,
}

SCHEDULES = DISCRETE | CONTINUOUS
