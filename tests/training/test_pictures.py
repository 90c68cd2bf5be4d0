import json

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.training.pictures import (
  grid,
  loss_curve,
  write_gif,
  write_png,
)


def test_a_grid_holds_each_image_in_its_row_and_column():
  images = np.arange(1, 6, dtype=np.uint8).reshape(5, 1, 1, 1) * np.ones((1, 64, 64, 3), np.uint8)
  picture = grid(images, columns=3)
  assert picture.shape == (2 * 65, 3 * 65, 3) and picture.dtype == np.uint8
  assert picture[::65, ::65, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
  assert not picture[64].any() and not picture[:, 64].any()


def test_small_images_are_enlarged_pixel_by_pixel():
  image = np.arange(1, 65, dtype=np.uint8).reshape(1, 8, 8, 1)
  picture = grid(image, columns=1)
  assert picture.shape == (72, 72, 1)
  np.testing.assert_array_equal(picture[::8, ::8][:8, :8], image[0])
  assert (picture[:8, :8] == image[0, 0, 0]).all()


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_a_written_picture_reads_back(tmp_path, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, channels)).astype(np.uint8)
  write_png(tmp_path / 'samples' / 'a.png', pixels)
  read = np.asarray(Image.open(tmp_path / 'samples' / 'a.png'))
  np.testing.assert_array_equal(read.reshape(pixels.shape), pixels)


@pytest.mark.parametrize('channels', [2, 5])
def test_channels_that_are_no_color_are_drawn_in_gray_side_by_side(tmp_path, channels):
  pixels = np.random.default_rng(0).integers(0, 256, (6, 9, channels)).astype(np.uint8)
  write_png(tmp_path / 'a.png', pixels)
  read = np.asarray(Image.open(tmp_path / 'a.png'))
  np.testing.assert_array_equal(read, np.concatenate(np.moveaxis(pixels, -1, 0), axis=1))
  images = np.stack([pixels[:6, :6], 0 * pixels[:6, :6]]).repeat(11, axis=1).repeat(11, axis=2)
  framed = grid(images, columns=2)
  assert framed.shape == (67, 2 * (66 * channels + 1), 1)
  np.testing.assert_array_equal(framed[:66, 66:132, 0], images[0, ..., 1])


def test_a_gif_has_its_frames_and_rests_at_the_last(tmp_path):
  frames = [np.full((6, 9, 1), value, np.uint8) for value in (0, 100, 200)]
  write_gif(tmp_path / 'a.gif', frames, seconds=3.0)
  with Image.open(tmp_path / 'a.gif') as movie:
    shown = []
    for number in range(movie.n_frames):
      movie.seek(number)
      shown.append((np.asarray(movie.convert('L')).mean(), movie.info['duration']))
  assert shown == [(0, 1000), (100, 1000), (200, 2000)]


@pytest.mark.parametrize('count', [2, 51, 101, 251, 1001])
def test_a_gif_takes_as_long_with_any_number_of_frames(tmp_path, count):
  frames = [np.full((4, 4, 1), 255 * number // (count - 1), np.uint8) for number in range(count)]
  write_gif(tmp_path / 'a.gif', frames, seconds=4.0)
  with Image.open(tmp_path / 'a.gif') as movie:
    delays, shades = [], []
    for number in range(movie.n_frames):
      movie.seek(number)
      delays.append(movie.info['duration'])
      shades.append(np.asarray(movie.convert('L')).mean())
  *delays, last = delays
  assert min(delays) >= 20, 'less is taken for a tenth of a second'
  assert last == 2000 and sum(delays) / 1000 == pytest.approx(4, rel=0.1 if count > 2 else 1)
  assert (shades[0], shades[-1]) == (0, 255) and (np.diff(shades) > 0).all()


def test_the_loss_curve_takes_lines_with_and_without_a_loss(tmp_path):
  rows = [{'step': n, 'loss': 1 / n} for n in range(1, 9)] + [{'step': 8, 'heldout/eps_mse': 0.2}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  picture = np.asarray(Image.open(loss_curve(tmp_path)).convert('L'))
  assert (picture < 128).any() and (picture == 255).mean() > 0.5
