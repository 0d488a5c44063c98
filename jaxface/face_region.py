"""The face of a photo: where its label map has it, the square of it that a network sees, and the way back.

Photos are uint8 [H, W, 3] RGB, label maps uint8 [H, W] in the project's order.
"""

import os
from typing import NamedTuple

import cv2
import numpy as np

from jaxface import labels
from jaxface.area import to_square
from jaxface.pictures import PictureError
from jaxface.texture import REPAINTED

# A face with all that lies in it: without eyes and mouth it would have holes, without glasses it may be in two.
REGION = (*REPAINTED, 'l_eye', 'r_eye', 'mouth', 'eye_g')

# The longer side of the face, as a share of what the network sees. Where it is trained, rendered faces (aligned, 3/4 of
# the picture) have 1.03 and photos of Makeup Transfer 1.04; outside the square nothing can be pasted.
EXTENT = 1.0

# Shares of the photo's pixels below which there is no face, and above which no label map is right.
_NO_FACE, _NOTHING_BUT_FACE = 0.005, 0.9
# A second face has at least this share of the first one's pixels; less is a speckle of the parser.
_SECOND_FACE = 0.25
# Gaps so narrow, as shares of the root of the region's area, divide no face: a strand of hair, a frame of glasses.
_GAP = 0.04
# Radius of each of the two averages that soften the border, as a share of the side of what the network sees.
_SOFTENING = 0.005


class Face(NamedTuple):
  """bool [H, W] each: the face's `region` without holes, and of it what is `repainted` (`texture.REPAINTED`)."""

  region: np.ndarray
  repainted: np.ndarray


def find_face(label: np.ndarray, name: str | os.PathLike) -> Face:
  """The one face of a label map: the largest connected part of `REGION`, across narrow gaps.

  PictureError, which names the photo `name`, where there is none, where there are two, where all is face.
  """
  region = _one_of(label, REGION)
  share = region.mean()
  if share > _NOTHING_BUT_FACE:
    detail = f'it has {share:.0%} of the pixels; a label map tells a face from what is around it'
    raise PictureError(name, 'the face in its label map covers everything', detail)
  gap = max(1, round(_GAP * np.sqrt(region.sum()) / 2))
  closed = cv2.dilate(region.astype(np.uint8), np.ones((2 * gap + 1, 2 * gap + 1), np.uint8))
  _, parts, _, _ = cv2.connectedComponentsWithStats(closed)
  areas = np.bincount(parts[region], minlength=2)[1:]
  largest = 1 + np.argmax(areas)
  region &= parts == largest
  repainted = region & _one_of(label, REPAINTED)
  if areas.max() < _NO_FACE * label.size or not repainted.any():
    detail = f'at most {areas.max() / label.size:.1%} of its pixels are; make it larger, or give its label map'
    raise PictureError(name, 'no face found', detail)
  second = np.sort(areas)[-2:-1].sum() / areas.max()
  if second >= _SECOND_FACE:
    detail = f'the second is {second:.0%} of the first; cut the photo so that it shows one, or give a label map of one'
    raise PictureError(name, 'two faces found', detail)
  return Face(region, repainted)


def _one_of(label: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
  return np.isin(label, [labels.index(name) for name in names])


class Square(NamedTuple):
  """A square of a photo: where its edges lie and how long they are, in pixels; it may reach beyond the photo."""

  top: float
  left: float
  side: float

  def picture(self, photo: np.ndarray, size: int) -> np.ndarray:
    """What a square of whole pixels shows, uint8 [size, size, 3]: averaged where it shrinks, bilinear where it grows.

    Beyond the photo its edge is repeated.
    """
    return to_square(self._cut(photo, cv2.BORDER_REPLICATE), size)

  def label(self, label: np.ndarray, size: int) -> np.ndarray:
    """The same of a label map or mask, uint8 or bool [H, W], by the nearest pixel; beyond the photo it is 0."""
    cut = self._cut(label.astype(np.uint8), cv2.BORDER_CONSTANT)
    return cv2.resize(cut, (size, size), interpolation=cv2.INTER_NEAREST_EXACT).astype(label.dtype)

  def middle(self, size: int, of: int) -> 'Square':
    """The middle `size` of this square's `of` pixels a side, as `Framing` cuts it."""
    pixel, margin = self.side / of, (of - size) // 2
    return Square(self.top + margin * pixel, self.left + margin * pixel, size * pixel)

  def _cut(self, plane: np.ndarray, border: int) -> np.ndarray:
    assert all(value == int(value) for value in self), self
    top, left, side = map(int, self)
    bottom, right = top + side, left + side
    inside = plane[max(0, top) : bottom, max(0, left) : right]
    beyond = (max(0, -top), max(0, bottom - plane.shape[0]), max(0, -left), max(0, right - plane.shape[1]))
    return cv2.copyMakeBorder(inside, *beyond, border)


def square_around(region: np.ndarray, image_size: int, crop_size: int) -> Square:
  """The square, of whole pixels, that is to be shown at `image_size` and whose middle `crop_size` the network sees.

  `region`, bool [H, W], lies in its middle and is as large as `EXTENT` has it.
  """
  left, top, width, height = cv2.boundingRect(region.astype(np.uint8))
  side = max(1, round(max(width, height) / EXTENT * image_size / crop_size))
  return Square(round(top + (height - side) / 2), round(left + (width - side) / 2), side)


class Canvas(NamedTuple):
  """A photo that results are pasted on.

  Attributes:
    photo: uint8 [H, W, 3].
    square: of the photo, what the network sees.
    rows, columns: where the photo may change.
    alpha: float32, of these rows and columns, in [0, 1]: by how much.
  """

  photo: np.ndarray
  square: Square
  rows: slice
  columns: slice
  alpha: np.ndarray

  def paste(self, result: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """The photo, uint8 [H, W, 3], with a network's `result`, float [C, C, 3] in [0, 1], of what it sees.

    With `own`, what the network makes of the photo when it is to change nothing, only the difference between the two
    is added: what the network cannot draw, above all the fine skin of a large photo, stays. Where alpha is 0, the photo
    stays as it is to the last bit.
    """
    before = self.photo[self.rows, self.columns].astype(np.float32)
    if own is None:
      change = 255 * self._enlarged(result) - before
    else:
      change = 255 * self._enlarged(result - own)
    pasted = self.photo.copy()
    changed = before + self.alpha[..., None] * change
    pasted[self.rows, self.columns] = np.rint(np.clip(changed, 0, 255)).astype(np.uint8)
    return pasted

  def _enlarged(self, picture: np.ndarray) -> np.ndarray:
    picture = picture.astype(np.float32)
    # Warping looks at few pixels of the network's, so that one of less pixels than that is averaged before.
    size = min(len(picture), max(1, round(self.square.side)))
    if size < len(picture):
      picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    scale = size / self.square.side
    # Pixels' centres are at halves here, at whole numbers in OpenCV.
    x = (self.columns.start + 0.5 - self.square.left) * scale - 0.5
    y = (self.rows.start + 0.5 - self.square.top) * scale - 0.5
    matrix = np.array([[scale, 0, x], [0, scale, y]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(picture, matrix, self.alpha.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def make_canvas(photo: np.ndarray, repainted: np.ndarray, square: Square) -> Canvas:
  """A photo, uint8 [H, W, 3], to be changed where `repainted`, bool [H, W], is true, and softly around its border.

  The border is softened by about 1 % of `square`, what the network sees, to either side, and by 2 pixels at least.
  """
  radius = max(1, round(_SOFTENING * square.side))
  height, width = repainted.shape
  left, top, across, down = cv2.boundingRect(repainted.astype(np.uint8))
  rows = slice(max(0, top - 2 * radius), min(height, top + down + 2 * radius))
  columns = slice(max(0, left - 2 * radius), min(width, left + across + 2 * radius))
  alpha = repainted[rows, columns].astype(np.float32)
  taps = 2 * radius + 1
  for _ in range(2):
    # Sums of whole numbers are exact: what no window reaches is 0, not nearly 0.
    alpha = cv2.boxFilter(alpha, -1, (taps, taps), normalize=False, borderType=cv2.BORDER_REPLICATE)
  return Canvas(photo, square, rows, columns, alpha / np.float32(taps**4))
