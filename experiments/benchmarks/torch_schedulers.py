"""A scheduler of diffusers run with our denoiser and our noise, and our sampler over its times.

diffusers, in PyTorch, is no dependency: this module is imported where it is installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from jax.typing import ArrayLike

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.parameterization import PARAMETERIZATIONS, Denoiser
from ddpm_jax.diffusion.process import q_sample
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers import NOISES, THRESHOLDS, Step, sample, time_grid
from ddpm_jax.theory import oracle
from experiments.benchmarks.parity_cases import CALLS, Case, Chain, Grid, learned

BATCH = 8


class Kind(NamedTuple):
  """How a scheduler keeps x and knows its noise level.

  Attributes:
    schedule: scheduler -> the path that its x is on.
    time: (scheduler, schedule, index of the call) -> the time on it.
  """

  schedule: Callable[[Any], Schedule]
  time: Callable[[Any, Schedule, int], Time]


def chain(scheduler: Any) -> schedules.Discrete:
  """The scheduler's own chain, from its table."""
  return schedules.from_alphas_bar(scheduler.alphas_cumprod.double().numpy())


def variance_preserving(scheduler: Any) -> Schedule:
  """A VP path whose times are an exact function of log-SNR, for schedulers that go by sigma."""
  del scheduler
  return schedules.cosine_log_snr(-25.0, 25.0)


def variance_exploding(scheduler: Any) -> Schedule:
  """alpha = 1, sigma = t."""
  del scheduler
  return schedules.edm(1e-6, 1e6)


def straight(scheduler: Any) -> Schedule:
  """alpha = 1 - t, sigma = t."""
  del scheduler
  return schedules.flow(t_min=1e-6)


def of_timestep(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """diffusers counts a chain's times from 0, data not among them."""
  del schedule
  return int(scheduler.timesteps[index]) + 1


def of_stride_below(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """Inversion is given the time that it goes to."""
  stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
  return of_timestep(scheduler, schedule, index) - stride


def of_sigma(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """The sigmas of schedulers whose x is VP are sigma / alpha."""
  return schedule.time(-2 * jnp.log(float(scheduler.sigmas[index])))


def of_tables(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """What IPNDMScheduler calls betas is sigma."""
  sigma, alpha = float(scheduler.betas[index]), float(scheduler.alphas[index])
  return schedule.time(2 * jnp.log(alpha / sigma))


def of_input_scale(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """The sigma by which it scales the network's input, 1 / sqrt(sigma² + sigma_data²)."""
  del schedule
  one = torch.ones((), dtype=torch.float64)
  scale = float(scheduler.scale_model_input(one, scheduler.timesteps[index]))
  return jnp.asarray(np.sqrt(scale**-2 - scheduler.config.get('sigma_data', 1.0) ** 2))


def of_straight(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """The sigmas of rectified flow are its times."""
  del schedule
  return jnp.asarray(float(scheduler.sigmas[index]))


def of_score_table(scheduler: Any, schedule: Schedule, index: int) -> Time:
  """ScoreSdeVeScheduler looks a table up at a rounded place."""
  del schedule
  place = int(scheduler.timesteps[index] * (len(scheduler.timesteps) - 1))
  return jnp.asarray(float(scheduler.discrete_sigmas[place]))


KINDS = {
  'chain': Kind(chain, of_timestep),
  'inverse': Kind(chain, of_stride_below),
  'vp': Kind(variance_preserving, of_sigma),
  'tables': Kind(variance_preserving, of_tables),
  've': Kind(variance_exploding, of_input_scale),
  'score': Kind(variance_exploding, of_score_table),
  'flow': Kind(straight, of_straight),
}


def deviation(ours: ArrayLike, theirs: ArrayLike) -> float:
  """The largest |ours - theirs| at any time, in units of theirs' root mean square there.

  Where both are infinite, or both zero, they are the same; else what is no number deviates by inf.
  """
  ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
  ours, theirs = (x.reshape(x.shape[0], -1) for x in (ours, theirs))
  with np.errstate(invalid='ignore', divide='ignore'):
    difference = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    scale = np.sqrt(np.mean(theirs**2, axis=1, keepdims=True))
    relative = np.where(difference == 0, 0.0, difference / scale)
  return float(np.max(np.where(np.isnan(relative), np.inf, relative)))


def of_case(case: Case, num_steps: int) -> float:
  """How far our sampler's path is from the scheduler's over the same times."""
  scheduler = make(case.theirs, case.settings, num_steps)
  schedule = KINDS[case.kind].schedule(scheduler)
  keys = jax.random.split(jax.random.key(0), BATCH)
  times, theirs = walk(case, scheduler, schedule, keys)
  denoiser = THRESHOLDS[case.threshold](exact_denoiser(case, schedule), (-1, 1))
  final = dict(return_path=True, final=case.final)
  _, path = sample(case.ours.sampler, denoiser, schedule, times, theirs[0], keys, **final)
  return deviation(path, theirs)


def of_grid(grid: Grid, num_steps: int) -> float:
  """How far our grid is from the scheduler's."""
  schedule, theirs = grid.schedule(), levels(grid, num_steps)
  times = time_grid(grid.ours, schedule, num_steps + grid.left_out)[:num_steps]
  return deviation(np.array([level(schedule, t, grid.by_sigma) for t in times]), theirs)


def of_chain(chain: Chain, num_steps: int) -> float:
  """How far our chain is from the scheduler's."""
  schedule = chain.schedule(num_steps)
  settings = chain.settings | dict(num_train_timesteps=num_steps)
  scheduler = getattr(diffusers, f'{chain.theirs}Scheduler')(**settings)
  again = torch.cumprod(1 - scheduler.betas.double(), 0)
  theirs = ratio(again if chain.from_betas else scheduler.alphas_cumprod)
  return deviation(np.exp(-np.asarray(schedule.log_snrs[1:]) / 2), theirs)


def levels(grid: Grid, num_steps: int) -> np.ndarray:
  """sigma / alpha at the scheduler's times; sigma for rectified flow, whose sigmas are that."""
  scheduler = make(grid.theirs, grid.settings, num_steps)
  if hasattr(scheduler, 'sigmas'):
    return scheduler.sigmas.numpy()[:num_steps]
  return ratio(scheduler.alphas_cumprod[scheduler.timesteps])


def level(schedule: Schedule, t: Time, by_sigma: bool) -> float:
  """sigma / alpha, or sigma alone."""
  return float(schedule.sigma(t) if by_sigma else jnp.exp(-schedule.log_snr(t) / 2))


def ratio(alphas_bar: torch.Tensor) -> np.ndarray:
  """sigma / alpha of a VP path."""
  alphas_bar = alphas_bar.double().numpy()
  with np.errstate(divide='ignore'):
    return np.sqrt((1 - alphas_bar) / alphas_bar)


def mixture() -> oracle.GaussianMixture:
  """The data: two lopsided humps, some of it outside [-1, 1]."""
  weights, means = np.array([0.3, 0.7]), np.array([[-1.3, 0.5, 0.1], [0.9, -0.2, -0.4]])
  tilted = np.full((3, 3), 0.06) + 0.04 * np.eye(3)
  return oracle.GaussianMixture(weights, means, np.stack([np.diag([0.05, 0.1, 0.3]), tilted]))


def exact_denoiser(case: Case, schedule: Schedule) -> Denoiser:
  """The data's own."""
  denoiser = mixture().denoiser(schedule)
  return learned(denoiser) if case.fraction else denoiser


def make(name: str, settings: dict[str, Any], num_steps: int) -> Any:
  """The scheduler with its times set, its tables widened to double precision."""
  scheduler = getattr(diffusers, f'{name}Scheduler')(**settings)
  scheduler.set_timesteps(num_steps)
  for key, value in vars(scheduler).items():
    if isinstance(value, torch.Tensor) and value.is_floating_point() and key != 'timesteps':
      setattr(scheduler, key, value.double())
  return scheduler


def walk(case: Case, scheduler: Any, schedule: Schedule, keys: Array) -> tuple[Array, Array]:
  """(times (N,), x (N or N + 1, B, …)) where the scheduler's steps begin and, for data, end."""
  kind, index = KINDS[case.kind], case.first
  network = make_network(case, scheduler, schedule)
  x = start(schedule, kind.time(scheduler, schedule, index), keys)
  times, path = [], [x]
  calls = CALLS[case.calls](len(scheduler.timesteps) - case.first)
  for number, count in enumerate(calls):
    times.append(kind.time(scheduler, schedule, index))
    if case.final == 'keep' and number == len(calls) - 1:
      break
    noises = Noises(schedule, keys, x, number)
    for _ in range(count):
      output = network(x, kind.time(scheduler, schedule, index), index)
      x = step(case, scheduler, output, scheduler.timesteps[index], x, noises)
      index += 1
    path.append(x)
  return jnp.stack([jnp.asarray(t) for t in times]), jnp.stack(path)


def start(schedule: Schedule, t: Time, keys: Array) -> Array:
  """A draw from q(xt) for each key."""
  data = mixture()

  def example(key: Array) -> Array:
    of_data, of_noise = jax.random.split(key)
    x0 = data.sample(of_data)
    return q_sample(schedule, x0, t, jax.random.normal(of_noise, x0.shape))

  return jax.vmap(example)(keys)


def make_network(
  case: Case, scheduler: Any, schedule: Schedule
) -> Callable[[Array, Time, int], Array]:
  """Makes network(x, t, index) -> what the scheduler takes for its output, exact at time t.

  A case that is told its time is asked at the one that its pipeline would pass, rounded as it is.
  """
  seen = chain(scheduler) if case.told else schedule
  denoise = jax.jit(exact_denoiser(case, seen))
  row = PARAMETERIZATIONS[case.target](**case.target_options).row

  def network(x: Array, t: Time, index: int) -> Array:
    t = of_timestep(scheduler, seen, index) if case.told else t
    denoised, alpha, sigma = denoise(x, t), seen.alpha(t), seen.sigma(t)
    a, b = row(alpha, sigma)
    output = a * denoised.x0 + b * (x - alpha * denoised.x0) / sigma
    if denoised.fraction is None:
      return output
    return jnp.concatenate([output, 2 * denoised.fraction - 1], axis=1)

  return network


class Noises:
  """What our sampler draws in one step, in the order in which the scheduler asks for it."""

  def __init__(self, schedule: Schedule, keys: Array, x: Array, number: int):
    self.white = NOISES['white'](schedule, keys, x, Step(*map(jnp.asarray, (0.0, 0.0, number))))
    self.drawn: list[torch.Tensor] = []
    self.part = 0

  def next(self, *_: Any, **__: Any) -> torch.Tensor:
    """The next piece of the step's way, whatever the scheduler asks for."""
    noise = self.white(0.0, 0.0, 0, self.part)
    self.part += 1
    return to_torch(noise)


def step(
  case: Case, scheduler: Any, output: Array, timestep: Any, x: Array, noises: Noises
) -> Array:
  """One call of the scheduler."""
  module = sys.modules[type(scheduler).__module__]
  if case.middle_share:
    scheduler.noise_sampler = correlated(case.middle_share, noises)
  with mock.patch.object(module, 'randn_tensor', create=True, side_effect=noises.next):
    call = getattr(scheduler, case.method)
    new = call(to_torch(output), timestep, to_torch(x), return_dict=False, **case.arguments)[0]
  return jnp.asarray(new.numpy())


def correlated(share: Callable[[float], float], noises: Noises) -> Callable[..., torch.Tensor]:
  """Noise for DPMSolverSDEScheduler: to the middle first, then for the whole step.

  Of the whole step's noise the first part is `share` of q, its sigmas' ratio to the middle.
  """
  drawn = noises.drawn

  def noise(sigma: Any, sigma_next: Any) -> torch.Tensor:
    drawn.append(noises.next())
    if len(drawn) == 1:
      return drawn[0]
    weight = share(float(sigma_next / sigma) ** 0.5)
    return weight * drawn[0] + (1 - weight**2) ** 0.5 * drawn[1]

  return noise


def to_torch(x: Array) -> torch.Tensor:
  """The same numbers in PyTorch."""
  return torch.from_numpy(np.array(x))
