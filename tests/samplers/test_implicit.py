import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.diffusion import PARAMETERIZATIONS, make_denoiser
from ddpm_jax.samplers import ancestral, clip_x0, ddim, sample, time_grid
from tests.readouts import READOUTS, seen

ETAS = [0.0, 0.3, 1.0]


def slopes(errors):
  """Orders of convergence between runs whose strides halve."""
  return np.log2(np.array(errors[:-1]) / errors[1:])


def run(world, sampler, times, xT, keys, denoiser=None, **options):
  return sample(sampler, denoiser or world.denoiser, world.schedule, times, xT, keys, **options)


def test_deterministic_ddim_is_the_probability_flow_to_first_order(make_world, make_keys):
  world = make_world(num_steps=641)
  xT, errors = world.begin(641, 5), []
  for strides in (40, 80, 160, 320, 640):
    times = time_grid('linspace', world.schedule, strides + 1)
    x = run(world, ddim(), times, xT, make_keys(5), final='keep')
    errors.append(np.abs(x - world.flow(xT, 641, 1)).max())
  assert errors[-1] < 0.01
  assert (slopes(errors) > 0.9).all()
  assert (slopes(errors) < 1.3).all()


def test_deterministic_ddim_takes_a_point_mass_anywhere_in_one_step(make_world):
  world = make_world(variance=0.0)
  for t, s in [(50, 1), (30, 10), (10, 30)]:
    x = world.begin(t, 1)[0]
    affine = world.affine(ddim(), t, s)
    np.testing.assert_allclose(affine.gain * x + affine.offset, world.flow(x, t, s), rtol=1e-10)
    assert not affine.scale.any()


@pytest.mark.parametrize('eta', ETAS)
def test_every_eta_keeps_the_marginals_of_a_point_mass(make_world, eta):
  world = make_world(variance=0.0)
  for t, s in [(50, 49), (50, 20), (31, 7), (3, 1)]:
    affine, (mean, variance) = world.affine(ddim(eta), t, s), world.marginal(t)
    arrived = affine.gain * mean + affine.offset, affine.gain**2 * variance + affine.scale**2
    np.testing.assert_allclose(arrived, world.marginal(s), atol=1e-12)


def test_eta_multiplies_the_fresh_noise(make_world):
  world = make_world()
  scales = [world.affine(ddim(eta), 31, 7).scale for eta in (0.25, 0.5, 1.0)]
  np.testing.assert_allclose(scales, np.outer([0.25, 0.5, 1.0], scales[-1]), rtol=1e-12)
  assert (scales[-1] > 0).all()


@pytest.mark.parametrize(('num_steps', 'clipped'), [(50, False), (7, True)])
def test_eta_one_is_ancestral_sampling_with_the_small_variance(
  make_world, make_keys, num_steps, clipped
):
  # Clipping makes the denoiser nonlinear; the two agree since eps is derived from the clipped x0.
  world = make_world(variance=4.0)
  denoiser = clip_x0(world.denoiser) if clipped else world.denoiser
  times = time_grid('linspace', world.schedule, num_steps)
  xT = world.begin(50, 6)
  paths = [
    run(world, sampler, times, xT, make_keys(6), denoiser, return_path=True)[1]
    for sampler in (ddim(1.0), ancestral('small'))
  ]
  np.testing.assert_allclose(*paths, atol=1e-10)
  assert (np.abs(paths[0][-1]) == 1).any() == clipped


@pytest.mark.parametrize('eta', [0.3, 1.0])
def test_the_whole_run_follows_the_recursion_of_its_steps(make_world, make_keys, eta):
  world, count = make_world(), 20_000
  times = time_grid('leading', world.schedule, 6)
  mean, variance = world.marginal(times[0])
  x = run(world, ddim(eta), times, world.begin(times[0], count), make_keys(count), final='keep')
  for t, s in itertools.pairwise(times):
    affine = world.affine(ddim(eta), int(t), int(s))
    mean = affine.gain * mean + affine.offset
    variance = affine.gain**2 * variance + affine.scale**2
  z = (np.asarray(x) - mean) / np.sqrt(variance)
  assert np.abs(z.mean(axis=0)).max() < 5 / np.sqrt(count)
  assert np.abs(z.T @ z / count - np.eye(3)).max() < 5 * np.sqrt(2 / count)


def test_running_backwards_inverts_to_first_order(make_world, make_keys):
  world = make_world(num_steps=641)
  x1, errors = world.begin(1, 5), []
  for strides in (80, 160, 320, 640):
    times = time_grid('linspace', world.schedule, strides + 1)
    noised = run(world, ddim(), times[::-1], x1, make_keys(5), final='keep')
    back = run(world, ddim(), times, noised, make_keys(5), final='keep')
    errors.append(np.abs(back - x1).max())
  assert errors[-1] < 0.01
  assert (slopes(errors) > 0.9).all()


@pytest.mark.parametrize('sampler', [ddim(), ancestral('small')], ids=['ddim', 'ancestral'])
def test_what_the_network_predicts_does_not_change_the_trajectory(make_world, make_keys, sampler):
  world = make_world()

  def network_for(name):
    def network(params, x, noise_label, cond):
      t = noise_label.astype(int)
      alpha, sigma = world.schedule.alphas[t][:, None], world.schedule.sigmas[t][:, None]
      xt = x / seen(name, alpha, sigma)
      return READOUTS[name](xt, world.denoiser(xt, t).x0, alpha, sigma)

    return network

  times, xT = time_grid('trailing', world.schedule, 10), world.begin(50, 4)
  expected = run(world, sampler, times, xT, make_keys(4), return_path=True)[1]
  for name in PARAMETERIZATIONS:
    parameterization = PARAMETERIZATIONS[name](noise_label='time')
    denoiser = make_denoiser(network_for(name), None, world.schedule, parameterization, {})
    path = run(world, sampler, times, xT, make_keys(4), denoiser, return_path=True)[1]
    np.testing.assert_allclose(path, expected, atol=1e-10)


def test_after_clipping_eps_is_what_makes_xt_of_the_clipped_x0(make_world):
  # x0 = 1 everywhere is then a point mass at 1, whose flow is a straight line of quantiles.
  far, point = make_world(mean=(30.0, 30.0, 30.0)), make_world(0.0, (1.0, 1.0, 1.0))
  xt = far.begin(40, 5)
  times = jnp.array([40, 10])
  x = sample(ddim(), clip_x0(far.denoiser), far.schedule, times, xt, None, final='keep')
  np.testing.assert_allclose(x, point.flow(xt, 40, 10), rtol=1e-10)


@pytest.mark.parametrize('eta', [-0.1, 1.5, float('nan')])
def test_eta_outside_its_range_is_refused_by_its_field(eta):
  with pytest.raises(ValueError, match=rf'^eta: {eta} is outside \[0, 1\]$'):
    ddim(eta)
