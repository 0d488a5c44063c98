"""Reading and writing picture files. In memory a picture is uint8 [H, W, 3] RGB, a label map uint8 [H, W]."""

import contextlib
import io
import os
import re
import struct
import uuid
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jaxface.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')
_WRITTEN = {'.png': 'PNG', '.jpg': 'JPEG', '.jpeg': 'JPEG'}

# Folders that programs and file systems make: macOS's for its "._" companions, and one that only root may read.
_NOT_THE_USERS = ('__MACOSX', 'lost+found')

# Bytes 24 and 25 of a PNG, depth and colour type, of grey that Pillow spreads over 0 to 255 -> the step it takes.
_GREY_STEPS = {b'\x02\x00': 85, b'\x04\x00': 17}

# What Pillow's decoders let escape on damaged input; found by feeding them broken files.
_DECODE_ERRORS = (
  OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, AttributeError, RuntimeError, struct.error,
  zlib.error,
)  # fmt: skip


class PictureError(UserError):
  """A file that cannot be used as a picture or label map; `reason` is the short why, the same for files alike."""

  def __init__(self, name: str | os.PathLike, reason: str, detail: str = ''):
    super().__init__(f'{os.fspath(name)}: {reason}' + (f' ({detail})' if detail else ''))
    self.reason = reason


def read_bytes(path: str | os.PathLike) -> bytes:
  """The bytes of a file; PictureError where it is missing, a folder, or may not be read."""
  try:
    return Path(path).read_bytes()
  except FileNotFoundError as error:
    raise PictureError(path, 'no such file') from error
  except OSError as error:
    raise PictureError(path, 'cannot be read', error.strerror) from error


def read_picture(path: str | os.PathLike) -> np.ndarray:
  """Read any picture file as uint8 [H, W, 3] RGB.

  The EXIF rotation is applied; grey, palette and CMYK become RGB; transparent pictures are laid on white; of 16 bits
  the upper 8 are kept; colour profiles are ignored; of an animation the first frame is taken. PictureError where the
  file is missing, empty, no picture, damaged, or has no fixed value range.
  """
  return decode_picture(read_bytes(path), path)


def decode_picture(data: bytes, name: str | os.PathLike) -> np.ndarray:
  """`read_picture` of a file's bytes; `name` is for the error message."""
  with _opened(data, name) as picture:
    return _to_rgb(ImageOps.exif_transpose(picture), name)


def is_plain(data: bytes) -> bool:
  """Whether every decoder reads these bytes of a picture the same: an upright 8-bit RGB JPEG or PNG, without alpha.

  A PNG must be whole, too: Pillow reads damaged ones that OpenCV refuses.
  """
  with _opened(data, 'picture') as picture:
    # MPO is what phones write: a JPEG with a second picture behind it, which JPEG decoders never see.
    is_jpeg = picture.format in ('JPEG', 'MPO')
    # Pillow shows a 16-bit RGB PNG as 8-bit RGB; bytes 24 and 25 of the file tell depth and colour type (2: RGB).
    is_rgb_png = picture.format == 'PNG' and data[24:26] == b'\x08\x02' and getattr(picture, 'n_frames', 1) == 1
    is_png = is_rgb_png and _is_whole_png(data)
    upright = picture.getexif().get(0x0112, 1) == 1
    return (is_jpeg or is_png) and picture.mode == 'RGB' and 'transparency' not in picture.info and upright


def read_label_map(path: str | os.PathLike) -> np.ndarray:
  """Read a single-channel PNG as uint8 [H, W]: the values as stored; of a palette PNG the indices, never the colours.

  Values of fewer than 8 bits stay what they are, too: a 1-bit PNG gives 0 and 1. PictureError for colour pictures, for
  formats that lose values (JPEG), and for values above 255.
  """
  data = read_bytes(path)
  with _opened(data, path) as picture:
    if picture.format != 'PNG':
      raise PictureError(path, 'a label map must be a PNG', f'found {picture.format}')
    if picture.mode not in ('1', 'L', 'P') and not picture.mode.startswith('I'):
      channels = len(picture.getbands())
      detail = f'found {channels}, mode {picture.mode}; save the class numbers themselves, not colours'
      raise PictureError(path, 'a label map must have a single channel', detail)
    values = np.array(picture) // _GREY_STEPS.get(data[24:26], 1)
  if values.max() > 255:
    raise PictureError(path, 'a label map must have values of 8 bits', f'found {values.max()}')
  return values.astype(np.uint8)


def encode_png(image: np.ndarray) -> bytes:
  """Encode uint8 [H, W, 3] RGB, or [H, W] with its values kept, as PNG."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, 'PNG')
  return buffer.getvalue()


def write_picture(path: str | os.PathLike, image: np.ndarray, *, palette: np.ndarray | None = None) -> None:
  """Write uint8 [H, W, 3] RGB, or [H, W], as PNG or JPEG (quality 95) by suffix; makes the folder it lies in.

  With `palette`, uint8 [N, 3], a PNG of [H, W] keeps its values and is shown in these colours. The file appears
  complete or not at all. UserError for another suffix or a place that cannot be written.
  """
  path = Path(path)
  check_suffix(path)
  assert image.dtype == np.uint8, image.dtype
  assert image.ndim == 2 or image.shape[2:] == (3,), image.shape
  # Hidden, so that nobody who lists the folder meanwhile takes it for a picture; short, whatever the picture's name.
  unfinished = path.with_name(f'.{uuid.uuid4().hex}.tmp')
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(image)
    if palette is not None:
      picture.putpalette(palette.tobytes())
    picture.save(unfinished, _WRITTEN[path.suffix.lower()], quality=95)
    os.replace(unfinished, path)
  except OSError as error:
    raise UserError(f'cannot write {path}: {error.strerror or error}') from error
  finally:
    with contextlib.suppress(OSError):
      unfinished.unlink()


def is_one_picture(out: Path) -> bool:
  """Whether `out` names one picture, by its suffix, and no folder of pictures; a folder that is there stays one.

  UserError for the suffix of a picture that can be read and not written.
  """
  one = out.suffix.lower() in SUFFIXES and not out.is_dir()
  if one:
    check_suffix(out)
  return one


def check_suffix(path: Path) -> None:
  """UserError for a suffix that pictures are not written with."""
  if path.suffix.lower() not in _WRITTEN:
    raise UserError(f'cannot write {path}: pictures are written as {", ".join(_WRITTEN)}')


def find_pictures(paths: Iterable[str | os.PathLike] | str | os.PathLike) -> list[Path]:
  """All pictures among files and folders, by suffix (`SUFFIXES`, any case), in natural order (2 before 10).

  Each path comes once, however often it is named. Folders are searched with all below them, through links too, but for
  hidden files and folders. UserError for a path that is missing, a file without a picture's suffix, a folder without
  pictures, and one that cannot be read.
  """
  paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
  found = set()
  for path in map(Path, paths):
    if path.is_dir():
      pictures = _pictures_below(path)
      if not pictures:
        raise UserError(f'{path}: no pictures in this folder; looked for {" ".join(SUFFIXES)}')
      found.update(pictures)
    elif not path.exists():
      raise UserError(f'{path}: no such file or folder')
    elif path.suffix.lower() not in SUFFIXES:
      raise UserError(f'{path}: not a picture by its suffix; legal are {" ".join(SUFFIXES)}')
    else:
      found.add(path)
  if not found:
    raise UserError('no pictures: name at least one file or folder')
  return sorted(found, key=natural_key)


def repeated(names: Iterable[str]) -> list[str]:
  """The names that occur more than once, in the order in which they first do."""
  return [name for name, count in Counter(names).items() if count > 1]


def natural_key(path: str | os.PathLike) -> list:
  """Sort key under which numbers in names count as numbers, whatever the case, and folders group their files."""
  parts = [re.split(r'([0-9]+)', part.lower()) for part in Path(path).parts]
  # Splitting at digits alternates text and number, so that like meets like in every comparison.
  parts = [[int(piece) if i % 2 else piece for i, piece in enumerate(part)] for part in parts]
  return [parts, os.fspath(path)]


def _pictures_below(folder: Path) -> list[Path]:
  pictures = []
  # Folders that are yet to be searched -> where those above them really are.
  above = {os.fspath(folder): frozenset()}
  for root, folders, names in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
    way, real = above.pop(root), os.path.realpath(root)
    if real in way:  # A link may lead back to a folder above it.
      folders.clear()
      continue
    # Hidden files are thumbnails and macOS's "._" companions, which bear a picture's suffix and are none.
    folders[:] = [name for name in folders if not name.startswith('.') and name not in _NOT_THE_USERS]
    above.update((os.path.join(root, name), way | {real}) for name in folders)
    pictures += [
      Path(root, name)
      for name in names
      if not name.startswith('.') and os.path.splitext(name)[1].lower() in SUFFIXES
    ]  # fmt: skip
  return pictures


def _raise_unreadable(error: OSError):
  raise UserError(
    f'{error.filename}: this folder cannot be read: {error.strerror}; make it readable, or move it away'
  ) from error


@contextlib.contextmanager
def _opened(data: bytes, name: str | os.PathLike):
  """The picture in `data`, opened by Pillow; whatever goes wrong inside the block is told as a PictureError."""
  if not data:
    raise PictureError(name, 'empty file')
  try:
    picture = Image.open(io.BytesIO(data))
  except Image.DecompressionBombError as error:
    raise PictureError(name, 'too large', str(error)) from error
  except _DECODE_ERRORS as error:
    raise PictureError(name, 'not a picture in a known format') from error
  with picture:
    try:
      yield picture
    except PictureError:
      raise
    except _DECODE_ERRORS as error:
      raise PictureError(name, 'damaged or truncated', str(error)) from error


def _is_whole_png(data: bytes) -> bool:
  """Whether each chunk of a PNG has the checksum that it should have, up to the end chunk."""
  whole, at = memoryview(data), 8
  while at + 12 <= len(data):
    (length,) = struct.unpack_from('>I', data, at)
    # Length, type, the bytes, and the checksum of these and the type.
    end = at + 8 + length
    if whole[end : end + 4] != zlib.crc32(whole[at + 4 : end]).to_bytes(4, 'big'):
      return False
    if whole[at + 4 : at + 8] == b'IEND':
      return True
    at = end + 4
  return False


def _to_rgb(picture: Image.Image, name: str | os.PathLike) -> np.ndarray:
  if picture.mode.startswith('I;16'):
    grey = (np.array(picture) >> 8).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
  if picture.mode in ('I', 'F'):
    raise PictureError(name, 'no fixed value range', f'32 bits a value, mode {picture.mode}; save it with 8 bits')
  if picture.has_transparency_data:
    picture = picture.convert('RGBA')
    picture = Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture)
  return np.array(picture.convert('RGB'))
