"""A painter's canvas: antialiased layers of uint8, which OpenCV blends many pixels at a time, and a label map.

Points are [N, 2] float arrays (x, y) in picture units: (0, 0) is the picture's upper left corner, (1, 1) its lower
right one, whatever the number of pixels. Single colours are float32 [3], linear light in [0, 1]; pictures are uint8
display values, the square root of light, in 0..255.
"""

import copy
import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

# fillPoly reads fixed-point coordinates with this many fractional bits.
FRACTION_BITS = 4


class Patch(NamedTuple):
  """A box of the canvas and how much of each of its pixels is covered: uint8 [h, w]."""

  rows: slice
  columns: slice
  cover: np.ndarray


def srgb(red: float, green: float, blue: float) -> np.ndarray:
  """Display colour in 0..255 -> float32 [3], linear light in [0, 1]; its curve is a square, close to sRGB's."""
  return np.square(np.array([red, green, blue], np.float32) / 255)


def clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
  """`np.clip`, faster on small arrays."""
  return x.clip(low, high)


def smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
  """0 below `low`, 1 above `high`, a cubic between them."""
  t = clip((x - low) * (1 / (high - low)), 0, 1)
  return t * t * (3 - 2 * t)


@functools.cache
def _spline_basis(count: int, samples: int, closed: bool) -> np.ndarray:
  """Uniform Catmull-Rom basis: [points, count], to be multiplied with the control points."""
  t = np.arange(samples) / samples
  weights = np.stack(
    [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
  ) / 2  # fmt: skip
  segments = count if closed else count - 1
  basis = np.zeros((segments * samples + (not closed), count), np.float32)
  for segment in range(segments):
    for k in range(4):
      at = segment + k - 1
      at = at % count if closed else min(max(at, 0), count - 1)
      basis[segment * samples : (segment + 1) * samples, at] += weights[:, k]
  if not closed:
    basis[-1, -1] = 1
  return basis


def coordinates(points: Sequence[tuple[float, ...]]) -> np.ndarray:
  """float32 [N, D]; for long lists several times faster than `np.array`."""
  return np.fromiter(itertools.chain.from_iterable(points), np.float32).reshape(len(points), -1)


def curve(points: np.ndarray | Sequence[tuple], samples: int = 6, closed: bool = False) -> np.ndarray:
  """Smooth curve through control points [N, D] -> [M, D], `samples` points a segment."""
  points = points if isinstance(points, np.ndarray) else coordinates(points)
  return _spline_basis(len(points), samples, closed) @ points.astype(np.float32, copy=False)


class Curves:
  """Many smooth curves for the price of one; each is named, with (control points, samples a segment, closed)."""

  def __init__(self, curves: dict[str, tuple[int, int, bool]]):
    bases = [_spline_basis(*curve) for curve in curves.values()]
    rows, columns = (np.cumsum([0, *(basis.shape[axis] for basis in bases)]) for axis in (0, 1))
    self._basis = np.zeros((rows[-1], columns[-1]), np.float32)
    self.parts = {}
    for name, basis, row, column in zip(curves, bases, rows.tolist(), columns.tolist(), strict=False):
      self._basis[row : row + basis.shape[0], column : column + basis.shape[1]] = basis
      self.parts[name] = slice(row, row + basis.shape[0])

  def points(self, control: Sequence[tuple[float, float]]) -> np.ndarray:
    """Control points of all curves in order -> the points of all, [M, 2]; `parts` names their slices."""
    return self._basis @ coordinates(control)


def ellipse(x: float, y: float, rx: float, ry: float, tilt: float = 0.0, count: int = 28) -> np.ndarray:
  """Outline of an ellipse -> [count, 2]; `tilt` in radians."""
  unit = _circle(count)
  cos, sin = math.cos(tilt), math.sin(tilt)
  u, v = unit[:, 0] * rx, unit[:, 1] * ry
  points = np.empty((count, 2), np.float32)
  points[:, 0], points[:, 1] = x + u * cos - v * sin, y + u * sin + v * cos
  return points


@functools.cache
def _circle(count: int) -> np.ndarray:
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False, dtype=np.float32)
  return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def moved(line: np.ndarray, x: float, y: float) -> np.ndarray:
  """The points [N, 2], shifted."""
  return line + np.array([x, y], np.float32)


def ribbon(line: np.ndarray, width: np.ndarray | float) -> np.ndarray:
  """Outline of lines [..., N, 2] drawn with a pen of (varying) full width, in their own units -> [..., 2N, 2].

  All float32.
  """
  # In the complex plane a quarter turn is a product.
  line = line.view(np.complex64)[..., 0]
  along = np.empty_like(line)
  np.subtract(line[..., 2:], line[..., :-2], out=along[..., 1:-1])
  np.subtract(line[..., 1], line[..., 0], out=along[..., 0])
  np.subtract(line[..., -1], line[..., -2], out=along[..., -1])
  side = along * (width * np.complex64(0.5j) / (np.abs(along) + np.float32(1e-9)))
  outline = np.concatenate([line + side, (line - side)[..., ::-1]], axis=-1)
  return outline[..., None].view(np.float32)


def fixed_point(points: np.ndarray, side: int) -> np.ndarray:
  """Picture units -> int32, OpenCV's fixed point, in a picture of `side` samples."""
  one = 1 << FRACTION_BITS
  # A sample's centre has integer coordinates in OpenCV: half a sample less; half a fixed-point step rounds.
  return (points * (side * one) - (one / 2 - 0.5)).astype(np.int32)


def box_of(fixed: np.ndarray, scale: int, size: int, margin: int = 0) -> tuple[int, int, int, int]:
  """Box of pixels x0, y0, x1, y1, inside the picture, round fixed-point points [N, 2] of `scale` samples a pixel."""
  one = scale << FRACTION_BITS
  left, top, width, height = cv2.boundingRect(fixed)
  x0, y0 = min(max(left // one - margin, 0), size - 1), min(max(top // one - margin, 0), size - 1)
  x1, y1 = min((left + width) // one + 2 + margin, size), min((top + height) // one + 2 + margin, size)
  return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def share(image: np.ndarray) -> np.ndarray:
  """uint8 -> float32 in [0, 1]; converted first, as a product of two types goes through NumPy's buffers."""
  image = image.astype(np.float32)
  image *= np.float32(1 / 255)
  return image


def halved(image: np.ndarray, times: int) -> np.ndarray:
  """Area-averaged to half its size, `times` over: OpenCV has a fast path for two, none for four."""
  height, width = image.shape[:2]
  for _ in range(times):
    height, width = height // 2, width // 2
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
  return image


def display(color: np.ndarray) -> list[float]:
  """Linear light [3] -> display values in 0..255; what is brighter than 1 saturates once it is drawn."""
  return [255 * math.sqrt(light) for light in color.tolist()]


def tinted(tone: np.ndarray, mix: np.ndarray | None, first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """`first` times `tone`, moved towards `second` by `mix` (float32 [h, w]), in display values: uint8 [h, w, 3]."""
  if mix is None:
    return cv2.merge([cv2.convertScaleAbs(tone, alpha=base) for base in display(first)])
  return cv2.merge(
    [
      cv2.addWeighted(tone, base, mix, other - base, 0, dtype=cv2.CV_8U)
      for base, other in zip(display(first), display(second), strict=True)
    ]
  )


def planes(image: np.ndarray) -> list[np.ndarray]:
  """[h, w, C] -> its channels, [h, w] each; `cv2.split` takes twice as long."""
  return [cv2.extractChannel(image, channel) for channel in range(image.shape[2])]


def shifted(plane: np.ndarray, moves: Sequence[tuple[float, float]]) -> np.ndarray:
  """The plane moved by each (x, y), in pixels -> float32 [N, h, w]; beyond its edge a plane goes on as it ends."""
  height, width = plane.shape
  # `getRectSubPix` takes a third of the time of `warpAffine`, but is wrong where a corner lies outside.
  margin = 2 + int(max(max(abs(x), abs(y)) for x, y in moves))
  wide = cv2.copyMakeBorder(plane, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
  middle_x, middle_y = margin + (width - 1) / 2, margin + (height - 1) / 2
  found = np.empty((len(moves), height, width), np.float32)
  for (x, y), one in zip(moves, found, strict=True):
    cv2.getRectSubPix(wide, (width, height), (middle_x - x, middle_y - y), one)
  return found


@functools.cache
def _filled(size: int, value: int) -> np.ndarray:
  return np.full((size, size), value, np.uint8)


class Canvas:
  """S x S pixels: `color` uint8 [S, S, 4], `label` uint8 [S, S].

  The fourth channel of `color` is the share of foreground, and the others are multiplied by it.
  """

  def __init__(self, size: int):
    self.size = size
    self.color = np.zeros((size, size, 4), np.uint8)
    self.label = np.zeros((size, size), np.uint8)

  def copy(self) -> 'Canvas':
    """A canvas of its own with the same on it."""
    other = copy.copy(self)
    other.color, other.label = self.color.copy(), self.label.copy()
    return other

  def centers(self, patch: Patch) -> tuple[np.ndarray, np.ndarray]:
    """Centres of the patch's columns and rows, float32 [1, w] and [h, 1], picture units."""
    columns = np.arange(patch.columns.start + 0.5, patch.columns.stop, dtype=np.float32)
    rows = np.arange(patch.rows.start + 0.5, patch.rows.stop, dtype=np.float32)
    return columns[None] * (1 / self.size), rows[:, None] * (1 / self.size)

  def cover(self, outline: np.ndarray, hairs: np.ndarray | None = None) -> Patch:
    """Area cover of a large polygon, in four samples a pixel; `hairs` [N, points, 2] stick out of it, faintly."""
    size, one = self.size, 2 << FRACTION_BITS
    fixed = fixed_point(outline, 2 * size)
    x0, y0, x1, y1 = box_of(fixed, 2, size, margin=0 if hairs is None else size // 32)
    image = np.zeros((2 * (y1 - y0), 2 * (x1 - x0)), np.uint8)
    offset = (-x0 * one, -y0 * one)
    if hairs is not None:
      lines = fixed_point(hairs, 2 * size) + np.array(offset, np.int32)
      cv2.polylines(image, list(lines), False, 64, max(1, round(size * 0.007)), cv2.LINE_8, FRACTION_BITS)
    cv2.fillPoly(image, [fixed], 255, cv2.LINE_8, FRACTION_BITS, offset)
    return Patch(slice(y0, y1), slice(x0, x1), halved(image, 1))

  def paint(self, patch: Patch, picture: np.ndarray, label: int) -> None:
    """Lays a `picture` uint8 [h, w, 3] over the patch; a pixel that is covered by half or more takes `label`."""
    cover = cv2.merge([patch.cover] * 4)
    layer = cv2.multiply(cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA), cover, scale=1 / 255)
    self._lay(patch.rows, patch.columns, layer, cover)
    here = self.label[patch.rows, patch.columns]
    _, most = cv2.threshold(patch.cover, 127, 255, cv2.THRESH_BINARY)
    cv2.copyTo(_filled(self.size, label)[: len(here), : here.shape[1]], most, here)

  def lay(self, rows: slice, columns: slice, layer: np.ndarray, label: np.ndarray) -> None:
    """Lays a `layer` uint8 [h, w, 4], made like `color`, over a box; `label` uint8 [h, w] rules where it is not 0."""
    self._lay(rows, columns, layer, cv2.merge([cv2.extractChannel(layer, 3)] * 4))
    cv2.copyTo(label, label, self.label[rows, columns])

  def _lay(self, rows: slice, columns: slice, layer: np.ndarray, cover: np.ndarray) -> None:
    here = self.color[rows, columns]
    cv2.add(cv2.multiply(here, cv2.bitwise_not(cover), scale=1 / 255), layer, here)
