import numpy as np

from ddpm_jax.evaluation.gallery import by_class


def test_rows_are_classes():
  labels = np.random.default_rng(0).permutation(np.repeat(np.arange(12), 15))
  images = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
  grid = by_class(images, labels).reshape(10, 10)
  np.testing.assert_array_equal(grid, np.repeat(np.arange(10), 10).reshape(10, 10))


def test_without_labels_or_with_few_samples_images_come_in_order():
  images = np.arange(30, dtype=np.uint8).reshape(30, 1, 1, 1)
  np.testing.assert_array_equal(by_class(images, None), images)
  np.testing.assert_array_equal(by_class(images, np.arange(30) % 10), images)
