"""The flow over the angle, against the closed form that Gaussian data has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import schedules
from ddpm_jax.diffusion.angle import angle_at, angular_flow, length, time_at
from ddpm_jax.diffusion.schedules import CONTINUOUS
from ddpm_jax.theory.oracle import GaussianData

PATHS = {**CONTINUOUS, 'interpolated': lambda: schedules.interpolate(schedules.cosine(8))}
DATA = GaussianData(jnp.array([0.4, -0.7]), jnp.array([0.05, 2.0]))


def curve(angle):
  """The way of the quantile one deviation above the mean: z = cos m + sqrt(cos² v + sin²)."""
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return cos * DATA.mean + jnp.sqrt(cos**2 * DATA.variance + sin**2)


@pytest.mark.parametrize('name', PATHS)
def test_it_moves_gaussian_data_along_its_quantiles(name, x64):
  path = PATHS[name]()
  field = jax.jit(angular_flow(path, DATA.denoiser(path)))
  for t in (path.t_min, 0.5 * (path.t_min + path.t_max), path.t_max):
    angle = angle_at(path, t)
    z, rate = jax.jvp(curve, (angle,), (1.0,))
    np.testing.assert_allclose(field(z[None], angle)[0], rate, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize('name', PATHS)
def test_angles_and_times_are_inverse_and_length_is_the_radius(name, x64):
  path = PATHS[name]()
  for t in (path.t_min, 0.3 * path.t_min + 0.7 * path.t_max, path.t_max):
    angle = angle_at(path, t)
    assert time_at(path, angle) == pytest.approx(float(t), rel=1e-9)
    here = path.alpha(t), path.sigma(t)
    polar = length(path, t) * jnp.array([jnp.cos(angle), jnp.sin(angle)])
    np.testing.assert_allclose(polar, here, atol=1e-15 * length(path, t))


@pytest.mark.parametrize('beyond', [0.0, 1e-7])
def test_a_right_angle_is_zero_snr_where_a_path_has_it(beyond):
  # Beyond it by a rounding, the cosine is negative.
  path = schedules.flow()
  assert time_at(path, jnp.pi / 2 + beyond) == 1
  assert time_at(schedules.vp(), jnp.pi / 2 + beyond) == 1
