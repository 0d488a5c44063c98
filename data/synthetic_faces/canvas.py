"""A painter's canvas: antialiased cover masks, colours in linear light, and a label map that is never blended.

Points are [N, 2] float arrays (x, y) in picture units: (0, 0) is the picture's upper left corner, (1, 1) its lower
right one, whatever the number of pixels. Colours are float32 [3], linear light in [0, 1], and planes come first
([3, H, W]): NumPy broadcasts a mask over leading axes many times faster than over trailing ones.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

# fillPoly reads fixed-point coordinates with this many fractional bits.
FRACTION_BITS = 4


class Patch(NamedTuple):
  """A box of the canvas and how much of each of its pixels is covered: float32 [h, w] in [0, 1]."""

  rows: slice
  columns: slice
  cover: np.ndarray


def srgb(red: float, green: float, blue: float) -> np.ndarray:
  """Display colour in 0..255 -> float32 [3], linear light in [0, 1]; its curve is a square, close to sRGB's."""
  return np.square(np.array([red, green, blue], np.float32) / 255)


def clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
  """`np.clip`, several times faster on small arrays."""
  return np.minimum(np.maximum(x, low), high)


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


def curve(points: np.ndarray, samples: int = 6, closed: bool = False) -> np.ndarray:
  """Smooth curve through control points [N, D] -> [M, D], `samples` points a segment."""
  points = np.asarray(points, np.float32)
  return _spline_basis(len(points), samples, closed) @ points


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
  """Outline of lines [..., N, 2] drawn with a pen of (varying) full width, in their own units -> [..., 2N, 2]."""
  along = np.empty_like(line)
  np.subtract(line[..., 2:, :], line[..., :-2, :], out=along[..., 1:-1, :])
  np.subtract(line[..., 1, :], line[..., 0, :], out=along[..., 0, :])
  np.subtract(line[..., -1, :], line[..., -2, :], out=along[..., -1, :])
  x, y = along[..., 0], along[..., 1]
  half = width / (2 * np.sqrt(x * x + y * y) + 1e-9)
  count = line.shape[-2]
  outline = np.empty((*line.shape[:-2], 2 * count, 2), line.dtype)
  side = np.empty_like(line)
  np.multiply(y, -half, out=side[..., 0])
  np.multiply(x, half, out=side[..., 1])
  np.add(line, side, out=outline[..., :count, :])
  np.subtract(line, side, out=outline[..., : count - 1 : -1, :])
  return outline


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


class Canvas:
  """S x S pixels: `color` float32 [3, S, S], linear light; `label` uint8 [S, S]; `solid`, how much is foreground."""

  def __init__(self, size: int):
    self.size = size
    self.color = np.zeros((3, size, size), np.float32)
    self.label = np.zeros((size, size), np.uint8)
    self.solid = np.zeros((size, size), np.float32)

  def cover(self, *outlines: np.ndarray) -> Patch:
    """Exact-area cover of polygons, filled together by the even-odd rule, so a second outline inside cuts a hole."""
    size = self.size
    fixed = [fixed_point(outline, 4 * size) for outline in outlines]
    x0, y0, x1, y1 = box_of(fixed[0] if len(fixed) == 1 else np.concatenate(fixed), 4, size)
    halvings, bits = 2, FRACTION_BITS
    # Small parts need the finer grid: an earring is six pixels high.
    if (x1 - x0) * (y1 - y0) > size * size // 16:
      halvings, bits = 1, FRACTION_BITS + 1
      # The centre of a sample twice as large lies half a small one further on.
      for points in fixed:
        points -= 1 << FRACTION_BITS - 1
    one = 4 << FRACTION_BITS
    image = np.zeros(((y1 - y0) << halvings, (x1 - x0) << halvings), np.uint8)
    cv2.fillPoly(image, fixed, 255, cv2.LINE_8, bits, (-x0 * one, -y0 * one))
    return Patch(slice(y0, y1), slice(x0, x1), share(halved(image, halvings)))

  def strokes(self, lines: np.ndarray, width: float) -> Patch:
    """Cover of open lines [N, points, 2] drawn with a round pen, `width` in picture units, at least half a pixel."""
    size = self.size
    thickness = max(1, round(2 * width * size))
    fixed = fixed_point(lines, 2 * size)
    x0, y0, x1, y1 = box_of(fixed.reshape(-1, 2), 2, size, margin=thickness)
    image = np.zeros((2 * (y1 - y0), 2 * (x1 - x0)), np.uint8)
    fixed -= np.array([2 * x0 << FRACTION_BITS, 2 * y0 << FRACTION_BITS], np.int32)
    cv2.polylines(image, list(fixed), False, 255, thickness, cv2.LINE_8, FRACTION_BITS)
    return Patch(slice(y0, y1), slice(x0, x1), share(halved(image, 1)) * min(2 * width * size, 1))

  def paint(
    self,
    patch: Patch,
    color: np.ndarray | Sequence[np.ndarray],
    label: int | None = None,
    opacity: np.ndarray | float = 1.0,
  ) -> None:
    """Lays `color` ([3], or three [h, w]) over the patch; a pixel that is covered by half or more takes `label`."""
    alpha = patch.cover if isinstance(opacity, float) and opacity == 1 else patch.cover * opacity
    bare = 1 - alpha
    if isinstance(color, np.ndarray) and color.ndim == 1:
      color = color.tolist()
    for plane, tint in zip(self.color[:, patch.rows, patch.columns], color, strict=True):
      # In this order an opaque layer hides what is below it to the last bit.
      plane *= bare
      plane += tint * alpha
    if label is not None:
      self.mark(patch, label)

  def mark(self, patch: Patch, label: int) -> None:
    """Gives the patch to `label` and to the foreground, leaving its colour alone."""
    np.copyto(self.label[patch.rows, patch.columns], np.uint8(label), where=patch.cover >= 0.5)
    solid = self.solid[patch.rows, patch.columns]
    cv2.max(solid, patch.cover, solid)

  def shade(self, patch: Patch, factor: np.ndarray | float, strength: np.ndarray | float = 1.0) -> None:
    """Multiplies the colour under the patch by `factor` (a number, [3], or [h, w])."""
    here = self.color[:, patch.rows, patch.columns]
    factor = np.asarray(factor, np.float32)
    if factor.ndim == 1:
      factor = factor[:, None, None]
    here *= 1 + (factor - 1) * (patch.cover * strength)


def without(patch: Patch, other: Patch) -> Patch:
  """The patch where `other` does not cover it."""
  cover = patch.cover.copy()
  rows = slice(max(patch.rows.start, other.rows.start), min(patch.rows.stop, other.rows.stop))
  columns = slice(max(patch.columns.start, other.columns.start), min(patch.columns.stop, other.columns.stop))
  if rows.start < rows.stop and columns.start < columns.stop:
    mine = (shifted(rows, patch.rows), shifted(columns, patch.columns))
    cover[mine] *= 1 - other.cover[shifted(rows, other.rows), shifted(columns, other.columns)]
  return Patch(patch.rows, patch.columns, cover)


def within(patch: Patch, other: Patch) -> Patch:
  """The part of the patch that `other` covers too."""
  cover = np.zeros_like(patch.cover)
  rows = slice(max(patch.rows.start, other.rows.start), min(patch.rows.stop, other.rows.stop))
  columns = slice(max(patch.columns.start, other.columns.start), min(patch.columns.stop, other.columns.stop))
  if rows.start < rows.stop and columns.start < columns.stop:
    mine = (shifted(rows, patch.rows), shifted(columns, patch.columns))
    cover[mine] = patch.cover[mine] * other.cover[shifted(rows, other.rows), shifted(columns, other.columns)]
  return Patch(patch.rows, patch.columns, cover)


def shifted(inner: slice, outer: slice) -> slice:
  """`inner`, counted from the start of `outer`."""
  return slice(inner.start - outer.start, inner.stop - outer.start)
