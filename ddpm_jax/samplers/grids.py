"""Time grids: N strictly decreasing times, each with sigma > 0; the step to data comes after.

Four are even in a function of the schedule's own time, three in a function of its log-SNR, so that
these place the same noise levels on every path. What is elsewhere called uniform is `linspace` in
DPM-Solver's code and `leading` in DDIM's; what is called exponential, even in log(sigma / alpha),
is `log_snr`, as log(sigma / alpha) = -½ log_snr on every path.

Each is a function (schedule, num_steps) -> times (N,), not yet rounded to those of a chain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from annotated_types import Interval
from jax import Array
from jax.typing import ArrayLike

from ddpm_jax.bounds import OneOf, bounded
from ddpm_jax.diffusion.schedules import Discrete, Schedule

# Where a path ends at zero SNR, log-SNRs are counted from here: about where VP chains without a
# zero end, sigma / alpha = 148.
LOWEST_LOG_SNR = -10.0


def ends(schedule: Schedule) -> tuple[float, float]:
  """(t_min, T), T being t_max."""
  return float(schedule.t_min), float(schedule.t_max)


def linspace(schedule: Schedule, num_steps: int) -> np.ndarray:
  """T - i (T - t_min) / (N - 1): from T to t_min, both included (N = 1 takes T)."""
  first, last = ends(schedule)
  return np.linspace(last, first, num_steps)


def trailing(schedule: Schedule, num_steps: int) -> np.ndarray:
  """T - i T / N: begins at T, ends a stride above the data.

  Reference: Lin et al. 2023, https://arxiv.org/abs/2305.08891, table 2, as are linspace and
  leading.
  """
  return ends(schedule)[1] * (1 - np.arange(num_steps) / num_steps)


def leading(schedule: Schedule, num_steps: int) -> np.ndarray:
  """t_min + (N - 1 - i) stride: ends at t_min, and begins below T; that of DDIM's code.

  The stride is ⌊T / N⌋ on a chain, else (T - t_min) / N. All N = T times of a chain begin at T.
  """
  first, last = ends(schedule)
  stride = last // num_steps if isinstance(schedule, Discrete) else (last - first) / num_steps
  return first + np.arange(num_steps)[::-1] * stride


def quadratic(schedule: Schedule, num_steps: int) -> np.ndarray:
  """(√T - i (√T - √t_min) / (N - 1))²: more of the steps near the data, both ends included.

  DDIM's code begins at 0.8 T instead.
  Reference: Song et al. 2021, https://arxiv.org/abs/2010.02502, appendix D.
  """
  first, last = ends(schedule)
  # Clipped, for the ends' roots are rounded.
  return np.clip(np.linspace(last**0.5, first**0.5, num_steps) ** 2, first, last)


def log_snr(schedule: Schedule, num_steps: int) -> np.ndarray:
  """Even in log-SNR from T to t_min.

  Reference: Lu et al. 2022, https://arxiv.org/abs/2206.00927.
  """
  return even_in(lambda level: level, lambda value: value, schedule, num_steps)


def karras(
  schedule: Schedule, num_steps: int, rho: Annotated[float, Interval(gt=0, le=1000)] = 7.0
) -> np.ndarray:
  """Even in (sigma / alpha)^(1 / rho) from T to t_min.

  With rho = 1 it is even in sigma / alpha; as rho grows it becomes `log_snr`.
  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 5.
  """
  return even_in(
    lambda level: np.exp(-level / (2 * rho)),
    lambda value: -2 * rho * np.log(value),
    schedule,
    num_steps,
  )


def information(schedule: Schedule, num_steps: int) -> np.ndarray:
  """Even in log(1 + SNR) from T to t_min, twice the nats that xt holds of standard normal data.

  Of all grids of N times it has the lowest variational bound on such data under the variance
  `small`: a step from t to s costs ½ (SNR(s) - SNR(t)) / (1 + SNR(t)) a dimension, the costs depend
  on the ratios of 1 + SNR alone, whose product is given, hence they are best equal. It spends much
  on noise too faint to be seen: it is for bits, not for looks.
  Reference: the minimum of Watson et al. 2021, https://arxiv.org/abs/2106.03802 (`cheapest_path`),
  for standard normal data; even in H(x0 | xt) as in Stancevic et al. 2025,
  https://arxiv.org/abs/2504.13612.
  """
  return even_in(
    lambda level: np.logaddexp(0.0, level),
    lambda value: value + np.log(-np.expm1(-value)),
    schedule,
    num_steps,
  )


def even_in(
  measure: Callable[[np.ndarray], np.ndarray],
  inverse: Callable[[np.ndarray], np.ndarray],
  schedule: Schedule,
  num_steps: int,
) -> np.ndarray:
  """The times from T to t_min at which measure(log_snr) is evenly spaced (N = 1 takes T)."""
  first, last = ends(schedule)
  with jax.ensure_compile_time_eval():
    levels = np.array([schedule.log_snr(t) for t in (schedule.t_max, schedule.t_min)], np.float64)
    levels = np.maximum(levels, LOWEST_LOG_SNR) if np.isneginf(levels[0]) else levels
    begin, end = measure(levels)
    inner = inverse(np.linspace(begin, end, num_steps)[1:-1])
    # Of few lengths, since each is compiled anew.
    padded = np.resize(inner, 64 * (1 + inner.size // 64))
    times = np.asarray(jax.vmap(schedule.time)(jnp.asarray(padded)), np.float64)[: inner.size]
  return np.concatenate([[last], times, [first]])[:num_steps]


TIME_GRIDS = {
  'linspace': linspace,
  'trailing': trailing,
  'leading': leading,
  'quadratic': quadratic,
  'log_snr': log_snr,
  'karras': karras,
  'information': information,
}


# On a chain these crowd between the last few times: they are for its continuous reading.
OF_LOG_SNR = frozenset({'log_snr', 'karras', 'information'})


@bounded
def time_grid(
  name: Annotated[str, OneOf(TIME_GRIDS)],
  schedule: Schedule,
  num_steps: Annotated[int, Interval(ge=1, le=1_000_000)],
) -> Array:
  """The N = num_steps times of the grid `name` (a key of TIME_GRIDS), rounded on a chain.

  T is the schedule's t_max.

  Raises:
    ValueError: for an unknown name; where num_steps is above T on a chain; where N is below one, or
      so large that times fall together or the last is below t_min.
  """
  grid = TIME_GRIDS[name]
  first, last = ends(schedule)
  discrete = isinstance(schedule, Discrete)
  if discrete and num_steps > last:
    raise ValueError(
      f"num_steps: {num_steps} is more than the chain's {last:.0f}; take fewer, or a longer chain"
    )
  times = grid(schedule, num_steps)
  times = np.round(times).astype(int) if discrete else times.astype(jnp.result_type(float))
  if times[-1] < first:
    raise ValueError(f"num_steps: {num_steps} leads below t_min = {first}; 'linspace' does not")
  if np.any(np.diff(times) >= 0):
    mend = 'fewer steps, or schedules.interpolate' if discrete else 'fewer steps'
    raise ValueError(f"num_steps: of {num_steps} times of '{name}' some fall together; {mend}")
  return jnp.asarray(times)


def bound_costs(schedule: Schedule, times: ArrayLike, errors: ArrayLike) -> np.ndarray:
  """(M, M): ½ (SNR(s) - SNR(t)) E|x0 - x0_hat(xt)|² for the step from times[i] to times[j].

  It is the step's term of the variational bound under the variance `small`, in nats, whatever lies
  between; infinite where it would not go down. One pass over the times prices every grid.
  Reference: Kingma et al. 2021, https://arxiv.org/abs/2107.00630.

  Args:
    schedule: the path.
    times: (M,), strictly decreasing.
    errors: (M,), a denoiser's squared error at each, summed over an example's dimensions.
  """
  snr = np.exp(np.asarray(jax.vmap(schedule.log_snr)(jnp.asarray(times)), np.float64))
  gains = snr[None, :] - snr[:, None]
  return np.where(gains > 0, 0.5 * gains * np.asarray(errors)[:, None], np.inf)


def cheapest_path(costs: ArrayLike, num_steps: int) -> np.ndarray:
  """The N = num_steps of M places, first and last included, whose N - 1 steps cost least in sum.

  C_k(j) = min_i C_{k-1}(i) + costs(i, j), found for all k by dynamic programming in N M²
  operations. With `bound_costs`, times[cheapest_path(costs, N)] is the grid of the best bound.

  Reference: Watson et al. 2021, https://arxiv.org/abs/2106.03802.

  Args:
    costs: (M, M), of the step from place i to place j; infinite where there is none.
    num_steps: in 2 … M.

  Raises:
    ValueError: where num_steps is outside, or no path has that many.
  """
  costs = np.asarray(costs, np.float64)
  if not 2 <= num_steps <= len(costs):
    raise ValueError(f'num_steps: {num_steps} is not in 2 … {len(costs)}, the places')
  best, came_from = costs[0], []
  for _ in range(num_steps - 2):
    sums = best[:, None] + costs
    came_from.append(np.argmin(sums, axis=0))
    best = np.min(sums, axis=0)
  if not np.isfinite(best[-1]):
    raise ValueError(f'num_steps: no path of {num_steps} places goes from the first to the last')
  path = [len(costs) - 1]
  for previous in reversed(came_from):
    path.append(previous[path[-1]])
  return np.array([0, *reversed(path)])
