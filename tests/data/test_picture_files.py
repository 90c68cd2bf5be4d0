"""What a picture file means, by files written here byte by byte or by Pillow's own writers."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddpm_jax.data import load
from ddpm_jax.data.pictures import color, pixels, read, read_picture
from ddpm_jax.errors import InputError

WIDE = np.array([[0, 255, 256, 65535], [1000, 30000, 40000, 257]], np.uint16)


def chunk(tag, content):
  return (
    struct.pack('>I', len(content)) + tag + content + struct.pack('>I', zlib.crc32(tag + content))
  )


def png(depth, kind, rows, *chunks, width=None):
  """A PNG of so many bits, of PNG's color type `kind`; rows (H, …) of bytes."""
  rows = np.asarray(rows, getattr(rows, 'dtype', np.uint8))
  width = width or rows.shape[1]
  head = struct.pack('>IIBBBBB', width, len(rows), depth, kind, 0, 0, 0)
  content = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
  parts = (chunk(b'IHDR', head), *chunks, chunk(b'IDAT', content), chunk(b'IEND', b''))
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def clear(*levels):
  """The chunk of the level or color that stands for transparent."""
  return chunk(b'tRNS', struct.pack(f'>{len(levels)}H', *levels))


def written(image, kind, **options):
  file = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
  return file.getvalue()


def decoded(content, channels=1, background='white'):
  return pixels(read(io.BytesIO(content), channels, background, 'it'))


def twelve_bits(levels):
  """A TIFF of 12 bits, two levels in three bytes."""
  pairs = levels.reshape(-1, 2).astype(int)
  packed = np.stack(
    [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255]
  )
  content = packed.T.astype(np.uint8).tobytes()
  height, width = levels.shape
  tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
  tags[279] = len(content)
  entries = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in sorted(tags.items()))
  at = 8 + len(content)
  return (
    struct.pack('<2sHI', b'II', 42, at)
    + content
    + struct.pack('<H', len(tags))
    + entries
    + b'\0' * 4
  )


# Depth.


def test_of_16_bits_the_high_ones_are_kept_in_gray_and_in_color():
  big = WIDE.astype('>u2')
  rgb = np.stack([big, big[:, ::-1], big], axis=-1).astype('>u2')
  opaque = np.full_like(big, 65535)
  want = WIDE >> 8
  for content in (
    png(16, 0, big),
    png(16, 4, np.stack([big, opaque], axis=-1).astype('>u2'), width=4),
    written(WIDE, 'tiff'),
    written(Image.fromarray(big), 'tiff'),
  ):
    np.testing.assert_array_equal(decoded(content)[..., 0], want)
  found = decoded(png(16, 2, rgb), channels=3)
  np.testing.assert_array_equal(found, np.stack([want, want[:, ::-1], want], axis=-1))


def test_of_12_bits_the_high_ones_are_kept():
  levels = np.array([[0, 16, 255, 4095], [4080, 2048, 100, 1]])
  np.testing.assert_array_equal(decoded(twelve_bits(levels))[..., 0], levels >> 4)


def test_fewer_bits_reach_from_black_to_white():
  assert decoded(png(1, 0, [[0b01010000]], width=4)).ravel().tolist() == [0, 255, 0, 255]
  assert decoded(png(2, 0, [[0b00011011]], width=4)).ravel().tolist() == [0, 85, 170, 255]
  assert decoded(png(4, 0, [[0x02, 0x9F]], width=4)).ravel().tolist() == [0, 34, 153, 255]


def test_floats_from_0_to_1_are_from_black_to_white():
  values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
  found = decoded(written(values, 'tiff'))
  np.testing.assert_array_equal(found.ravel(), np.arange(256))


@pytest.mark.parametrize('values', [[0.0, 1.5], [-0.1, 1.0], [0.0, np.nan], [0.0, 255.0]])
def test_floats_of_another_range_are_refused(values):
  with pytest.raises(
    InputError, match=r'^it cannot be read as a picture \(floats from .* 0 to 1\)'
  ):
    decoded(written(np.array([values], np.float32), 'tiff'))


def test_integers_without_a_known_white_are_refused():
  with pytest.raises(InputError, match=r'\(integers of 32 bits .* none is white\)'):
    decoded(written(WIDE.astype(np.int32), 'tiff'))


def test_where_zero_is_white_it_is_white():
  inverted = {'tiffinfo': {262: 0}}
  np.testing.assert_array_equal(
    decoded(written(WIDE, 'tiff', **inverted))[..., 0], 255 - (WIDE >> 8)
  )
  found = decoded(written(np.array([[0.0, 1.0]], np.float32), 'tiff', **inverted))
  assert found.ravel().tolist() == [255, 0]


# Transparency.

NOISE = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
CLEAR = np.dstack([NOISE, np.zeros((4, 4), np.uint8)])
KEYED = np.full((2, 4, 3), 30000, '>u2')
TRANSPARENT = {
  'RGBA': written(CLEAR, 'png'),
  'RGBA of WebP': written(CLEAR, 'webp', lossless=True, exact=True),
  'RGBA of TIFF': written(CLEAR, 'tiff'),
  'LA': written(Image.fromarray(CLEAR).convert('LA'), 'png'),
  'GIF': written(CLEAR, 'gif'),
  'a palette': written(Image.fromarray(NOISE).quantize(4), 'png', transparency=bytes(4)),
  'a color': png(8, 2, np.full((2, 4, 3), 7, np.uint8), clear(7, 7, 7)),
  'a color of 16 bits': png(16, 2, KEYED, clear(30000, 30000, 30000), width=4),
  'a level': png(8, 0, np.full((2, 4), 7, np.uint8), clear(7)),
  'a level of 16 bits': png(16, 0, KEYED[..., 0], clear(30000)),
  'a level of 4 bits': png(4, 0, [[0x77, 0x77]], clear(7), width=4),
  'a level of 2 bits': png(2, 0, [[0b01010101]], clear(1), width=4),
  'white of 1 bit': png(1, 0, [[0b11110000]], clear(1), width=4),
  'black of 1 bit': png(1, 0, [[0b00000000]], clear(0), width=4),
}


@pytest.mark.parametrize('background', ['white', '#102030'])
@pytest.mark.parametrize('content', TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_shows_the_background_alone(content, background):
  found = decoded(content, 3, background)
  assert np.unique(found.reshape(-1, 3), axis=0).tolist() == [list(color(background))]


def test_what_is_half_transparent_mixes_by_its_opacity():
  rgba = np.random.default_rng(1).integers(0, 256, (8, 8, 4), dtype=np.uint8)
  rgb, opacity = rgba[..., :3].astype(float), rgba[..., 3:] / 255
  for background in ('white', '#204060'):
    found = decoded(written(rgba, 'png'), 3, background)
    want = opacity * rgb + (1 - opacity) * np.array(color(background))
    assert abs(found - want).max() < 1
  np.testing.assert_array_equal(decoded(written(rgba, 'png'), 4), rgba)


@pytest.mark.parametrize('background', ['wihte', '#ffffff80', '', 'rgb(300,0,0)', None, 5])
def test_a_background_that_is_no_color_is_refused(background):
  with pytest.raises(InputError, match=r'^config\.dataset\.background: .* is no color'):
    color(background)


# What else a file may be.

UPRIGHT = {
  1: lambda x: x,
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: np.transpose,
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x, 2).T,
  8: np.rot90,
}


@pytest.mark.parametrize('orientation', UPRIGHT)
def test_it_is_turned_upright(orientation, tmp_path):
  exif = Image.Exif()
  exif[274] = orientation
  turned = np.arange(15, dtype=np.uint8).reshape(3, 5)
  for content, high in (
    (written(turned, 'png', exif=exif), turned),
    (written(turned, 'tiff', tiffinfo={274: orientation}), turned),
    (written(256 * turned.astype(np.uint16), 'tiff', tiffinfo={274: orientation}), turned),
    (written(256 * turned.astype(np.uint16), 'png', exif=exif), turned),
    (written(turned / np.float32(255), 'tiff', tiffinfo={274: orientation}), turned),
  ):
    path = tmp_path / 'picture'
    path.write_bytes(content)
    of_path = pixels(read(path, 1, 'white', 'it'))
    for found in (decoded(content), of_path):
      np.testing.assert_array_equal(found[..., 0], UPRIGHT[orientation](high))


@pytest.mark.parametrize('kind', ['gif', 'webp', 'png', 'tiff'])
def test_of_several_frames_it_is_the_first(kind):
  frames = [Image.new('L', (4, 2), level) for level in (40, 200)]
  options = {'lossless': True} if kind == 'webp' else {}
  content = written(frames[0], kind, save_all=True, append_images=frames[1:], **options)
  assert np.unique(decoded(content)).tolist() == [40]


def test_inks_are_subtracted_from_white():
  for inks, want in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0), ((255, 255, 255, 0), 0)):
    content = written(Image.new('CMYK', (8, 8), inks), 'tiff')
    assert np.unique(decoded(content, 3)).tolist() == [want]


def test_gray_and_color_are_read_in_each_others_place():
  gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
  np.testing.assert_array_equal(decoded(written(gray, 'png'), 3), np.dstack([gray] * 3))
  np.testing.assert_array_equal(decoded(written(np.dstack([gray] * 3), 'png'))[..., 0], gray)


# What is no picture.


def head(side):
  return chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))


SIGNATURE, END = b'\x89PNG\r\n\x1a\n', chunk(b'IEND', b'')
DAMAGED = {
  'empty': b'',
  'text': b'no picture',
  'a broken chunk': SIGNATURE
  + head(8)
  + chunk(b'IDAT', zlib.compress(b'\0' * 200)[:4])
  + b'\0' * 12,
  'too little': SIGNATURE + head(8) + chunk(b'IDAT', zlib.compress(b'\0' * 20)) + END,
  'a bomb': SIGNATURE + head(20_000) + chunk(b'IDAT', zlib.compress(b'\0' * 100)) + END,
  'cut': written(NOISE, 'jpeg')[:-60],
  'a program': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n',
}


@pytest.fixture
def places(tmp_path, write_tfds):
  """name -> (content -> reads the file with it), for every place that reads pictures."""

  def of_folder(content):
    (tmp_path / 'folder').mkdir()
    for name in ('a.png', 'b.png'):
      (tmp_path / 'folder' / name).write_bytes(content)
    return load('folder', path=str(tmp_path / 'folder'), image_size=4).train[:]['x'][0]

  def of_flag(content):
    (tmp_path / 'a.png').write_bytes(content)
    return read_picture(str(tmp_path / 'a.png'), (4, 4, 3), '--init_image')

  def of_tfds(content):
    data_dir = str(write_tfds('tiny', (4, 4, 3), {'train': ([content] * 2, [0] * 2)}))
    return load('tiny', data_dir=data_dir).train[:]['x'][0]

  return {'folder': of_folder, 'flag': of_flag, 'tfds': of_tfds}


@pytest.mark.parametrize('content', DAMAGED.values(), ids=DAMAGED)
def test_what_is_damaged_is_refused_in_the_same_line_everywhere(places, content):
  lines = set()
  for make in places.values():
    with pytest.raises(InputError) as error:
      make(content)
    field, what = str(error.value).split(' cannot be read as a picture (')
    assert field.startswith(('config.dataset.', '--init_image: '))
    lines.add(what)
  assert len(lines) == 1 and '\n' not in lines.pop()


def test_the_same_file_is_the_same_pixels_everywhere(places):
  exif = Image.Exif()
  exif[274] = 6
  rgba = np.random.default_rng(2).integers(0, 256, (4, 4, 4), dtype=np.uint8)
  found = [make(written(rgba, 'png', exif=exif)) for make in places.values()]
  for other in found[1:]:
    np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize('channels', [2, 5])
def test_there_are_no_pictures_of_other_channels(tmp_path, channels):
  (tmp_path / 'a.png').write_bytes(written(NOISE, 'png'))
  with pytest.raises(InputError, match=rf'^--init_image: .* the samples have {channels}$'):
    read_picture(str(tmp_path / 'a.png'), (4, 4, channels), '--init_image')


def test_a_picture_of_another_size_and_a_missing_one_are_refused(tmp_path):
  path = str(tmp_path / 'a.png')
  with pytest.raises(InputError, match=r'^--mask: .*a\.png cannot be read .*No such file'):
    read_picture(path, (4, 4, 1), '--mask')
  Image.new('L', (9, 6)).save(path)
  with pytest.raises(InputError, match='^--mask: .*a.png has 6x9 pixels; the samples have 8x8$'):
    read_picture(path, (8, 8, 1), '--mask')
  assert read_picture(path, (6, 9, 4), '--mask').shape == (6, 9, 4)


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_flipped_bytes_are_read_or_refused():
  rng = np.random.default_rng(3)
  kinds = ('png', 'jpeg', 'gif', 'webp', 'tiff', 'bmp')
  whole = [written(NOISE, kind) for kind in kinds]
  whole += [
    png(16, 0, WIDE.astype('>u2'), clear(1000)),
    written(WIDE, 'tiff'),
    twelve_bits(WIDE >> 4),
  ]
  refused = 0
  for number in range(100 * len(whole)):
    content = bytearray(whole[number % len(whole)])
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    try:
      assert decoded(bytes(content), 3).ndim == 3
    except InputError as error:
      refused += '\n' not in str(error)
  assert refused > 100
