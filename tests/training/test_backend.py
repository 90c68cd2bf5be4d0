import os
import re
import subprocess
import sys

import pytest
from pod import HERE, Pod

# XLA reads its flags when the backend starts, so nothing before `prepare` may have started it;
# were the flag misspelt, the last line would abort.
PROGRAM = """
import jax
from jax._src import xla_bridge
from ddpm_jax.config import base_config
from ddpm_jax.training import backend, train
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


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['pmap', 'hsdp'])
def test_a_second_start_of_host_0_reads_the_step_that_the_first_compiled(
  tmp_path, monkeypatch, mode
):
  """JAX itself tells of each program whether it was there.

  Of two hosts, though on CPUs host 1 finds nothing: the key of a program holds the topology, which
  on CPUs is another one in every process.
  """
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(tmp_path / 'jit'))
  monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  monkeypatch.setenv('JAX_DEBUG_LOG_MODULES', 'jax._src.compiler')
  flags = [f'--config={HERE / "tiny_config.py"}', f'--config.parallel.mode={mode}']
  flags += ['--config.parallel.slices=2'] if mode == 'hsdp' else []
  for start in ('first', 'second'):
    with Pod(tmp_path / start, *flags, devices=(1, 1)) as pod:
      assert pod.wait() == [0, 0], pod.outputs()
  step = {'pmap': 'jit__fun', 'hsdp': 'jit_kept'}[mode]
  text = pod.outputs()[0]
  assert step in re.findall("cache hit for '(.*?)'", text), text[-3000:]
  assert step not in re.findall("CACHE MISS for '(.*?)'", text)
