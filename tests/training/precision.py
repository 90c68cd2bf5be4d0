"""Double and single precision for the length of a block."""

import contextlib

import jax


@contextlib.contextmanager
def precision(double):
  """Double or single precision; in double, programs are compiled in half the time.

  Where rounding is not the question, neither is how fast a program runs once. In single precision
  programs are compiled as they are for users.
  """
  before = jax.config.read('jax_disable_most_optimizations')
  jax.config.update('jax_disable_most_optimizations', double)
  try:
    with jax.enable_x64(double):
      yield
  finally:
    jax.config.update('jax_disable_most_optimizations', before)
