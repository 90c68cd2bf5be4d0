"""ddpm_jax: a functional diffusion-model research codebase in JAX and Flax."""

import importlib
from typing import Any

from ddpm_jax.diffusion import *  # noqa: F403
from ddpm_jax.diffusion import __all__ as _diffusion
from ddpm_jax.losses import *  # noqa: F403
from ddpm_jax.losses import __all__ as _losses
from ddpm_jax.samplers import *  # noqa: F403
from ddpm_jax.samplers import __all__ as _samplers
from ddpm_jax.theory import *  # noqa: F403
from ddpm_jax.theory import __all__ as _theory

__version__ = '0.1.0'

# Orbax and grain come with the first, diffrax with the second: a reader of the mathematics need not
# wait for them.
LATE = {'load_run': 'ddpm_jax.tasks.run', 'log_likelihood': 'ddpm_jax.diffusion.likelihood'}

__all__ = [*_diffusion, *_losses, *_samplers, *_theory, 'load_run', 'log_likelihood']  # noqa: F405


def __getattr__(name: str) -> Any:
  if name in LATE:
    return getattr(importlib.import_module(LATE[name]), name)
  raise AttributeError(f"module 'ddpm_jax' has no attribute '{name}'")
