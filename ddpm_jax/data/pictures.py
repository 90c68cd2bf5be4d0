"""Picture files as pixels. Whatever reads one reads it here, so that a file always means the same.

It is turned upright as its EXIF tag says and has 8 bits a channel: of 16 bits the high ones, of
floats in [0, 1] the nearest level. What is transparent shows a background, except in four channels,
whose last is the transparency. Of several frames or pages it is the first. Color profiles are not
applied.
"""

from __future__ import annotations

import contextlib
import os
from typing import IO

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from ddpm_jax.errors import InputError, one_line

File = str | os.PathLike[str] | IO[bytes]

# No others are opened, whatever a file is called: Pillow hands PostScript to another program.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'TIFF', 'WEBP')
SUFFIXES = ('.bmp', '.gif', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}  # Pillow's, by the number of channels

# From a PNG's own levels to 8 bits, by how its pixels are packed: what Pillow does to the pixels,
# but not to the one level or color that stands for transparent.
EIGHT_BITS = {
  'L;2': lambda level: 85 * level,
  'L;4': lambda level: 17 * level,
  'RGB;16B': lambda color: tuple(level >> 8 for level in color),
}
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def read(file: File, channels: int, background: str, where: str) -> Image.Image:
  """The picture in the color mode of so many channels: 1, 3 or 4.

  Args:
    file: a path, or a file opened for reading bytes.
    channels: 1 for gray, 3 for color, 4 for color and opacity.
    background: the color that transparent parts show; see `color`.
    where: the field and the file, as messages begin.

  Raises:
    InputError: it cannot be read, or there are no pictures of so many channels.
  """
  if channels not in MODES:
    raise InputError(f'{where} is a picture, of 1, 3 or 4 channels; the samples have {channels}')
  under = color(background)
  try:
    with opened(file) as stream, Image.open(stream, formats=FORMATS) as image:
      scale_transparent_level(image)
      image = ImageOps.exif_transpose(shallow(image))
      image = image if channels == 4 else laid_on(image, under)
      return image.convert(MODES[channels])
  except UnidentifiedImageError:
    known = ', '.join(FORMATS)
    raise InputError(f'{where} cannot be read as a picture ({known}): mend or replace it') from None
  except Exception as error:  # Pillow's decoders raise whatever the bytes lead them to
    what = f'{where} cannot be read as a picture ({one_line(error)})'
    raise InputError(f'{what}: mend or replace it') from error


def opened(file: File) -> contextlib.AbstractContextManager[IO[bytes]]:
  """A file as a stream, never as a path.

  Given a path, Pillow maps a plain TIFF into memory and takes height for width in one to be turned.
  """
  return open(file, 'rb') if isinstance(file, (str, os.PathLike)) else contextlib.nullcontext(file)


def color(background: str) -> tuple[int, ...]:
  """The red, green and blue of a color's name, 'white', or of its code, '#ffffff'.

  Raises:
    InputError: it is neither.
  """
  try:
    found = ImageColor.getrgb(background)
  except (ValueError, TypeError, AttributeError):
    found = ()
  if len(found) != 3 or max(found) > 255:
    raise InputError(
      f"config.dataset.background: '{background}' is no color; give a name, as white, or a code, "
      'as #ffffff'
    )
  return found


def square(image: Image.Image, size: int | None) -> np.ndarray:
  """The central square, resized (antialiased bicubic): uint8 (size, size, C). None: as it is."""
  if size is not None:
    image = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
  return pixels(image)


def pixels(image: Image.Image) -> np.ndarray:
  """Its pixels, uint8 (H, W, C)."""
  return np.asarray(image).reshape(image.height, image.width, -1)


def read_picture(
  path: str | os.PathLike[str],
  shape: tuple[int, int, int],
  field: str,
  background: str = 'white',
) -> np.ndarray:
  """A file's pixels, uint8, where they have this shape, (H, W, C).

  Raises:
    InputError: it cannot be read or is of another size; the message names the field.
  """
  found = pixels(read(path, shape[-1], background, f'{field}: {path}'))
  if found.shape != shape:
    size = 'x'.join(map(str, found.shape[:2]))
    raise InputError(f'{field}: {path} has {size} pixels; the samples have {shape[0]}x{shape[1]}')
  return found


def scale_transparent_level(image: Image.Image) -> None:
  """Brings the level that stands for transparent to the 8 bits of the pixels; before they load."""
  level, tile = image.info.get('transparency'), getattr(image, 'tile', ())
  packed = tile[0].args if tile else None
  if isinstance(level, (int, tuple)) and isinstance(packed, str) and packed in EIGHT_BITS:
    image.info['transparency'] = EIGHT_BITS[packed](level)


def shallow(image: Image.Image) -> Image.Image:
  """A picture of one deep channel, of 16 bits or of floats, with 8 bits; others as they are."""
  if image.mode == 'I':
    raise ValueError('integers of 32 bits or with a sign, of which none is white')
  if image.mode != 'F' and not image.mode.startswith('I;16'):
    return image
  values, tags = np.asarray(image), getattr(image, 'tag_v2', {})
  level = levels(values, tags.get(BITS_PER_SAMPLE, (16,))[0])
  if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
    level = 255 - level
  opaque = np.where(values == image.info.get('transparency', -1), 0, 255)
  gray, opacity = (Image.fromarray(part.astype(np.uint8)) for part in (level, opaque))
  made = Image.merge('LA', (gray, opacity))
  # Not all of it: only a picture that has just been opened finds its other tags again.
  made.getexif()[Base.Orientation] = image.getexif().get(Base.Orientation, 1)
  return made


def levels(values: np.ndarray, bits: int) -> np.ndarray:
  """0 … 255 of integers of so many bits, or of floats in [0, 1]."""
  if values.dtype.kind != 'f':
    return values >> bits - 8
  if not ((values >= 0) & (values <= 1)).all():
    raise ValueError(f'floats from {values.min():g} to {values.max():g}, not within 0 to 1')
  return np.round(255 * values)


def laid_on(image: Image.Image, background: tuple[int, ...]) -> Image.Image:
  """The picture over one color, where any of it is transparent."""
  if not image.has_transparency_data:
    return image
  image = image.convert('RGBA')
  return Image.alpha_composite(Image.new('RGBA', image.size, background), image)
