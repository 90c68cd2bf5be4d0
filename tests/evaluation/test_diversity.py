import numpy as np
import pytest

from ddpm_jax.evaluation.available import Unavailable
from ddpm_jax.evaluation.diversity import nearest, nearest_ratio, spread, spread_ratio


@pytest.fixture(scope='module')
def real(digits):
  train = digits.train[:]
  return train['x'] / 8 - 1, train['cond']['label']


def test_other_real_images_are_as_varied_and_as_near(real):
  images, labels = real
  a, b, held = slice(0, None, 3), slice(1, None, 3), slice(2, None, 3)
  assert spread_ratio(images[a], labels[a], images[b], labels[b]) == pytest.approx(1, abs=0.05)
  assert nearest_ratio(images[a], images[b], images[held]) == pytest.approx(1, abs=0.05)


def test_collapse_shows(real):
  images, labels = real
  means = np.stack([images[labels == label].mean(axis=0) for label in range(10)])[labels]
  halfway = (images + means) / 2
  assert spread_ratio(means, labels, images, labels) == pytest.approx(0, abs=1e-6)
  assert spread_ratio(halfway, labels, images, labels) == pytest.approx(0.5)
  assert nearest_ratio(means[::2], images[::2], images[1::2]) > 1.25


def test_spread_is_within_classes():
  """Variances 2 and 8 of one pixel; the distance between the classes does not count."""
  images = np.array([[0.0], [2.0], [100.0], [104.0], [7.0]])
  assert spread(images, np.array([0, 0, 1, 1, 2])) == pytest.approx(np.sqrt((2 + 8) / 2))


def test_one_image_of_a_class_has_no_spread():
  images = np.array([[0.0], [2.0], [5.0]])
  assert spread(images, np.array([0, 0, 1])) == pytest.approx(2**0.5), 'that of the first class'
  assert np.isnan(spread(images, np.arange(3)))


def test_ratios_to_nothing_are_left_out_with_the_reason():
  images, labels = np.array([[0.0], [2.0], [5.0]]), np.array([0, 0, 1])
  with pytest.raises(Unavailable, match='no class has two samples'):
    spread_ratio(images, np.arange(3), images, labels)
  for real in (images[[0, 0]], images[:1]):
    with pytest.raises(Unavailable, match='no class has two training images that differ'):
      spread_ratio(images, labels, real, labels[: len(real)])
  with pytest.raises(Unavailable, match='no held-out image'):
    nearest_ratio(images, images, images[:0])
  with pytest.raises(Unavailable, match='no training image'):
    nearest_ratio(images, images[:0], images)
  with pytest.raises(Unavailable, match='among the training images'):
    nearest_ratio(images, images, images[:1])


def test_nearest_by_hand():
  among = np.array([[0.0, 0.0], [3.0, 4.0]])
  assert nearest(np.array([[0.0, 1.0], [3.0, 6.0]]), among) == pytest.approx((1 + 2) / 2)
