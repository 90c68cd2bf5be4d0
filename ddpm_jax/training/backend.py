"""What must be set before JAX starts its backend; the mains call it first."""

from __future__ import annotations

import os
import pathlib

import jax

DETERMINISTIC = '--xla_gpu_deterministic_ops=true'


def prepare(deterministic: bool = False) -> None:
  """Turns on the cache of compiled programs and, where asked, bit-identical repeats on a GPU.

  The cache lies in ~/.cache/ddpm_jax/jit, or where $JAX_COMPILATION_CACHE_DIR says.
  """
  if not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
    home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    jax.config.update('jax_compilation_cache_dir', str(pathlib.Path(home, 'ddpm_jax', 'jit')))
  if deterministic:
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {DETERMINISTIC}'.strip()
