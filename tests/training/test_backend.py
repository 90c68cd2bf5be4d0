import os
import subprocess
import sys

# XLA reads its flags when the backend starts, so nothing before `prepare` may have started it;
# were the flag misspelt, the last line would abort.
PROGRAM = """
import jax
from jax._src import xla_bridge
from ddpm_jax.config import base_config
from ddpm_jax.tasks.train import train
from ddpm_jax.training import backend
base_config()
assert not xla_bridge.backends_are_initialized()
backend.prepare(deterministic=True)
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: x + 1)(1)
"""


def cache_of(**environment):
  inherited = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM],
    env={**inherited, 'JAX_PLATFORMS': 'cpu', 'PYTHONPATH': os.pathsep.join(sys.path)}
    | environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout.strip()


def test_compiled_programs_are_kept_in_the_users_cache_and_flags_come_in_time(tmp_path):
  assert cache_of(XDG_CACHE_HOME=str(tmp_path)) == str(tmp_path / 'ddpm_jax' / 'jit')


def test_the_cache_may_be_elsewhere(tmp_path):
  assert cache_of(JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)
