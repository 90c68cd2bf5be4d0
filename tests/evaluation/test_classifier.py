import numpy as np
import pytest

from ddpm_jax.evaluation.classifier import Classifier, share


def test_share_and_its_binomial_error():
  """The error covers the truth about as often as it says: 68 % within one."""
  rng = np.random.default_rng(0)
  repeats = [share(rng.random(400) < 0.9) for _ in range(400)]
  within = np.mean([abs(one.mean - 0.9) <= one.error for one in repeats])
  assert within == pytest.approx(0.68, abs=0.1)
  assert share(np.ones(98, bool)) == pytest.approx((1, np.sqrt(0.99 * 0.01 / 98), 98))


def test_real_digits_are_read_and_wrong_labels_are_not(digits):
  train, test = digits.train[:], digits.test[:]
  classifier = Classifier(train['x'] / 8 - 1, train['cond']['label'])
  images = test['x'] / 8 - 1
  right = classifier.accuracy(images, test['cond']['label'])
  assert right.mean > 0.97
  assert right.count == len(test['cond']['label'])
  wrong = classifier.accuracy(images, (test['cond']['label'] + 1) % 10)
  assert right.mean + wrong.mean <= 1
