"""How data parallelism scales: what a chip computes in a step against what it sends.

A model, not a measurement. Gradients are all-reduced within a slice, whose chips have links of
their own, and then between slices over the network: a reduce-scatter in the slice leaves each chip
its 1/n of the sum, of which the chips of equal place in all slices make the sum over slices, and an
all-gather in the slice spreads it.
"""

from __future__ import annotations

from typing import NamedTuple


class Chip(NamedTuple):
  """What a chip can do, as its maker says.

  Attributes:
    flops: multiplications and additions a second, in bfloat16.
    link: bytes a second that it sends to others of its slice, over all its links at once.
    slice: chips in a slice at most (of GPUs, in a machine).
    network: bytes a second that it sends to other slices.
    source: where this is said.
  """

  flops: float
  link: float
  slice: int
  network: float
  source: str


CHIPS = {
  'TPU v5e': Chip(197e12, 200e9, 256, 3.125e9, 'https://cloud.google.com/tpu/docs/v5e'),
  'TPU v5p': Chip(459e12, 600e9, 6144, 6.25e9, 'https://cloud.google.com/tpu/docs/v5p'),
  'H200': Chip(989e12, 450e9, 8, 50e9, 'https://www.nvidia.com/en-us/data-center/h200/'),
}


def all_reduce_seconds(chip: Chip, count: int, size: float) -> float:
  """Seconds in which `count` chips have the sum of what each has `size` bytes of.

  With n chips in a slice and k slices, 2 (n - 1) / n · size / link + 2 (k - 1) / k · size / n /
  network; latencies are left out.

  Raises:
    ValueError: the chips do not fill whole slices.
  """
  n = min(count, chip.slice)
  if count % n:
    raise ValueError(f'{count} chips are not whole slices of {n}')
  k = count // n
  return 2 * (n - 1) / n * size / chip.link + 2 * (k - 1) / k * size / n / chip.network


SHARE = 0.4  # of a chip's rate: what a train step of convolutions is assumed to reach


def appetite(chip: Chip, flops: float, share: float = SHARE) -> float:
  """Images a second that a chip takes, at `flops` for each."""
  return share * chip.flops / flops


class Efficiency(NamedTuple):
  """Of a step: images per second over those of as many chips that send nothing.

  Attributes:
    apart: where sending waits for computing: compute / (compute + send).
    hidden: where it is hidden behind computing as far as that lasts: compute / max(compute, send).
  """

  apart: float
  hidden: float


def efficiency(
  chip: Chip, count: int, *, parameters: int, flops: float, batch: int, share: float
) -> Efficiency:
  """Of a train step over `count` chips.

  Args:
    chip: a row of CHIPS.
    count: of chips.
    parameters: whose gradients are sent, 4 bytes each.
    flops: of a step for one image.
    batch: images on each chip.
    share: of the chip's rate that the step reaches alone.
  """
  compute = batch / appetite(chip, flops, share)
  send = all_reduce_seconds(chip, count, 4.0 * parameters)
  return Efficiency(compute / (compute + send), compute / max(compute, send))
