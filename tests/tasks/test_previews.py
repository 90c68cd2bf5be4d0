"""What previews of a run show."""

import numpy as np
from tiny import tiny

from ddpm_jax import data
from ddpm_jax.tasks.building import build
from ddpm_jax.tasks.table import make_task
from ddpm_jax.training.task import load_frozen


def test_a_run_on_other_channels_is_previewed_by_the_classes_it_has():
  image = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 5), np.uint8)
  split = data.Arrays(image, {'label': np.resize([0, 2], 30)})
  spec = data.labeled(3, split, split)
  task = make_task(build(tiny(), data.Dataset('mine', split, split, (8, 8, 5), 256, spec)))
  params, frozen = task.init(None)[0], load_frozen(task)
  kernel = params['network']['Dense_0']['kernel']
  before = task.preview(params, frozen)
  assert before.shape == (40, 8, 8, 5) and len(np.unique(before)) > 10

  def with_row(label):
    """The preview where the first layer's row of a class, after the pixels', is another."""
    params['network']['Dense_0']['kernel'] = kernel.at[8 * 8 * 5 + label].add(5.0)
    return task.preview(params, frozen)

  np.testing.assert_array_equal(with_row(1), before)
  assert (with_row(2) != before).mean() > 0.1


def test_a_preview_shows_samples_and_the_same_each_time():
  task = make_task(build(tiny()))
  params, frozen = task.init(None)[0], load_frozen(task)
  one = task.preview(params, frozen)
  assert one.shape == (40, 8, 8, 1) and len(np.unique(one)) > 10
  np.testing.assert_array_equal(one, task.preview(params, frozen))
