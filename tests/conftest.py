"""Settings of the whole suite: eight simulated devices, strict ranks, one cache, Ctrl-C heard."""

import os
import pathlib
import re
import signal

CACHE = pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache')

# By the environment, so that the programs a test starts share them.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE / 'ddpm_jax' / 'tests'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # it asks Google by gRPC

# What a script starts in the background ignores Ctrl-C, and so would the programs a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

import jax  # noqa: E402
import pytest  # noqa: E402
from precision import precision  # noqa: E402

# Not by the environment: the programs a test starts choose their own number of devices.
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module', autouse=True)
def forget():
  """Drops a module's programs after it: what they hold makes later garbage collections slow."""
  yield
  jax.clear_caches()


@pytest.fixture(scope='session')
def store():
  """A bucket on this machine: one for all tests, since clients keep its address."""
  from bucket import Bucket

  with Bucket() as served:
    os.environ.update(served.environment)
    yield served


@pytest.fixture
def bucket(store, request):
  """The name of a folder of its own in the store, as gs://bucket/test_a_run."""
  yield f'gs://bucket/{re.sub(r"[^a-z0-9]+", "_", request.node.name)}'
  store.refuse = lambda method, name: None


@pytest.fixture
def x64():
  """Double precision for the length of a test."""
  with precision(double=True):
    yield
