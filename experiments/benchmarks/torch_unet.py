"""The same network, training step and sampler in PyTorch, by Hugging Face's diffusers.

Neither is a dependency: this module is imported where both are installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from torch.optim import swa_utils

from ddpm_jax import models
from ddpm_jax.codec import scale
from ddpm_jax.condition import classes_in
from ddpm_jax.models.layers import num_classes_in, num_groups
from ddpm_jax.tasks.drawing import route_of
from ddpm_jax.tasks.experiment import Experiment

Run = Callable[[int], float]
TORCH_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


def difference(experiment: Experiment) -> str | None:
  """Why the network has no counterpart in UNet2DModel, in words; None where it has one."""
  module = experiment.module
  if not isinstance(module, models.MODELS['unet']):
    return f'UNet2DModel is no {experiment.config.model.name}'
  if module.num_heads != 1 or module.learn_variance:
    return 'UNet2DModel is compared with one head and no learned variance'
  if experiment.config.optimizer.name != 'adam':
    return f'the step is compared with adam, not {experiment.config.optimizer.name}'
  return None


def make_unet(module: Any, image_shape: tuple[int, int, int]) -> UNet2DModel:
  """UNet2DModel with the layout of google/ddpm-cifar10-32, in the sizes of our U-Net."""
  levels = range(len(module.multipliers))
  attend = [image_shape[0] >> level in module.attention_resolutions for level in levels]
  classes = num_classes_in(module.spec)
  return UNet2DModel(
    sample_size=image_shape[:2],
    in_channels=image_shape[-1],
    out_channels=image_shape[-1],
    block_out_channels=[module.channels * multiplier for multiplier in module.multipliers],
    layers_per_block=module.num_res_blocks,
    down_block_types=['AttnDownBlock2D' if here else 'DownBlock2D' for here in attend],
    up_block_types=['AttnUpBlock2D' if here else 'UpBlock2D' for here in reversed(attend)],
    downsample_padding=0,
    flip_sin_to_cos=False,
    freq_shift=1,
    norm_eps=1e-6,
    norm_num_groups=num_groups(module.channels),
    act_fn='silu',
    attention_head_dim=None,
    dropout=module.dropout,
    num_class_embeds=None if classes is None else classes + 1,
  )


def num_params(unet: UNet2DModel) -> int:
  """How many numbers the parameters are."""
  return sum(parameter.numel() for parameter in unet.parameters())


def variants() -> dict[str, dict[str, bool]]:
  """Ways to run the step that are worth a try here."""
  if torch.cuda.is_available():
    return {'channels-last, torch.compile': dict(channels_last=True, compiled=True)}
  return {
    'eager, channels-last': dict(channels_last=True, compiled=False),
    'eager, contiguous': dict(channels_last=False, compiled=False),
  }


def fastest(make: Callable[..., Run], units: int) -> tuple[str, Run]:
  """The variant that takes the least time for so many units of work, and its run.

  Args:
    make: (channels_last=, compiled=) -> run(units) -> seconds.
    units: steps, or samplings.
  """
  runs = {name: make(**how) for name, how in variants().items()}
  if len(runs) == 1:
    return next(iter(runs.items()))
  best = min(runs, key=lambda name: runs[name](1) and runs[name](units))
  return best, runs[best]


def make_run(
  experiment: Experiment, batch: dict[str, Any], *, channels_last: bool, compiled: bool
) -> Run:
  """Makes run(steps) -> seconds: draw t and noise, mean squared error, clip, Adam, average.

  Args:
    experiment: what is trained; its network predicts the noise here, whatever it does there.
    batch: stays on the device.
    channels_last: the layout of images in memory.
    compiled: by torch.compile.
  """
  config, module = experiment.config, experiment.module
  device, layout, unet = placed(experiment, channels_last)
  unet.train()
  params = list(unet.parameters())
  averages = [parameter.detach().clone() for parameter in params]
  average = swa_utils.get_ema_multi_avg_fn(config.ema.decay)
  own = {'b1': 0.9, 'b2': 0.999, 'eps': 1e-8} | config.optimizer.arguments
  adam = torch.optim.Adam(
    params, config.optimizer.learning_rate, (own['b1'], own['b2']), own['eps'], fused=True
  )
  network = torch.compile(unet) if compiled else unet
  draw = make_draw(experiment, batch, device, layout)
  dtype = TORCH_DTYPES[module.dtype]

  def step() -> None:
    xt, time_label, label, eps = draw()
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
      output = network(xt, time_label, label).sample
    torch.nn.functional.mse_loss(output.float(), eps).backward()
    if config.optimizer.clip_norm is not None:
      torch.nn.utils.clip_grad_norm_(params, config.optimizer.clip_norm)
    adam.step()
    adam.zero_grad()
    with torch.no_grad():
      average(averages, params, 0)

  def run(steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
      step()
    if device == 'cuda':
      torch.cuda.synchronize()
    return time.perf_counter() - start

  return run


def placed(experiment: Experiment, channels_last: bool) -> tuple[str, Any, Any]:
  """The device, the layout of images in memory, and the network there."""
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  torch.set_float32_matmul_precision('high')  # as JAX multiplies by default
  layout = torch.channels_last if channels_last else torch.contiguous_format
  unet: Any = make_unet(experiment.module, experiment.dataset.image_shape)
  return device, layout, unet.to(device, memory_format=layout)


def make_draw(
  experiment: Experiment, batch: dict[str, Any], device: str, layout: torch.memory_format
) -> Callable[[], tuple[torch.Tensor, ...]]:
  """Makes draw() -> (xt, time label, class label or None, eps)."""
  schedule: Any = experiment.schedule
  module = experiment.module
  alpha, sigma, labels = (
    torch.tensor(np.asarray(jax.vmap(function)(route_of(experiment).times))).to(device)
    for function in (schedule.alpha, schedule.sigma, schedule.network_time)
  )
  x0 = scale(jnp.asarray(batch['x']), experiment.dataset.num_levels)
  x0 = torch.tensor(np.asarray(x0)).permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
  null = num_classes_in(module.spec)
  true_label = torch.tensor(
    np.asarray(0 if null is None else classes_in(module.spec, batch['cond']))
  ).to(device)

  def draw() -> tuple[torch.Tensor, ...]:
    t = torch.randint(len(alpha), (len(x0),), device=device)
    eps = torch.randn_like(x0)
    xt = alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * eps
    if null is None:
      return xt, labels[t], None, eps
    dropped = torch.rand(len(x0), device=device) < module.label_dropout
    return xt, labels[t], torch.where(dropped, null, true_label), eps

  return draw


def sampling_difference(experiment: Experiment) -> str | None:
  """Why DDIMPipeline does not draw such samples, in words; None where it does."""
  if num_classes_in(experiment.module.spec) is not None:
    return 'DDIMPipeline draws without classes: add --config.dataset.conditional=False'
  if experiment.config.sampler.name != 'ddim':
    return 'DDIMPipeline draws by ddim: add --config.sampler.name=ddim'
  return difference(experiment)


def make_pipeline(experiment: Experiment, *, channels_last: bool, compiled: bool) -> Run:
  """Makes run(times) -> seconds for so many batches of samples by diffusers' DDIMPipeline.

  Args:
    experiment: whose network, batch and number of steps are taken.
    channels_last: the layout of images in memory.
    compiled: by torch.compile.
  """
  device, _, unet = placed(experiment, channels_last)
  unet.eval()
  if compiled:
    unet.forward = torch.compile(unet.forward)
  pipeline = DDIMPipeline(unet, DDIMScheduler(1000))
  pipeline.set_progress_bar_config(disable=True)
  dtype = TORCH_DTYPES[experiment.module.dtype]
  size, steps = experiment.config.evaluation.batch_size, route_of(experiment).times.shape[0]

  def run(times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
      with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        pipeline(size, num_inference_steps=steps, output_type='np')
    return time.perf_counter() - start  # its pictures are on the host by then

  return run
