"""Times out of range, given to whatever reads times: they raise where concrete and else clamp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, make_denoiser, q_sample, schedules
from ddpm_jax.diffusion.bound import density, stratified_bound, variational_bound
from ddpm_jax.diffusion.score import denoiser_from_score
from ddpm_jax.samplers import ddim, sample
from ddpm_jax.theory.oracle import GaussianData

CHAIN = schedules.linear(1000)
ORACLE = GaussianData(jnp.zeros(3), jnp.ones(3))
X = jnp.ones((2, 3))


def trained(schedule):
  """A network that says how it is told the time."""

  def network(params, x, noise_label, cond):
    return params * x * noise_label[:, None]

  return make_denoiser(network, 0.01, schedule, PARAMETERIZATIONS['v'](), {})


def of_score(schedule):
  return denoiser_from_score(schedule, lambda xt, t: ORACLE.score(schedule, xt, t))


DENOISERS = {'network': trained, 'oracle': ORACLE.denoiser, 'score': of_score}
OUTSIDE = {
  'above': 1001,
  'far': 5000,
  'below': -1,
  'numpy': np.int64(-1),
  'on the device': jnp.array(1001),
  'one of a batch': np.array([5, 1001]),
  'the first of a batch': jnp.array([-1, 1000]),
}


@pytest.mark.parametrize('name', DENOISERS)
@pytest.mark.parametrize('t', OUTSIDE.values(), ids=OUTSIDE)
def test_a_denoiser_refuses_a_time_outside_its_chain(name, t):
  with pytest.raises(IndexError, match=r't = -?\d+ is outside the chain 0 … 1000'):
    DENOISERS[name](CHAIN)(X, t)


@pytest.mark.parametrize('name', DENOISERS)
def test_traced_times_are_clamped_and_never_wrap(name):
  denoiser = DENOISERS[name](CHAIN)
  found = jax.jit(lambda t: denoiser(X, t).x0)(jnp.array([5000, -3]))
  np.testing.assert_allclose(found[0], denoiser(X, 1000).x0[0], rtol=1e-5)
  np.testing.assert_allclose(found[1], jax.jit(lambda t: denoiser(X, t).x0)(0)[1], rtol=1e-5)


@pytest.mark.parametrize('name', DENOISERS)
@pytest.mark.parametrize('path', ['vp', 'edm', 'flow', 'learned'])
@pytest.mark.parametrize('t', [-0.1, np.nan, 81.0, np.array([0.5, -0.1])])
def test_a_denoiser_refuses_a_time_outside_its_path(name, path, t):
  schedule = schedules.SCHEDULES[path]()
  with pytest.raises(ValueError, match=r't = (-0\.1|nan|81\.0) is outside \[0'):
    DENOISERS[name](schedule)(X, t)


def test_a_time_of_another_kind_is_refused():
  with pytest.raises(TypeError, match='a discrete chain takes integer times, not float'):
    trained(CHAIN)(X, 5.0)
  with pytest.raises(TypeError, match='a continuous schedule takes float times, not int'):
    trained(schedules.vp())(X, np.array([1, 1]))


@pytest.mark.parametrize('t', [1001, -1, np.int64(5000), jnp.array(-3)])
def test_mathematics_of_one_time_refuses_it_too(t):
  with pytest.raises(IndexError, match='is outside the chain 0 … 1000'):
    q_sample(CHAIN, X, t, X)


@pytest.mark.parametrize('times', [[1001, 5, 1], [1000, 5, -1]])
def test_a_sampler_and_a_bound_refuse_times_outside(times):
  times, key, denoiser = jnp.array(times), jax.random.key(0), ORACLE.denoiser(CHAIN)
  options = dict(times=times, variance='small', decoder=density)
  with pytest.raises(IndexError, match='is outside the chain'):
    sample(ddim(), denoiser, CHAIN, times, X, jax.random.split(key, 2))
  with pytest.raises(IndexError, match='is outside the chain'):
    variational_bound(CHAIN, denoiser, X, key, **options)
  with pytest.raises(IndexError, match='is outside the chain'):
    stratified_bound(CHAIN, denoiser, X, key, strata=2, **options)
