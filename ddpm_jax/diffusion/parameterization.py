"""What a network predicts: one row (a, b) of target = a x0 + b eps for each parameterization.

With xt = alpha x0 + sigma eps this is a linear system in (x0, eps), solved by

  x0  = (b xt - sigma out) / (alpha b - sigma a)
  eps = (alpha out - a xt) / (alpha b - sigma a).

Where alpha b = sigma a the output says nothing of x0: for eps and score at zero terminal SNR.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jax import Array

from ddpm_jax.diffusion.process import Denoised
from ddpm_jax.diffusion.schedules import Schedule, Time, check_range

Row = Callable[[Array, Array], tuple[Array | float, Array | float]]
Scale = Callable[[Array, Array], Array | float]
NoiseLabel = Callable[[Schedule, Time], Array]
Denoiser = Callable[[Array, Time], Denoised]
Network = Callable[..., Array]

Label = Literal['time', 'log_snr', 'edm']  # the keys of NOISE_LABELS
Sigma = Annotated[float, Interval(ge=1e-6, le=1e6)]


def time_label(schedule: Schedule, t: Time) -> Array:
  """The index in the original chain."""
  return jnp.asarray(schedule.network_time(t), jnp.float32)


def log_snr_label(schedule: Schedule, t: Time) -> Array:
  """The log-SNR, clipped to ±20."""
  return jnp.clip(jnp.asarray(schedule.log_snr(t), jnp.float32), -20.0, 20.0)


def edm_label(schedule: Schedule, t: Time) -> Array:
  """-log_snr / 8, log_snr clipped to ±20: with alpha = 1, ¼ log sigma.

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1, c_noise.
  """
  return -log_snr_label(schedule, t) / 8


NOISE_LABELS: dict[str, NoiseLabel] = {
  'time': time_label,
  'log_snr': log_snr_label,
  'edm': edm_label,
}


def named_label(name: str) -> NoiseLabel:
  """An entry of NOISE_LABELS; ValueError where there is none of that name."""
  if name not in NOISE_LABELS:
    raise ValueError(f"noise_label: '{name}' is not one of {', '.join(NOISE_LABELS)}")
  return NOISE_LABELS[name]


def unscaled(alpha: Array, sigma: Array) -> float:
  """The network sees xt itself: 1."""
  del alpha, sigma
  return 1.0


@dataclasses.dataclass(frozen=True)
class UnitScale:
  """1 / sqrt(alpha² sigma_data² + sigma²): what the network sees has variance one."""

  sigma_data: float

  def __call__(self, alpha: Array, sigma: Array) -> Array:
    """The factor of xt."""
    return 1 / jnp.hypot(self.sigma_data * alpha, sigma)


class VarianceHead(NamedTuple):
  """How the second half of an output's channels is a learned variance.

  Attributes:
    read: (head, alpha, sigma) -> the field of `Denoised` that it is, by name.
    variance: the key of VARIANCES that makes use of it.
  """

  read: Callable[[Array, Array, Array], dict[str, Array]]
  variance: str


def read_fraction(head: Array, alpha: Array, sigma: Array) -> dict[str, Array]:
  """fraction = sigmoid(head): between the logs of the smallest variance and the largest.

  Reference: Nichol and Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 15, where nothing
  holds the fraction in [0, 1].
  """
  del alpha, sigma
  return {'fraction': jax.nn.sigmoid(head)}


def read_raw(head: Array, alpha: Array, sigma: Array) -> dict[str, Array]:
  """Var[x0 | xt] = exp(head) sigma² / (alpha² + sigma²): head 0 is right for standard normal data.

  The variance of any step back follows from it, by the law of total variance.
  """
  alone = jnp.square(sigma / jnp.hypot(alpha, sigma))
  return {'x0_variance': jnp.exp(head) * alone}


VARIANCE_HEADS = {
  'range': VarianceHead(read_fraction, 'fraction'),
  'raw': VarianceHead(read_raw, 'optimal'),
}


@dataclasses.dataclass(frozen=True)
class Parameterization:
  """How a network's output becomes a denoiser, and what the network sees.

  Attributes:
    row: (alpha, sigma) -> (a, b), of target = a x0 + b eps.
    noise_label: (schedule, t) -> the float32 scalar that the network embeds.
    input_scale: (alpha, sigma) -> the factor of xt that the network sees.
    head: how a learned variance is read, where there is one.
  """

  row: Row
  noise_label: NoiseLabel
  input_scale: Scale = unscaled
  head: VarianceHead = VARIANCE_HEADS['range']


def x0_row(alpha: Array, sigma: Array) -> tuple[float, float]:
  """The data itself: (1, 0)."""
  del alpha, sigma
  return 1.0, 0.0


def eps_row(alpha: Array, sigma: Array) -> tuple[float, float]:
  """The noise: (0, 1)."""
  del alpha, sigma
  return 0.0, 1.0


def v_row(alpha: Array, sigma: Array) -> tuple[Array, Array]:
  """The velocity along the circle of a VP path: (-sigma, alpha) / sqrt(alpha² + sigma²)."""
  norm = jnp.hypot(alpha, sigma)
  return -sigma / norm, alpha / norm


def score_row(alpha: Array, sigma: Array) -> tuple[float, Array]:
  """The gradient of log q(xt | x0): (0, -1 / sigma)."""
  del alpha
  return 0.0, -1 / sigma


def flow_row(alpha: Array, sigma: Array) -> tuple[float, float]:
  """From data to noise in a straight line, whatever the path: (-1, 1)."""
  del alpha, sigma
  return -1.0, 1.0


@dataclasses.dataclass(frozen=True)
class EDMRow:
  """(n, -sigma_data²) / (sigma_data sqrt(n² + sigma_data²)), with n = sigma / alpha.

  Here both sides are multiplied by alpha, which may be zero.
  """

  sigma_data: float

  def __call__(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(a, b)."""
    scale = self.sigma_data * jnp.hypot(sigma, self.sigma_data * alpha)
    return sigma / scale, -(self.sigma_data**2) * alpha / scale


@dataclasses.dataclass(frozen=True)
class ConsistencyRow:
  """The row whose reading x0 = c_skip xt / alpha + c_out out is exactly xt / alpha at sigma_min.

  With n = sigma / alpha and m = n - sigma_min, c_skip = sigma_data² / (m² + sigma_data²) and
  c_out = sigma_data m / sqrt(n² + sigma_data²). There c_out is zero and b infinite: the reading is
  finite where the row is not.
  """

  sigma_data: float
  sigma_min: float

  def reading(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(c_skip / alpha, c_out), finite at zero terminal SNR too."""
    excess = sigma - self.sigma_min * alpha
    skip = self.sigma_data**2 * alpha / (excess**2 + (self.sigma_data * alpha) ** 2)
    return skip, self.sigma_data * excess / jnp.hypot(sigma, self.sigma_data * alpha)

  def __call__(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """(a, b): out = (x0 - c_skip (alpha x0 + sigma eps) / alpha) / c_out."""
    skip, out = self.reading(alpha, sigma)
    excess = sigma - self.sigma_min * alpha
    square = excess**2 + (self.sigma_data * alpha) ** 2
    # (1 - c_skip) / c_out, with what is zero at sigma_min in both of them left out.
    rest = excess * jnp.hypot(sigma, self.sigma_data * alpha) / (self.sigma_data * square)
    return rest, -skip * sigma / out


def x0(noise_label: Label = 'time') -> Parameterization:
  """The network predicts the data."""
  return Parameterization(x0_row, named_label(noise_label))


def eps(noise_label: Label = 'time') -> Parameterization:
  """The network predicts the noise. Ho et al. 2020, https://arxiv.org/abs/2006.11239, eq. 11."""
  return Parameterization(eps_row, named_label(noise_label))


def v(noise_label: Label = 'time') -> Parameterization:
  """The network predicts v. Salimans and Ho 2022, https://arxiv.org/abs/2202.00512, appendix D."""
  return Parameterization(v_row, named_label(noise_label))


def score(noise_label: Label = 'time') -> Parameterization:
  """The network predicts -eps / sigma. Vincent 2011, https://doi.org/10.1162/NECO_a_00142."""
  return Parameterization(score_row, named_label(noise_label))


def flow(noise_label: Label = 'time') -> Parameterization:
  """The network predicts eps - x0. Liu et al. 2022, https://arxiv.org/abs/2209.03003, eq. 1."""
  return Parameterization(flow_row, named_label(noise_label))


def edm(noise_label: Label = 'edm', sigma_data: Sigma = 0.5) -> Parameterization:
  """Input and target have variance one, for data of standard deviation sigma_data.

  Reference: Karras et al. 2022, https://arxiv.org/abs/2206.00364, equation 7 and table 1.

  Raises:
    ValueError: unless sigma_data > 0.
  """
  check_positive('sigma_data', sigma_data)
  return Parameterization(EDMRow(sigma_data), named_label(noise_label), UnitScale(sigma_data))


def consistency(
  noise_label: Label = 'edm', sigma_data: Sigma = 0.5, sigma_min: Sigma = 0.002
) -> Parameterization:
  """As `edm`, but x0 is exactly xt / alpha where sigma / alpha = sigma_min.

  There the target itself is infinite: regress on it at higher noise alone.
  Reference: Song et al. 2023, https://arxiv.org/abs/2303.01469, appendix C.

  Raises:
    ValueError: unless sigma_data > 0 and sigma_min > 0.
  """
  check_positive('sigma_data', sigma_data)
  check_positive('sigma_min', sigma_min)
  row = ConsistencyRow(sigma_data, sigma_min)
  return Parameterization(row, named_label(noise_label), UnitScale(sigma_data))


def check_positive(name: str, value: float) -> None:
  """Refuses what is not above zero, and infinity."""
  if not 0 < value < math.inf:
    raise ValueError(f'{name}: {value} is not a positive number')


PARAMETERIZATIONS: dict[str, Callable[..., Parameterization]] = {
  'x0': x0,
  'eps': eps,
  'v': v,
  'score': score,
  'flow': flow,
  'edm': edm,
  'consistency': consistency,
}


def to_x0(value: Array, xt: Array, alpha: Array, sigma: Array, row: Row) -> Array:
  """x0 = (b xt - sigma value) / (alpha b - sigma a); a value that is x0 is read directly."""
  if row is x0_row:
    return value
  if isinstance(row, ConsistencyRow):
    skip, out = row.reading(alpha, sigma)
    return skip * xt + out * value
  a, b = row(alpha, sigma)
  return (b * xt - sigma * value) / (alpha * b - sigma * a)


def eps_slope(alpha: Array, sigma: Array, row: Row) -> Array | float:
  """d eps / d value = alpha / (alpha b - sigma a): how an error of the value becomes one of eps."""
  if row is eps_row:
    return 1.0
  a, b = row(alpha, sigma)
  return alpha / (alpha * b - sigma * a)


def convert(
  value: Array,
  xt: Array,
  alpha: Array,
  sigma: Array,
  *,
  source: str | Parameterization,
  target: str | Parameterization,
) -> Array:
  """Reads `value`, a prediction of `source` at xt, as one of `target`.

  With (a, b) the source's row and (c, d) the target's, c x0 + d eps is
  ((alpha d - sigma c) value + (b c - a d) xt) / (alpha b - sigma a).

  Args:
    value: the prediction.
    xt: what it was made from, like it.
    alpha: the factor of the data in xt.
    sigma: the factor of the noise.
    source: a key of PARAMETERIZATIONS, with its defaults, or one that is made: edm(sigma_data=1.0).
    target: likewise.
  """
  row, other = row_of(source), row_of(target)
  if row == other:
    return value
  if isinstance(row, ConsistencyRow):  # finite where its b is not
    value, row = to_x0(value, xt, alpha, sigma, row), x0_row
  (a, b), (c, d) = row(alpha, sigma), other(alpha, sigma)
  return ((alpha * d - sigma * c) * value + (b * c - a * d) * xt) / (alpha * b - sigma * a)


def row_of(choice: str | Parameterization) -> Row:
  """The row of a parameterization or of the entry of PARAMETERIZATIONS of that name.

  Raises:
    ValueError: where there is none of that name.
  """
  if isinstance(choice, Parameterization):
    return choice.row
  if choice not in PARAMETERIZATIONS:
    raise ValueError(f"parameterization '{choice}' is not one of {', '.join(PARAMETERIZATIONS)}")
  return PARAMETERIZATIONS[choice]().row


def check_invertible(parameterization: Parameterization, schedule: Schedule) -> None:
  """Refuses what cannot be read at t_max: eps and score at zero terminal SNR.

  A schedule that is traced is let through, and its x0 there is not finite.

  Raises:
    ValueError: where alpha b = sigma a.
  """
  with jax.ensure_compile_time_eval():
    alpha, sigma = schedule.alpha(schedule.t_max), schedule.sigma(schedule.t_max)
    a, b = parameterization.row(alpha, sigma)
    unreadable = alpha * b == sigma * a
  if not isinstance(unreadable, jax.core.Tracer) and unreadable:
    raise ValueError(
      f'at zero terminal SNR (t = {schedule.t_max}, alpha = {alpha}) this output says nothing of '
      'x0: let the network predict v, x0, flow or edm instead of eps or the score'
    )


def network_input(
  parameterization: Parameterization, schedule: Schedule, xt: Array, t: Array
) -> tuple[Array, Array]:
  """What a network sees of the batch xt (B, …) at times t (B,): (input_scale xt, noise labels)."""

  def example(x: Array, t: Array) -> tuple[Array, Array]:
    scale = parameterization.input_scale(schedule.alpha(t), schedule.sigma(t))
    return scale * x, parameterization.noise_label(schedule, t)

  return jax.vmap(example)(xt, t)


def make_denoiser(
  network: Network,
  params: Any,
  schedule: Schedule,
  parameterization: Parameterization,
  cond: dict[str, Array],
) -> Denoiser:
  """A trained network as a denoiser: (xt (B, …), t scalar or (B,)) -> Denoised.

  Concrete times that are out of range raise, as the schedule does; traced ones are clamped.
  An output with twice xt's channels (the last axis) carries a learned variance in its second half;
  see VARIANCE_HEADS.

  Args:
    network: (params, x, noise_label, cond) -> output; x (B, …), noise_label (B,).
    params: the network's.
    schedule: the path that it was trained on, or a respacing of it.
    parameterization: what it predicts.
    cond: what it is conditioned on, {'label': (B,)} or {}.

  Raises:
    ValueError: for eps or the score on a path that ends at zero SNR; see `check_invertible`.
  """
  check_invertible(parameterization, schedule)

  def denoiser(xt: Array, t: Time) -> Denoised:
    check_range(schedule, t)
    times = jnp.broadcast_to(t, xt.shape[:1])
    x, label = network_input(parameterization, schedule, xt, times)
    output = network(params, x, label, cond)
    return read_batch(parameterization, schedule, output, xt, times)

  return denoiser


def read_batch(
  parameterization: Parameterization, schedule: Schedule, output: Array, xt: Array, t: Array
) -> Denoised:
  """What a network's output says of x0, for a batch (B, …) at times t (B,)."""
  value, head = split_variance(output, xt)

  def read(value: Array, head: Array | None, x: Array, t: Time) -> Denoised:
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    learned = {} if head is None else parameterization.head.read(head, alpha, sigma)
    return Denoised(to_x0(value, x, alpha, sigma, parameterization.row), **learned)

  return jax.vmap(read)(value, head, xt, t)


def split_variance(output: Array, xt: Array) -> tuple[Array, Array | None]:
  """A network's output as its prediction and its variance head, both like xt; None for no head."""
  if output.shape == xt.shape:
    return output, None
  if output.shape != (*xt.shape[:-1], 2 * xt.shape[-1]):
    raise ValueError(
      f'the network makes {output.shape} of {xt.shape}: neither that shape nor twice its channels'
    )
  value, head = jnp.split(output, 2, axis=-1)
  return value, head
