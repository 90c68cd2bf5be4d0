"""Which of our samplers, grids and schedules is which of diffusers', and why where they part."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.parameterization import Denoiser
from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time
from ddpm_jax.samplers import SAMPLERS, Noise, Sampler, State, Step, exponential
from ddpm_jax.samplers.dpmpp import as_published
from ddpm_jax.samplers.dpmpp_stochastic import History, moments, per_step
from ddpm_jax.samplers.dpmpp_stochastic import multistep as sde_multistep
from ddpm_jax.samplers.formulas import eps_of, place
from ddpm_jax.samplers.multistep import mean_basis
from ddpm_jax.samplers.sampler import start

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Ours:
  """A sampler and how it is written."""

  label: str
  sampler: Sampler


@dataclasses.dataclass(frozen=True)
class Case:
  """A sampler and the scheduler that it is held against.

  Attributes:
    ours: the sampler.
    theirs: the scheduler's class, without 'Scheduler'.
    settings: of the class.
    kind: a key of torch_schedulers.KINDS: how the scheduler keeps x.
    why: what parts them; empty where they agree.
    arguments: of the scheduler's step.
    target: what the scheduler takes for the network's output, a key of PARAMETERIZATIONS.
    target_options: its arguments.
    calls: a key of CALLS: how often a step evaluates the network.
    num_steps: the scheduler's.
    final: 'denoise' where both end in the data, 'keep' where the scheduler's last step is left out.
    first: the place in the scheduler's times where the walk begins.
    fraction: whether the network has a learned variance.
    threshold: a key of THRESHOLDS, for our denoiser; the scheduler has its own.
    told: whether the network is told the time that a pipeline would pass to it.
    middle_share: how the noise of a step's first part is part of the whole's; None where none is.
    method: the scheduler's step.
  """

  ours: Ours
  theirs: str
  settings: Settings
  kind: str
  why: str = ''
  arguments: Settings = dataclasses.field(default_factory=dict)
  target: str = 'eps'
  target_options: Settings = dataclasses.field(default_factory=dict)
  calls: str = 'one'
  num_steps: int = 20
  final: str = 'denoise'
  first: int = 0
  fraction: bool = False
  threshold: str = 'none'
  told: bool = False
  middle_share: Callable[[float], float] | None = None
  method: str = 'step'


@dataclasses.dataclass(frozen=True)
class Grid:
  """A grid of ours and the scheduler that it is held against, by sigma / alpha.

  Attributes:
    ours: a key of TIME_GRIDS.
    schedule: makes our path.
    theirs: the scheduler's class, without 'Scheduler'.
    settings: of the class.
    why: what parts them; empty where they agree.
    num_steps: the scheduler's.
    left_out: how many times more ours has, at its end.
    by_sigma: whether sigma is compared: at the start of rectified flow alpha is zero.
  """

  ours: str
  schedule: Callable[[], Schedule]
  theirs: str
  settings: Settings
  why: str = ''
  num_steps: int = 20
  left_out: int = 0
  by_sigma: bool = False


@dataclasses.dataclass(frozen=True)
class Chain:
  """A chain of ours and a scheduler's, compared by sigma / alpha.

  Attributes:
    ours: how it is written.
    schedule: number of steps -> the chain.
    theirs: the scheduler's class, without 'Scheduler'.
    settings: of the class.
    why: what parts them; empty where they agree.
    from_betas: whether the scheduler's betas are multiplied again, in double precision.
  """

  ours: str
  schedule: Callable[[int], schedules.Discrete]
  theirs: str
  settings: Settings
  why: str = ''
  from_betas: bool = False


# From how many times a scheduler has to how often each of its steps calls the network.
CALLS: dict[str, Callable[[int], list[int]]] = {
  'one': lambda length: [1] * length,
  'two': lambda length: [2] * (length // 2) + [1],
  'pairs': lambda length: [2] * (length // 2),
  'triples': lambda length: [3] * (length // 3),
  'heun once': lambda length: [2] + [1] * (length - 2),
  'runge-kutta thrice': lambda length: [4] * 3 + [1] * (length - 12),
}

# diffusers lowers the order in the last steps and goes to sigma = 0, unless told not to.
PLAIN: Settings = dict(lower_order_final=False, final_sigmas_type='sigma_min')
UNCLIPPED: Settings = dict(clip_sample=False)
KARRAS: Settings = dict(use_karras_sigmas=True)
EVEN: Settings = dict(use_exponential_sigmas=True)
LINSPACE: Settings = dict(timestep_spacing='linspace')
TRAILING: Settings = dict(timestep_spacing='trailing')
ZERO_SNR: Settings = dict(rescale_betas_zero_snr=True, prediction_type='v_prediction')
OF_V: Settings = dict(prediction_type='v_prediction')
OTHER_TIMES = 'takes means of v over times, whose alphas differ, then reads them as eps at one'
HALVED = 'takes half of the second derivative, as the published code'


def ours(name: str, **options: Any) -> Ours:
  """SAMPLERS[name](**options)."""
  written = ', '.join(f'{key}={value!r}' for key, value in options.items())
  return Ours(f'{name}({written})', SAMPLERS[name](**options))


def described(theirs: str, settings: Settings, arguments: Settings | None = None) -> str:
  """The scheduler as it is written; PLAIN as 'plain', since it stands in so many."""
  plain = PLAIN.items() <= settings.items()
  rest = {key: value for key, value in settings.items() if not plain or key not in PLAIN}
  words = ['plain'] * plain + [f'{key}={value!r}' for key, value in rest.items()]
  words += [f'step {key}={value!r}' for key, value in (arguments or {}).items()]
  return f'{theirs}({", ".join(words)})'


def chain_cases() -> list[Case]:
  """Schedulers that go by the times of a chain."""
  case = functools.partial(Case, kind='chain')
  large: Settings = dict(variance_type='fixed_large') | UNCLIPPED
  inverse = functools.partial(Case, kind='inverse', final='keep', first=1)
  leap = functools.partial(case, calls='heun once')
  return [
    case(ours('ancestral', variance='small'), 'DDPM', UNCLIPPED),
    case(ours('ancestral', variance='large'), 'DDPM', large),
    case(
      ours('ancestral', variance='large'),
      'DDPM',
      large | TRAILING,
      why='adds noise of variance 1 - alpha_bar_t in the step to data',
    ),
    case(ours('ancestral', variance='large'), 'DDPM', large | TRAILING, final='keep'),
    case(
      ours('ancestral', variance='fraction'),
      'DDPM',
      dict(variance_type='learned_range') | UNCLIPPED,
      fraction=True,
    ),
    *(
      case(ours('ddim', eta=eta), 'DDIM', UNCLIPPED, arguments=dict(eta=eta))
      for eta in (0.0, 0.5, 1.0)
    ),
    case(ours('ddim'), 'DDIM', UNCLIPPED | TRAILING | ZERO_SNR, target='v'),
    case(
      ours('ddim', eta=1.0),
      'DDIM',
      UNCLIPPED | LINSPACE,
      arguments=dict(eta=1.0),
      why='goes from t to t - T // N, which is not the next time',
    ),
    case(ours('ddim', eta=1.0), 'DDPM', UNCLIPPED | LINSPACE),
    case(ours('ddim'), 'DDIM', {}, threshold='clip', why='clips x0 but keeps the eps before'),
    case(ours('ddim'), 'DDIM', {}, threshold='clip', arguments=dict(use_clipped_model_output=True)),
    inverse(ours('ddim'), 'DDIMInverse', UNCLIPPED),
    inverse(
      ours('ddim'),
      'DDIMInverse',
      UNCLIPPED,
      told=True,
      why='pipelines tell the network the time that it goes to',
    ),
    case(ours('pndm'), 'PNDM', {}, calls='runge-kutta thrice', final='keep'),
    leap(ours('plms'), 'PNDM', dict(skip_prk_steps=True), final='keep'),
    leap(
      ours('plms'),
      'PNDM',
      dict(skip_prk_steps=True),
      why='ends at alpha_bar_1, where its last step goes nowhere (set_alpha_to_one is off)',
    ),
    case(
      ours('pndm'),
      'PNDM',
      OF_V,
      target='v',
      calls='runge-kutta thrice',
      final='keep',
      why=OTHER_TIMES,
    ),
    leap(
      ours('plms'),
      'PNDM',
      OF_V | dict(skip_prk_steps=True),
      target='v',
      final='keep',
      why=OTHER_TIMES,
    ),
    case(ours('consistency'), 'LCM', {}),
  ]


def table_cases() -> list[Case]:
  """Improved PNDM has a path of its own."""
  case = functools.partial(Case, kind='tables', target='v', final='keep')
  return [
    case(ours('ipndm'), 'IPNDM', {}, why='begins at alpha = 0, where it takes x0 for zero'),
    case(ours('ipndm'), 'IPNDM', {}, first=1),
  ]


def sigma_cases() -> list[Case]:
  """Schedulers whose x is x / alpha, and which go by sigma / alpha."""
  case = functools.partial(Case, kind='ve')
  two = functools.partial(case, calls='two')
  return [
    case(ours('euler'), 'EulerDiscrete', {}),
    case(ours('euler'), 'EulerDiscrete', KARRAS),
    case(ours('euler'), 'EulerDiscrete', TRAILING | ZERO_SNR, target='v'),
    case(ours('euler_ancestral'), 'EulerAncestralDiscrete', {}),
    two(ours('heun'), 'HeunDiscrete', KARRAS),
    two(ours('dpm2'), 'KDPM2Discrete', KARRAS),
    two(ours('dpm2_ancestral'), 'KDPM2AncestralDiscrete', KARRAS),
    *(
      case(
        ours('lms', order=order), 'LMSDiscrete', KARRAS, arguments=dict(order=order), final='keep'
      )
      for order in (1, 2, 3, 4)
    ),
    case(
      ours('lms'), 'LMSDiscrete', KARRAS, why='extrapolates to sigma = 0; ours ends with x0 itself'
    ),
    case(
      ours('lms'),
      'LMSDiscrete',
      KARRAS,
      first=5,
      final='keep',
      why='counts the times before its first as history, and takes eps for zero there',
    ),
    case(
      Ours('the same with those weights', with_missing_history(5)),
      'LMSDiscrete',
      KARRAS,
      first=5,
      final='keep',
    ),
    two(
      ours('dpmpp_sde'),
      'DPMSolverSDE',
      KARRAS,
      middle_share=brownian_share,
      why='noise to the middle and on: of one Brownian path in sigma, not of the exact process',
    ),
    two(
      Ours('dpmpp_sde() and its noise', ours('dpmpp_sde').sampler),
      'DPMSolverSDE',
      KARRAS,
      middle_share=exact_share,
    ),
  ]


def edm_cases() -> list[Case]:
  """Schedulers of networks with alpha = 1."""
  case = functools.partial(Case, kind='ve', target='edm')
  cm = functools.partial(
    Case, kind='ve', theirs='CMStochasticIterative', target='consistency', final='keep'
  )
  unclipped, small = dict(clip_denoised=False), dict(sigma_min=1e-5)
  return [
    case(ours('euler'), 'EDMEuler', {}),
    case(ours('dpmpp_2m'), 'EDMDPMSolverMultistep', PLAIN, final='keep'),
    case(
      ours('dpmpp_3m', published=True),
      'EDMDPMSolverMultistep',
      PLAIN | dict(solver_order=3),
      final='keep',
    ),
    case(
      ours('dpmpp_2m_sde'),
      'EDMDPMSolverMultistep',
      PLAIN | dict(algorithm_type='sde-dpmsolver++'),
      final='keep',
    ),
    Case(
      ours('reverse_diffusion'),
      'ScoreSdeVe',
      {},
      'score',
      target='score',
      method='step_pred',
      final='keep',
    ),
    cm(
      ours('consistency'),
      settings=unclipped,
      why='its noise has the variance sigma_s² - sigma_min², for x0 is meant at sigma_min',
    ),
    cm(ours('consistency'), settings=unclipped | small, target_options=small),
  ]


def multistep_cases() -> list[Case]:
  """DPMSolverMultistepScheduler, whose x is VP, and which goes by sigma / alpha."""

  def case(
    sampler: Ours, algorithm: str, order: int, solver: str = 'midpoint', why: str = ''
  ) -> Case:
    settings = PLAIN | dict(algorithm_type=algorithm, solver_order=order, solver_type=solver)
    return Case(sampler, 'DPMSolverMultistep', settings, 'vp', why, final='keep')

  exact_line = exponential.multistep(exponential.DATA, 2, exponential.exact)
  half = exponential.multistep(exponential.NOISE, 3, as_published)
  data, noise, sde = 'dpmsolver++', 'dpmsolver', 'sde-dpmsolver++'
  whole = functools.partial(Case, theirs='DPMSolverMultistep', kind='vp')
  return [
    case(ours('ddim'), data, 1),
    case(ours('dpmpp_2m'), data, 2),
    case(Ours('dpmpp_2m(), its line integrated exactly', exact_line), data, 2, 'heun'),
    case(ours('dpmpp_3m'), data, 3, why=HALVED),
    case(ours('dpmpp_3m', published=True), data, 3),
    case(ours('ddim'), noise, 1),
    case(ours('dpm_solver', multistep=True), noise, 2),
    case(ours('dpm_solver', order=3, multistep=True), noise, 3, why=HALVED),
    case(Ours('the same with half of it', half), noise, 3),
    case(ours('ddim', eta=1.0), sde, 1),
    case(ours('dpmpp_2m_sde'), sde, 2),
    case(ours('dpmpp_2m_sde', rule='heun'), sde, 2, 'heun'),
    case(
      ours('dpmpp_3m_sde', published=True),
      sde,
      3,
      why='the coefficient of the second difference has - 1/2 for + 1/2',
    ),
    case(Ours('the same with that sign', with_their_sign()), sde, 3),
    whole(ours('dpmpp_2m'), settings={}),
    whole(ours('dpmpp_2m'), settings=KARRAS),
    whole(
      ours('dpmpp_2m'),
      settings=KARRAS,
      told=True,
      why='tells the network times rounded to those of the chain',
    ),
    whole(
      ours('dpmpp_3m', published=True),
      settings=KARRAS | dict(solver_order=3, final_sigmas_type='sigma_min'),
      why='ends with sigma_min twice: 0 / 0, not a number',
    ),
  ]


def singlestep_cases() -> list[Case]:
  """DPMSolverSinglestepScheduler: its calls are at the nodes, so the grid is even in log-SNR."""
  case = functools.partial(Case, theirs='DPMSolverSinglestep', kind='vp', final='keep')
  noise = PLAIN | EVEN | dict(algorithm_type='dpmsolver')
  third = functools.partial(
    case, settings=noise | dict(solver_order=3), calls='triples', num_steps=21
  )
  return [
    case(ours('dpm_solver'), settings=noise, calls='pairs'),
    case(ours('dpmpp_2s'), settings=PLAIN | EVEN, calls='pairs'),
    third(
      ours('dpm_solver', order=3),
      why='goes to 2/3 with a line that weighs h / 2 times its slope, not with its integral',
    ),
    third(Ours('the same with that weight', third_with_halved_line())),
  ]


def other_cases() -> list[Case]:
  """The other multistep schedulers whose x is VP."""
  deis = functools.partial(Case, theirs='DEISMultistep', kind='vp', final='keep')
  unipc = functools.partial(Case, theirs='UniPCMultistep', kind='vp')
  return [
    *(
      deis(
        ours('deis', order=order, variable='log_sigma'),
        settings=dict(lower_order_final=False, solver_order=order),
      )
      for order in (1, 2, 3)
    ),
    *(
      unipc(
        ours('unipc', order=order, variant=variant),
        settings=PLAIN | dict(solver_order=order, solver_type=variant),
        final='keep',
      )
      for order in (1, 2, 3)
      for variant in ('bh1', 'bh2')
    ),
    unipc(ours('unipc'), settings={}),
    unipc(
      ours('unipc', order=3),
      settings=dict(solver_order=3),
      why='lowers the order to 2 in the last step but one',
    ),
  ]


def flow_cases() -> list[Case]:
  """Rectified flow."""
  case = functools.partial(Case, kind='flow', target='flow')
  euler, heun = 'FlowMatchEulerDiscrete', 'FlowMatchHeunDiscrete'
  return [
    case(ours('euler'), euler, {}),
    case(ours('consistency'), euler, dict(stochastic_sampling=True)),
    case(ours('heun'), heun, {}, calls='two', why="Heun's rule for x over t, not x / alpha over n"),
    case(Ours('heun() for x over t', heun_of_x()), heun, {}, calls='two'),
  ]


def learned(denoiser: Denoiser) -> Denoiser:
  """As if the network had learned a variance: any fraction will do."""

  def with_fraction(xt: Array, t: Time) -> Denoised:
    return denoiser(xt, t)._replace(fraction=jax.nn.sigmoid(xt))

  return with_fraction


def brownian_share(q: float) -> float:
  """1 / sqrt(1 + q) for increments of one Brownian path in sigma; q = sigma_m / sigma_t."""
  return 1 / math.sqrt(1 + q)


def exact_share(q: float) -> float:
  """q / sqrt(1 + q²): what has come until the middle fades by e^-h on the way from there."""
  return q / math.hypot(1, q)


def with_missing_history(first: int) -> Sampler:
  """`lms()` begun at times[first] of an EDM path, with weights as if the times before were seen.

  The basis is that of all four nodes from the first step on; what no prediction is known for is
  taken for zero.
  """
  plain = SAMPLERS['lms']()

  def init(schedule: Schedule, times: Array, xT: Array) -> Any:
    state = plain.init(schedule, times, xT)
    # Karras's grid as it would have begun, by its own evenness in sigma^(1/7).
    roots = schedule.sigma(times[0]) ** (1 / 7), schedule.sigma(times[1]) ** (1 / 7)
    before = [roots[0] + (k + 1) * (roots[0] - roots[1]) for k in range(min(first, 3))]
    return state._replace(log_sigmas=7 * jnp.log(jnp.stack(before)))

  def update(schedule: Schedule, denoiser: Denoiser, state: Any, step: Step, noise: Noise) -> Any:
    new = plain.update(schedule, denoiser, state, step, noise)
    # What has not been seen is zero in the state, and `plain` weighs the difference from it.
    seen = (eps_of(schedule, state.x, new.x0, step.t), *state.eps)
    log_sigmas = jnp.append(jnp.log(schedule.sigma(step.t)), state.log_sigmas)
    weights = mean_basis(jnp.exp, log_sigmas, jnp.log(schedule.sigma(step.s)))
    mean = sum(weight * eps for weight, eps in zip(weights, seen, strict=True))
    return new._replace(x=state.x + (schedule.sigma(step.s) - schedule.sigma(step.t)) * mean)

  return plain._replace(init=init, update=update)


def with_their_sign() -> Sampler:
  """`dpmpp_3m_sde(published=True)`, X0 less c2 / (1 - e^-H): - 1/2 for + 1/2 in its coefficient."""

  def average(state: History, x0: Array, h: Array) -> Array:
    H, both = 2 * h, state.h1 + state.h2
    g1 = per_step(h, state.h1) * (x0 - state.x0)
    g2 = per_step(h, state.h2) * (state.x0 - state.older)
    c1, c2 = g1 + per_step(state.h1, both) * (g1 - g2), per_step(h, both) * (g1 - g2)
    mean, square = moments(H)
    return x0 + mean * c1 + (square / 2 + 1 / jnp.expm1(-H)) * c2

  return sde_multistep(average, 1.0, 1.0, order=1)


def third_with_halved_line() -> Sampler:
  """`dpm_solver(3)` but for the way to 2/3, whose line weighs ½ h ∫ e^(h - τ) dτ."""
  form = exponential.NOISE

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    del noise
    here = exponential.evaluate(schedule, denoiser, state.x, step.t)
    s1, s2 = (exponential.on_the_way(schedule, here, step.s, share) for share in (1 / 3, 2 / 3))
    x1 = exponential.advance(form, schedule, here, s1)
    first = form.node(exponential.evaluate(schedule, denoiser, x1, s1))
    x2 = exponential.advance(form, schedule, here, s2, (first,))
    second = form.node(exponential.evaluate(schedule, denoiser, x2, s2))
    xs = exponential.advance(form, schedule, here, step.s, (second,), exponential.exact)
    return State(xs, here.x0)

  return Sampler(start, update, order=3, evaluations=3, between=True)


def heun_of_x() -> Sampler:
  """xs = xt + (s - t) ½ (v_t + v_s), v = eps - x0: Heun's method on rectified flow as it stands."""

  def velocity(schedule: Schedule, denoiser: Denoiser, xt: Array, t: Time) -> tuple[Array, Array]:
    x0 = denoiser(xt, t).x0
    return x0, eps_of(schedule, xt, x0, t) - x0

  def update(
    schedule: Schedule, denoiser: Denoiser, state: State, step: Step, noise: Noise
  ) -> State:
    del noise
    t, s, xt = step.t, step.s, state.x
    x0, v = velocity(schedule, denoiser, xt, t)
    _, there = velocity(schedule, denoiser, place(schedule, x0, x0 + v, s), s)
    return State(xt + (s - t) * (v + there) / 2, x0)

  return Sampler(start, update, order=2, evaluations=2)


def interpolated() -> Schedule:
  """The linear chain in continuous time."""
  return schedules.interpolate(schedules.linear())


def zero_linear(num_steps: int) -> schedules.Discrete:
  """The linear chain with its end at zero SNR."""
  return schedules.zero_terminal_snr(schedules.linear(num_steps))


def shifted_end(shift: float, t: float) -> float:
  """shift t / (1 + (shift - 1) t)."""
  return shift * t / (1 + (shift - 1) * t)


CASES = [
  *chain_cases(),
  *table_cases(),
  *sigma_cases(),
  *edm_cases(),
  *multistep_cases(),
  *singlestep_cases(),
  *other_cases(),
  *flow_cases(),
]

GRIDS = [
  Grid('leading', schedules.linear, 'DDIM', {}),
  Grid('leading', schedules.linear, 'DDIM', {}, num_steps=30),
  Grid('trailing', schedules.linear, 'DDIM', TRAILING),
  Grid('trailing', schedules.linear, 'DDIM', TRAILING, num_steps=30),
  Grid('linspace', schedules.linear, 'DDPM', LINSPACE),
  Grid(
    'linspace',
    interpolated,
    'EulerDiscrete',
    LINSPACE,
    'between the times of the chain sigma is linear in t, ours log-SNR',
    num_steps=40,
  ),
  Grid('linspace', schedules.linear, 'EulerDiscrete', LINSPACE, num_steps=28),
  Grid(
    'linspace',
    schedules.linear,
    'DPMSolverMultistep',
    LINSPACE,
    'rounds the middle, 499.5, to even, counting from 0, ours from 1',
    left_out=1,
  ),
  Grid('linspace', schedules.linear, 'DPMSolverMultistep', LINSPACE, num_steps=27, left_out=1),
  Grid('karras', interpolated, 'EulerDiscrete', KARRAS),
  Grid('karras', interpolated, 'DPMSolverMultistep', KARRAS),
  Grid('log_snr', interpolated, 'EulerDiscrete', EVEN),
  Grid('log_snr', interpolated, 'DPMSolverMultistep', EVEN),
  Grid('karras', schedules.edm, 'EDMEuler', {}),
  Grid('log_snr', schedules.edm, 'EDMEuler', dict(sigma_schedule='exponential')),
  Grid('linspace', schedules.flow, 'FlowMatchEulerDiscrete', {}, by_sigma=True),
  Grid(
    'linspace',
    functools.partial(schedules.flow, shift=3.0),
    'FlowMatchEulerDiscrete',
    dict(shift=3.0),
    'shifts its smallest sigma twice',
    by_sigma=True,
  ),
  Grid(
    'linspace',
    functools.partial(schedules.flow, shift=3.0, t_min=shifted_end(3.0, 1e-3)),
    'FlowMatchEulerDiscrete',
    dict(shift=3.0),
    by_sigma=True,
  ),
]

CHAINS = [
  Chain('linear()', schedules.linear, 'DDPM', {}),
  Chain(
    'scaled_linear()',
    schedules.scaled_linear,
    'DDPM',
    dict(beta_schedule='scaled_linear', beta_start=0.00085, beta_end=0.012),
  ),
  Chain(
    'cosine()',
    schedules.cosine,
    'DDPM',
    dict(beta_schedule='squaredcos_cap_v2'),
    'alpha_bar is in single precision: 1 - alpha_bar_1 keeps three digits',
  ),
  Chain(
    'cosine()',
    schedules.cosine,
    'DDPM',
    dict(beta_schedule='squaredcos_cap_v2'),
    from_betas=True,
  ),
  Chain(
    'sigmoid()',
    schedules.sigmoid,
    'DDPM',
    dict(beta_schedule='sigmoid'),
    "GeoDiff's: beta is a sigmoid of t; ours is Chen's, where alpha_bar is",
  ),
  Chain(
    'zero_terminal_snr(linear())',
    zero_linear,
    'DDIM',
    dict(rescale_betas_zero_snr=True),
    'alpha_bar is in single precision, and the betas are made from it',
  ),
  Chain(
    'zero_terminal_snr(linear())',
    zero_linear,
    'EulerDiscrete',
    dict(rescale_betas_zero_snr=True),
    'alpha_bar_T is 2⁻²⁴, not 0',
  ),
]
