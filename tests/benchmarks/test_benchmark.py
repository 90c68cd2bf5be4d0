"""The benchmark: counting operations, comparing times, and the command itself."""

import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

from ddpm_jax.condition import labels
from ddpm_jax.evaluation.pace import block_length
from ddpm_jax.models import UNet, init_network, num_params
from experiments.benchmarks.flops import count_flops
from experiments.benchmarks.timing import alternate, ratios, spread

ROOT = pathlib.Path(__file__).parents[2]

DIMENSIONS = ('NHWC', 'HWIO', 'NHWC')
X = jnp.ones((2, 8, 8, 3))
CONV = 2 * (2 * 8 * 8 * 5) * (3 * 3 * 3)  # images x pixels x outputs, each of 27 products


def conv(x, kernel, stride=1):
  return lax.conv_general_dilated(x, kernel, (stride, stride), 'SAME', dimension_numbers=DIMENSIONS)


@pytest.mark.parametrize('stride', [1, 2])
def test_each_gradient_of_a_convolution_costs_what_it_costs(stride):
  kernel = jnp.ones((3, 3, 3, 5))
  forward = CONV // stride**2

  def loss(x, kernel):
    return jnp.sum(jnp.square(conv(x, kernel, stride)))

  assert count_flops(loss, X, kernel) == forward
  assert count_flops(jax.jit(jax.grad(loss, 1)), X, kernel) == 2 * forward
  assert count_flops(jax.jit(jax.grad(loss, (0, 1))), X, kernel) == 3 * forward


def test_a_network_counts_its_layers():
  net = nn.Sequential([nn.Conv(5, (3, 3)), lambda x: x.reshape(len(x), -1), nn.Dense(7)])
  params = net.init(jax.random.key(0), X)
  assert count_flops(net.apply, params, X) == CONV + 2 * 2 * (8 * 8 * 5) * 7


def test_batches_and_contractions_of_products():
  scores = functools.partial(jnp.einsum, 'bqhd,bkhd->bhqk')
  q, k = jnp.ones((2, 10, 4, 8)), jnp.ones((2, 6, 4, 8))
  assert count_flops(scores, q, k) == 2 * (2 * 4 * 10 * 6) * 8


def power(x):
  return lax.scan(lambda c, _: (c @ x, None), x, length=9)[0]


def either(x):
  return lax.cond(x[0, 0] > 0, lambda x: x, lambda x: x @ x, x)


def unending(x):
  return lax.while_loop(lambda c: c[0, 0] < 9, lambda c: c @ x, x)


def test_control_flow():
  matrix = jnp.ones((4, 4))
  assert count_flops(power, matrix) == 9 * 2 * 4**3
  assert count_flops(either, matrix) == 2 * 4**3
  with pytest.raises(ValueError, match='while'):
    count_flops(unending, matrix)


def test_devices_add_up():
  double = jax.pmap(lambda x: x @ x)
  assert count_flops(double, jnp.ones((8, 4, 4))) == 8 * 2 * 4**3


def test_ratios_are_taken_block_by_block():
  # The machine slows down tenfold on the way; each block knows nothing of it.
  loop = [1.0, 2.0, 4.0, 8.0, 10.0]
  bare = [share * seconds for share, seconds in zip([0.9, 1.0, 0.95, 0.5, 0.97], loop, strict=True)]
  assert ratios(bare, loop) == pytest.approx((0.95, 0.9, 0.97))
  assert spread([3.0, 1.0, 2.0]) == (2.0, 1.5, 2.5)
  with pytest.raises(ValueError, match='zip'):
    ratios(bare, loop[1:])


def test_a_drift_favors_none():
  clock = itertools.count()
  times = alternate(dict.fromkeys('abc', clock.__next__), blocks=4)
  assert {name: sum(values) for name, values in times.items()} == {'a': 22, 'b': 22, 'c': 22}


@pytest.mark.parametrize('step, steps', [(0.1, 15), (0.4, 4), (60.0, 2)])
def test_a_block_is_long_enough(step, steps):
  assert block_length(step) == steps


def test_xla_counts_the_same_where_nothing_is_padded():
  def loss(kernel, x):  # not linear in the kernel, or XLA would drop the forward pass
    h = lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', dimension_numbers=DIMENSIONS)
    return jnp.sum(jnp.square(h.reshape(len(h), -1) @ jnp.ones((6 * 6 * 64, 64))))

  arguments = jnp.ones((3, 3, 32, 64)), jnp.ones((16, 8, 8, 32))
  step = jax.jit(jax.grad(loss))
  cost = step.lower(*arguments).compile().cost_analysis()
  assert count_flops(step, *arguments) == pytest.approx(cost['flops'], rel=0.02)


def test_pytorch_has_as_many_parameters():
  """The U-Net of DDPM for CIFAR-10, and one with classes and attention at its lowest level."""
  pytest.importorskip('torch')
  pytest.importorskip('diffusers')
  from experiments.benchmarks import torch_unet

  original = UNet()
  assert torch_unet.num_params(torch_unet.make_unet(original, (32, 32, 3))) == 35_746_307
  small = UNet(32, (1, 2), 1, (4,), spec=labels(10), out_channels=1)
  params = jax.eval_shape(lambda: init_network(small, jax.random.key(0), (8, 8, 1)))
  assert torch_unet.num_params(torch_unet.make_unet(small, (8, 8, 1))) == num_params(params)


@pytest.mark.slow
def test_the_command(tmp_path):
  """Blocks of an odd length: a checkpoint must still turn up in every other one."""
  out = tmp_path / 'figures.json'
  command = [sys.executable, '-m', 'experiments.benchmark', '--config=configs/digits.py']
  command += ['--config.model.name=tiny:Net', '--config.dataset.batch_size=8']
  command += ['--blocks=2', '--steps=5', '--notorch', f'--out={out}']
  environment = os.environ | {'PYTHONPATH': str(ROOT / 'tests' / 'training')}
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert 'share of the matmul rate' in done.stdout
  assert '--notorch' in done.stdout
  figures = json.loads(out.read_text())
  fastest = figures['matmul_rate'] * figures['step_seconds']['bare'][1]
  assert 0 < figures['flops'] < fastest
  assert figures['step_seconds']['loop'][0] > 0


def test_the_command_for_sampling(tmp_path):
  out = tmp_path / 'figures.json'
  command = [sys.executable, '-m', 'experiments.benchmark', '--config=configs/digits.py']
  command += ['--config.model.name=tiny:Net', '--config.evaluation.batch_size=4', '--sampling']
  command += ['--config.sampler.num_steps=3', '--blocks=2', '--notorch', f'--out={out}']
  environment = os.environ | {'PYTHONPATH': str(ROOT / 'tests' / 'training')}
  done = subprocess.run(
    command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert '3 steps of ddim, guidance 1.5: 6 evaluations' in ' '.join(done.stdout.split())
  figures = json.loads(out.read_text())
  assert set(figures['seconds']) == {'program', 'loop', 'network'}
  assert figures['over_program']['program'] == [1, 1, 1]
