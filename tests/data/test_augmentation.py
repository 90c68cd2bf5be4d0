"""Augmentation: exact where pixels meet pixels, told where it was done, nothing where it wasn't."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.data.augmentation import augment, draw_label, transformed
from ddpm_jax.keys import example_keys

# Mirrors, scale, turn, stretch, shift.
NAMES = {'mirror': 0, 'flip': 1, 'scale': 2, 'cos': 3, 'sin': 4, 'axis': 5, 'across': 6}
NAMES |= {'down': 7, 'right': 8}


def label(**values):
  found = np.zeros(9, np.float32)
  for name, value in values.items():
    found[NAMES[name]] = value
  return jnp.asarray(found)


def image(height=8, width=8, channels=3):
  return jax.random.uniform(jax.random.key(0), (height, width, channels), minval=-1.0)


def blob(row, column, down=1.0, right=1.0, size=65):
  """A Gaussian bump about a point given from the center, with these deviations."""
  axis = np.arange(size) - (size - 1) / 2
  rows, columns = np.meshgrid(axis, axis, indexing='ij')
  density = np.exp(-((rows - row) ** 2) / 2 / down**2 - (columns - column) ** 2 / 2 / right**2)
  return jnp.asarray(density[..., None], jnp.float32)


def moments(x):
  """The center of mass and the deviations along the axes, from the center."""
  axis = np.arange(x.shape[0]) - (x.shape[0] - 1) / 2
  mass = np.asarray(x)[..., 0] / np.sum(x)
  down, right = mass.sum(1), mass.sum(0)
  center = np.array([down @ axis, right @ axis])
  return center, np.sqrt([down @ axis**2 - center[0] ** 2, right @ axis**2 - center[1] ** 2])


@pytest.mark.parametrize('size', [(8, 8), (7, 7), (6, 9)])
def test_a_label_of_zeros_leaves_the_image(size):
  np.testing.assert_array_equal(transformed(image(*size), label()), image(*size))


@pytest.mark.parametrize('size', [(8, 8), (7, 7), (6, 9)])
def test_mirrors_are_exact(size):
  x = image(*size)
  np.testing.assert_array_equal(transformed(x, label(mirror=1)), x[:, ::-1])
  np.testing.assert_array_equal(transformed(x, label(flip=1)), x[::-1])
  np.testing.assert_array_equal(transformed(x, label(mirror=1, flip=1)), x[::-1, ::-1])


@pytest.mark.parametrize('quarters', [1, 2, 3])
def test_quarter_turns_are_numpys(quarters):
  angle = quarters * np.pi / 2
  turned = transformed(image(), label(cos=np.cos(angle) - 1, sin=np.sin(angle)))
  np.testing.assert_allclose(turned, np.rot90(image(), quarters), atol=1e-5)


def test_a_shift_is_a_shift():
  # One eighth of eight pixels; the border is the mirrored continuation.
  x = image()
  np.testing.assert_allclose(transformed(x, label(down=1))[1:], x[:-1], atol=1e-6)
  np.testing.assert_allclose(transformed(x, label(right=-2))[:, :-2], x[:, 2:], atol=1e-6)
  np.testing.assert_allclose(transformed(x, label(down=1))[0], x[1], atol=1e-6)


def test_scale_and_stretch_move_and_widen_a_blob():
  x = blob(3, -2, 4.0, 4.0)
  center, deviations = moments(transformed(x, label(scale=2)))
  np.testing.assert_allclose(center, 2**0.4 * np.array([3, -2]), atol=0.02)
  np.testing.assert_allclose(deviations, 2**0.4 * 4, rtol=0.01)
  center, deviations = moments(transformed(x, label(across=2)))  # along the columns
  np.testing.assert_allclose(center, [3 * 2**-0.4, -2 * 2**0.4], atol=0.02)
  np.testing.assert_allclose(deviations, 4 * np.array([2**-0.4, 2**0.4]), rtol=0.01)


def test_they_are_done_in_the_labels_order():
  # The blob at 5 above: flipped below, scaled, turned by a quarter, then shifted down.
  told = label(flip=1, scale=-2, cos=-1, sin=1, down=0.5)
  center, _ = moments(transformed(blob(-5, 0, 4.0, 4.0), told))
  turned = np.array([[0.0, -1.0], [1.0, 0.0]]) @ [5 * 2**-0.4, 0]
  np.testing.assert_allclose(center, turned + np.array([65 / 16, 0]), atol=0.05)


def test_each_change_is_made_with_the_probability_and_else_told_as_zero():
  draw = jax.jit(jax.vmap(draw_label, (0, None)))
  labels = np.asarray(draw(example_keys(jax.random.key(0), jnp.arange(20_000)), 0.3))
  groups = [[0], [1], [2], [3, 4], [5, 6], [7, 8]]
  done = np.stack([(labels[:, group] != 0).any(1) for group in groups], axis=1)
  wanted = np.array(
    [0.15, 0.15, 0.3, 0.3, 0.3, 0.3]
  )  # a mirror that is drawn is half the time none
  error = np.sqrt(wanted * (1 - wanted) / len(labels))
  assert (np.abs(done.mean(0) - wanted) < 5 * error).all()
  # Each on its own.
  assert np.abs(np.corrcoef(done.T) - np.eye(6)).max() < 5 / np.sqrt(len(labels))
  normals = labels[:, [2, 7, 8]][done[:, [2, 5, 5]].all(1)]
  assert np.abs(normals.std(0) - 1).max() < 5 / np.sqrt(len(normals))


def test_probability_zero_does_nothing():
  changed, told = augment(image(), jax.random.key(3), 0.0)
  np.testing.assert_array_equal(changed, image())
  assert not told.any()
  changed, told = augment(image(), jax.random.key(3), 1.0)
  np.testing.assert_array_equal(changed, transformed(image(), told))
  assert np.abs(changed - image()).max() > 0.1
