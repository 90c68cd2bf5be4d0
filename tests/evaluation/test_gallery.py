import dataclasses

import numpy as np
import pytest

from ddpm_jax.evaluation.gallery import by_class, pairs


def test_rows_are_classes():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 15))
  images = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
  grid = by_class(images, labels).reshape(10, 10)
  np.testing.assert_array_equal(grid, np.repeat(np.arange(10), 10).reshape(10, 10))


def test_without_labels_or_with_few_samples_images_come_in_order():
  images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
  np.testing.assert_array_equal(by_class(images, None), images)
  np.testing.assert_array_equal(by_class(images, np.arange(30) % 10), images)


def test_a_reconstruction_is_below_its_image(as_run, experiment, digits):
  """By a task whose reconstruction is the negative of what it is given."""
  run = as_run(experiment, {})
  batch = digits.test[:6]

  def negative(params, frozen, x, cond):
    return 1 - x / 8.0

  still = experiment.codec._replace(encode=lambda params, x, keys: x / 8.0 - 1)
  run = dataclasses.replace(
    run,
    experiment=dataclasses.replace(experiment, codec=still),
    use=run.use._replace(reconstruct=negative),
  )
  rows = pairs(run, batch, 3).reshape(2, 2, 3, 8, 8, 1).astype(int)
  truth = batch['x'].reshape(2, 3, 8, 8, 1) * (255 / 16)
  assert np.abs(rows[:, 0] - truth).max() <= 0.5 + 1e-4
  assert np.abs(rows[:, 1] - (255 - truth)).max() <= 0.5 + 1e-4


def test_a_task_without_a_code_has_no_pairs(as_run, experiment, digits):
  with pytest.raises(ValueError, match='reconstructs nothing'):
    pairs(as_run(experiment, {}), digits.test[:3], 3)
