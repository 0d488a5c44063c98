"""Odd picture files read as what a person sees in them; label maps keep their values; broken files are told by name."""

import errno
import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from jaxface import pictures
from jaxface.errors import UserError

# Four flat quarters, so that JPEG keeps them and a turn is seen: red, green / blue, white.
QUARTERS = np.kron(
  np.array([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [255, 255, 255]]], np.uint8), np.ones((16, 24, 1), np.uint8)
)
ORIENTATION = 0x0112


def saved(tmp_path, picture, name, **options):
  path = tmp_path / name
  picture.save(path, **options)
  return path


def corners(image):
  return image[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)


@pytest.mark.parametrize('name', ['a.png', 'a.JPG', 'a.webp', 'a.bmp', 'a.tif'])
def test_common_formats(tmp_path, name):
  image = pictures.read_picture(saved(tmp_path, Image.fromarray(QUARTERS), name))
  assert image.dtype == np.uint8
  assert image.shape == (32, 48, 3)
  np.testing.assert_allclose(corners(image), corners(QUARTERS), atol=6)


@pytest.mark.parametrize(('orientation', 'upright'), [
  (1, QUARTERS), (2, QUARTERS[:, ::-1]), (3, QUARTERS[::-1, ::-1]), (4, QUARTERS[::-1]),
  (5, QUARTERS.transpose(1, 0, 2)), (6, np.rot90(QUARTERS, -1)), (7, np.rot90(QUARTERS.transpose(1, 0, 2), 2)),
  (8, np.rot90(QUARTERS, 1)),
])  # fmt: skip
@pytest.mark.parametrize('name', ['a.jpg', 'a.png'])
def test_exif_rotation_is_applied(tmp_path, orientation, upright, name):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  path = saved(tmp_path, Image.fromarray(QUARTERS), name, exif=exif)
  image = pictures.read_picture(path)
  assert image.shape == upright.shape
  np.testing.assert_allclose(corners(image), corners(upright), atol=6)
  assert pictures.is_plain(path.read_bytes()) == (orientation == 1)


def test_grey_and_black_and_white(tmp_path):
  grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
  image = pictures.read_picture(saved(tmp_path, Image.fromarray(grey), 'a.png'))
  np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, 2))
  image = pictures.read_picture(saved(tmp_path, Image.fromarray(grey > 99), 'b.png'))
  np.testing.assert_array_equal(image[..., 0], np.where(grey > 99, 255, 0))


def test_sixteen_bits_keep_the_upper_eight(tmp_path):
  values = np.random.default_rng(0).integers(0, 2**16, (16, 16), np.uint16)
  for name in ('a.png', 'a.tif'):
    image = pictures.read_picture(saved(tmp_path, Image.fromarray(values), name))
    np.testing.assert_array_equal(image[..., 1], values >> 8)


def sixteen_bit_rgb_png(values):
  import cv2

  return cv2.imencode('.png', values[..., ::-1])[1].tobytes()


def test_sixteen_bit_rgb_is_not_plain(tmp_path):
  values = (QUARTERS.astype(np.uint16) << 8) + 77
  data = sixteen_bit_rgb_png(values)
  np.testing.assert_array_equal(pictures.decode_picture(data, 'a.png'), QUARTERS)
  assert not pictures.is_plain(data)


def test_transparency_lies_on_white(tmp_path):
  rgba = np.dstack([QUARTERS, np.full((32, 48), 255, np.uint8)])
  rgba[:16, :24, 3] = 0
  rgba[:16, 24:, 3] = 51
  image = pictures.read_picture(saved(tmp_path, Image.fromarray(rgba), 'a.png'))
  np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
  np.testing.assert_allclose(image[0, -1], [204, 244, 204], atol=1)
  np.testing.assert_array_equal(image[-1, 0], [0, 0, 200])


def test_palette_with_a_transparent_entry(tmp_path):
  picture = Image.fromarray(QUARTERS).quantize(4)
  indices = np.array(picture)
  path = saved(tmp_path, picture, 'a.png', transparency=int(indices[0, 0]))
  image = pictures.read_picture(path)
  np.testing.assert_array_equal(image[0, 0], [255, 255, 255])
  np.testing.assert_allclose(corners(image)[1:3], corners(QUARTERS)[1:3], atol=3)
  assert not pictures.is_plain(path.read_bytes())


def test_rgb_png_with_a_transparent_colour_is_not_plain(tmp_path):
  path = saved(tmp_path, Image.fromarray(QUARTERS), 'a.png', transparency=(200, 0, 0))
  np.testing.assert_array_equal(pictures.read_picture(path)[0, 0], [255, 255, 255])
  assert not pictures.is_plain(path.read_bytes())


def test_cmyk(tmp_path):
  for name in ('a.jpg', 'a.tif'):
    path = saved(tmp_path, Image.fromarray(QUARTERS).convert('CMYK'), name)
    np.testing.assert_allclose(corners(pictures.read_picture(path)), corners(QUARTERS), atol=6)
    assert not pictures.is_plain(path.read_bytes())


def test_plain_files_are_plain(tmp_path):
  for name in ('a.png', 'a.jpg'):
    assert pictures.is_plain(saved(tmp_path, Image.fromarray(QUARTERS), name).read_bytes())


def png_chunk(kind, data):
  return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def test_a_png_that_only_pillow_reads_is_not_plain(tmp_path):
  whole = saved(tmp_path, Image.fromarray(QUARTERS), 'a.png').read_bytes()
  assert pictures.is_plain(whole + b'something behind it')
  pixels = whole.index(b'IDAT') + 4
  (length,) = struct.unpack_from('>I', whole, pixels - 8)
  without_end = whole[:-12]
  wrong_checksum = whole[: pixels + length] + b'none' + whole[pixels + length + 4 :]
  for data in (without_end, without_end + bytes(5), wrong_checksum):
    np.testing.assert_array_equal(pictures.decode_picture(data, 'a.png'), QUARTERS)
    assert not pictures.is_plain(data)


def test_no_guess_at_the_range_of_floats(tmp_path):
  path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), 'a.tif')
  with pytest.raises(pictures.PictureError, match=r'a\.tif: no fixed value range'):
    pictures.read_picture(path)


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp', 'a.bmp'])
@pytest.mark.parametrize('share', [0.05, 0.5, 0.9])
def test_truncated_files(tmp_path, name, share):
  noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
  path = saved(tmp_path, Image.fromarray(noise), name)
  path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
  with pytest.raises(pictures.PictureError, match=f'{name}: (damaged or truncated|not a picture)'):
    pictures.read_picture(path)


def test_unusable_files_are_told_by_name_and_reason(tmp_path):
  (tmp_path / 'empty.png').write_bytes(b'')
  (tmp_path / 'text.jpg').write_text('not at all a picture')
  (tmp_path / 'folder.png').mkdir()
  for name, reason in {
    'empty.png': 'empty file',
    'text.jpg': 'not a picture in a known format',
    'missing.png': 'no such file',
    'folder.png': 'cannot be read',
  }.items():
    with pytest.raises(pictures.PictureError, match=f'{name}: {reason}') as error:
      pictures.read_picture(tmp_path / name)
    assert error.value.reason == reason
    assert '\n' not in str(error.value)


def test_damaged_bytes_never_escape_as_another_error():
  rng = np.random.default_rng(0)
  formats = [('PNG', 'RGB'), ('PNG', 'P'), ('JPEG', 'RGB'), ('WEBP', 'RGB'), ('BMP', 'RGB')]
  # Pillow goes by a file's bytes, not by its suffix: downloads of this kind are often called .jpg.
  formats += [('AVIF', 'RGB')] if features.check('avif') else []
  for file_format, mode in formats:
    buffer = io.BytesIO()
    Image.fromarray(QUARTERS).convert(mode).save(buffer, file_format)
    for _ in range(60):
      data = bytearray(buffer.getvalue())
      for position in rng.integers(0, len(data), 3):
        data[position] = rng.integers(256)
      try:
        image = pictures.decode_picture(bytes(data), 'a')
        assert image.ndim == 3
      except pictures.PictureError:
        pass


def test_label_map_keeps_palette_indices(tmp_path):
  values = np.arange(19, dtype=np.uint8).repeat(2).reshape(2, 19)
  picture = Image.fromarray(values)
  np.testing.assert_array_equal(pictures.read_label_map(saved(tmp_path, picture, 'grey.png')), values)
  picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
  assert picture.mode == 'P'
  read = pictures.read_label_map(saved(tmp_path, picture, 'palette.png'))
  np.testing.assert_array_equal(read, values)
  assert read.dtype == np.uint8
  read = pictures.read_label_map(saved(tmp_path, Image.fromarray(values.astype(np.uint16)), 'wide.png'))
  np.testing.assert_array_equal(read, values)


@pytest.mark.parametrize('depth', [1, 2, 4, 8])
@pytest.mark.parametrize('palette', [False, True])
def test_label_map_of_few_bits_keeps_its_values(tmp_path, depth, palette):
  values = (np.arange(16)[None].repeat(3, 0) % 2**depth).astype(np.uint8)
  bits = np.unpackbits(values[..., None], axis=2)[..., -depth:].reshape(3, -1)
  rows = b''.join(b'\0' + np.packbits(row).tobytes() for row in bits)
  header = struct.pack('>IIBBBBB', 16, 3, depth, 3 if palette else 0, 0, 0, 0)
  colours = png_chunk(b'PLTE', bytes(3 * 2**depth)) if palette else b''
  chunks = png_chunk(b'IHDR', header) + colours + png_chunk(b'IDAT', zlib.compress(rows)) + png_chunk(b'IEND', b'')
  (tmp_path / 'a.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)
  label = pictures.read_label_map(tmp_path / 'a.png')
  assert label.dtype == np.uint8
  np.testing.assert_array_equal(label, values)


def test_label_map_refuses_what_would_lose_values(tmp_path):
  values = np.zeros((8, 8), np.uint8)
  grey = Image.fromarray(values)
  for picture, name, why in [
    (grey.convert('RGB'), 'rgb.png', 'single channel .found 3'),
    (grey.convert('LA'), 'la.png', 'single channel .found 2'),
    (grey, 'grey.jpg', 'be a PNG .found JPEG'),
    (Image.fromarray(values.astype(np.uint16) + 300), 'wide.png', 'found 300'),
  ]:
    with pytest.raises(pictures.PictureError, match=f'{name}: a label map must .*{why}'):
      pictures.read_label_map(saved(tmp_path, picture, name))


def test_find_pictures_in_natural_order(tmp_path):
  names = ['b/2.png', 'b/10.JPEG', 'a/9.tiff', 'a/10/1.webp', '3.bmp', '20.jpg', 'notes.txt', '.hidden.png', '.x/a.png']
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).touch()
  (tmp_path / 'b' / 'loop').symlink_to(tmp_path)
  found = [str(path.relative_to(tmp_path)) for path in pictures.find_pictures([tmp_path, tmp_path / '20.jpg'])]
  assert found == ['3.bmp', '20.jpg', 'a/9.tiff', 'a/10/1.webp', 'b/2.png', 'b/10.JPEG']


def test_find_pictures_through_two_links_to_one_folder(tmp_path):
  (tmp_path / 'real').mkdir()
  (tmp_path / 'real' / 'a.png').touch()
  (tmp_path / 'all').mkdir()
  for name in ('test', 'validation'):
    (tmp_path / 'all' / name).symlink_to(tmp_path / 'real')
  (tmp_path / 'real' / 'back').symlink_to(tmp_path / 'all')
  found = [str(path.relative_to(tmp_path / 'all')) for path in pictures.find_pictures(tmp_path / 'all')]
  assert found == ['test/a.png', 'validation/a.png']


def test_find_pictures_leaves_out_no_folder_silently(tmp_path, monkeypatch):
  for name in ('a', 'b', 'lost+found'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'a.png').touch()
  scandir = os.scandir

  # Root, who runs tests in containers, may read everything.
  def scandir_of_one_who_may_not(path):
    if os.path.basename(path) in ('b', 'lost+found'):
      raise PermissionError(errno.EACCES, 'Permission denied', path)
    return scandir(path)

  with monkeypatch.context() as context:
    context.setattr(os, 'scandir', scandir_of_one_who_may_not)
    with pytest.raises(UserError, match=r'b: this folder cannot be read: Permission denied; make it readable'):
      pictures.find_pictures(tmp_path)
    (tmp_path / 'b').rename(tmp_path / 'c')
    assert pictures.find_pictures(tmp_path) == [tmp_path / 'a' / 'a.png', tmp_path / 'c' / 'a.png']


def test_find_pictures_tells_what_is_wrong(tmp_path):
  (tmp_path / 'a.txt').touch()
  (tmp_path / 'a.png').touch()
  (tmp_path / 'empty').mkdir()
  for path, why in [('nowhere', 'no such file or folder'), ('empty', 'no pictures'), ('a.txt', 'suffix')]:
    with pytest.raises(UserError, match=f'{path}: .*{why}'):
      pictures.find_pictures([tmp_path / 'a.png', tmp_path / path])
  with pytest.raises(UserError, match='no pictures'):
    pictures.find_pictures([])


def test_write_picture(tmp_path):
  path = tmp_path / 'new' / 'folder' / 'a.png'
  pictures.write_picture(path, QUARTERS)
  np.testing.assert_array_equal(pictures.read_picture(path), QUARTERS)
  pictures.write_picture(path, QUARTERS[..., 2])
  np.testing.assert_array_equal(pictures.read_label_map(path), QUARTERS[..., 2])
  pictures.write_picture(path.with_suffix('.jpg'), QUARTERS)
  np.testing.assert_allclose(corners(pictures.read_picture(path.with_suffix('.jpg'))), corners(QUARTERS), atol=6)
  assert sorted(p.name for p in path.parent.iterdir()) == ['a.jpg', 'a.png']
  with pytest.raises(UserError, match=r'a\.gif'):
    pictures.write_picture(tmp_path / 'a.gif', QUARTERS)
  with pytest.raises(UserError, match=r'cannot write .*b\.png'):
    pictures.write_picture(path / 'b.png', QUARTERS)


def test_write_picture_under_the_longest_name(tmp_path):
  path = tmp_path / f'{"a" * 251}.png'
  pictures.write_picture(path, QUARTERS)
  assert list(tmp_path.iterdir()) == [path]


def test_what_names_one_picture(tmp_path):
  (tmp_path / 'folder.png').mkdir()
  names = ('a.png', 'new/a.JPG', 'a.jpeg', 'folder.png', 'folder', 'a.out')
  assert [pictures.is_one_picture(tmp_path / name) for name in names] == [True, True, True, False, False, False]
  with pytest.raises(UserError, match=r'cannot write .*a\.webp: pictures are written as \.png, \.jpg, \.jpeg'):
    pictures.is_one_picture(tmp_path / 'a.webp')
  assert [path.name for path in tmp_path.iterdir()] == ['folder.png']


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'a.png'
  pictures.write_picture(path, QUARTERS)

  def disk_full(self, file, *args, **kwargs):
    file.write_bytes(b'half a pict')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Image.Image, 'save', disk_full)
  with pytest.raises(UserError, match='No space left'):
    pictures.write_picture(path, QUARTERS // 2)
  np.testing.assert_array_equal(pictures.read_picture(path), QUARTERS)
  assert [p.name for p in tmp_path.iterdir()] == ['a.png']
