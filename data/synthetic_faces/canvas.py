"""A painter's canvas: antialiased cover masks, colours in linear light, and a label map that is never blended.

Points are [N, 2] float arrays (x, y) in picture units: (0, 0) is the picture's upper left corner, (1, 1) its lower right
one, whatever the number of pixels. Colours are float32 [3], linear light in [0, 1], and planes come first ([3, H, W]):
NumPy broadcasts a mask over leading axes many times faster than over trailing ones.
"""

import functools
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
  """Display colour in 0..255 -> float32 [3], linear light in [0, 1]. The transfer curve is a square, near enough to sRGB."""
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
  cos, sin = np.cos(tilt), np.sin(tilt)
  u, v = unit[:, 0] * rx, unit[:, 1] * ry
  return np.stack([x + u * cos - v * sin, y + u * sin + v * cos], axis=1)


@functools.cache
def _circle(count: int) -> np.ndarray:
  angle = np.linspace(0, 2 * np.pi, count, endpoint=False, dtype=np.float32)
  return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ribbon(line: np.ndarray, width: np.ndarray | float) -> np.ndarray:
  """Outline of a line [N, 2] drawn with a pen of (varying) full width, in the line's own units -> [2N, 2]."""
  along = np.empty_like(line)
  along[1:-1] = line[2:] - line[:-2]
  along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
  half = width / (2 * np.sqrt(along[:, 0] * along[:, 0] + along[:, 1] * along[:, 1]) + 1e-9)
  side = np.empty_like(line)
  side[:, 0], side[:, 1] = -along[:, 1] * half, along[:, 0] * half
  return np.concatenate([line + side, (line - side)[::-1]])


def box_of(outlines: Sequence[np.ndarray], size: int, margin: float = 0.0) -> tuple[int, int, int, int]:
  """Smallest box of pixels x0, y0, x1, y1 round the points and a margin (picture units), at least a pixel, inside."""
  every = outlines[0] if len(outlines) == 1 else np.concatenate(outlines)
  (low_x, low_y), (high_x, high_y) = every.min(axis=0).tolist(), every.max(axis=0).tolist()
  x0, y0 = (min(max(int((low - margin) * size), 0), size - 1) for low in (low_x, low_y))
  x1, y1 = (min(max(int((high + margin) * size) + 1, 1), size) for high in (high_x, high_y))
  return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)


def fixed_point(outlines: Sequence[np.ndarray], x0: int, y0: int, size: int, scale: int) -> list[np.ndarray]:
  """Picture units -> OpenCV's fixed-point coordinates in a box that starts at pixel (x0, y0), `scale` samples a pixel."""
  one = 1 << FRACTION_BITS
  # A sample's centre has integer coordinates in OpenCV; the last half rounds.
  origin = np.array([x0 * scale * one + one / 2 - 0.5, y0 * scale * one + one / 2 - 0.5], np.float32)
  return [(o * np.float32(size * scale * one) - origin).astype(np.int32) for o in outlines]


def halved(image: np.ndarray, times: int) -> np.ndarray:
  """Area-averaged to half its size, `times` over: OpenCV has a fast path for two, none for four."""
  for _ in range(times):
    image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
  return image


class Ink:
  """Small opaque strokes, four samples a pixel each way, inside one box of a canvas: many parts for the price of one patch.

  Points are in the ink's own units (OpenCV's fixed point): `points` converts, `length` converts lengths. Like ink, what is
  drawn later replaces what is below. `shade` collects soft shadows, laid over the ink at the end.
  """

  SCALE = 4

  def __init__(self, canvas: 'Canvas', corners: np.ndarray):
    self._canvas = canvas
    self._box = x0, y0, x1, y1 = box_of([corners], canvas.size)
    shape = ((y1 - y0) * self.SCALE, (x1 - x0) * self.SCALE)
    # Display values times opacity, opacity last: premultiplied, so that averaging keeps edges free of halos.
    self._ink = np.zeros((*shape, 4), np.uint8)
    self._shade = np.zeros(shape, np.uint8)
    self._label = np.zeros(shape, np.uint8)
    self._unit = canvas.size * self.SCALE << FRACTION_BITS

  def points(self, picture: np.ndarray) -> np.ndarray:
    """Picture units -> float32, the ink's units."""
    x0, y0, _, _ = self._box
    half = (1 << FRACTION_BITS) / 2 - 0.5
    origin = np.array([(x0 * self.SCALE << FRACTION_BITS) + half, (y0 * self.SCALE << FRACTION_BITS) + half], np.float32)
    return (picture * self._unit).astype(np.float32) - origin

  def length(self, picture: float) -> float:
    """A length in picture units -> the ink's units."""
    return picture * self._unit

  @staticmethod
  def _value(color, opacity: float) -> tuple[float, ...]:
    red, green, blue = map(float, color)
    full = 255.0 * opacity
    return full * min(max(red, 0.0), 1.0) ** 0.5, full * min(max(green, 0.0), 1.0) ** 0.5, full * min(max(blue, 0.0), 1.0) ** 0.5, full

  def fill(self, outline: np.ndarray, color, opacity: float = 1.0, label: int = 0) -> None:
    """Fills a polygon; `label` 0 leaves the label below."""
    fixed = [outline.astype(np.int32)]
    cv2.fillPoly(self._ink, fixed, self._value(color, opacity), 0, FRACTION_BITS)
    if label:
      cv2.fillPoly(self._label, fixed, label, 0, FRACTION_BITS)

  def strokes(self, lines: np.ndarray, width: float, color, opacity: float = 1.0) -> None:
    """Draws open lines [N, points, 2] with a round pen."""
    thickness = max(1, round(width / (1 << FRACTION_BITS)))
    cv2.polylines(self._ink, list(lines.astype(np.int32, order='C')), False, self._value(color, opacity), thickness, 8, FRACTION_BITS)

  def shade(self, outline: np.ndarray, strength: float) -> None:
    """Darkens a polygon by `strength` in [0, 1], softly."""
    cv2.fillPoly(self._shade, [outline.astype(np.int32)], 255.0 * strength, 0, FRACTION_BITS)

  def shade_line(self, line: np.ndarray, width: float, strength: float) -> None:
    """Darkens a line by `strength` in [0, 1], softly."""
    thickness = max(1, round(width / (1 << FRACTION_BITS)))
    cv2.polylines(self._shade, [line.astype(np.int32)], False, 255.0 * strength, thickness, 8, FRACTION_BITS)

  def keep_inside(self, outline: np.ndarray) -> None:
    """Wipes away the ink outside `outline`, in a box about three times its size."""
    fixed = outline.astype(np.int32)
    (x0, y0), (x1, y1) = (fixed.min(0) >> FRACTION_BITS).tolist(), (fixed.max(0) >> FRACTION_BITS).tolist()
    reach = (y1 - y0) + (x1 - x0) // 2
    left, top = max(x0 - reach, 0), max(y0 - reach, 0)
    region = self._ink[top : y1 + reach, left : x1 + reach]
    inside = np.zeros(region.shape[:2], np.uint8)
    cv2.fillPoly(inside, [fixed - np.array([left << FRACTION_BITS, top << FRACTION_BITS], np.int32)], 255, 0, FRACTION_BITS)
    region[...] = cv2.bitwise_and(region, region, mask=inside)

  def apply(self, tint: np.ndarray, blur: float) -> None:
    """Lays everything on the canvas; shadows, blurred by `blur` picture units, multiply the colour by `tint` [3] where full."""
    canvas, (x0, y0, x1, y1) = self._canvas, self._box
    here = canvas.color[:, y0:y1, x0:x1]
    ink = cv2.split(halved(self._ink, 2))
    bare = 1 - ink[3] * np.float32(1 / 255)
    shade = cv2.GaussianBlur(halved(self._shade, 2), (0, 0), max(blur * canvas.size, 0.3)) * np.float32(1 / 255)
    for plane, drawn, factor in zip(here, ink, tint.tolist(), strict=False):
      value = np.sqrt(plane) * bare + drawn * np.float32(1 / 255)
      np.multiply(value * value, 1 + (factor - 1) * shade, out=plane)
    label = self._label[self.SCALE // 2 :: self.SCALE, self.SCALE // 2 :: self.SCALE]
    np.copyto(canvas.label[y0:y1, x0:x1], label, where=label > 0)


class Canvas:
  """`size` x `size` pixels: colour float32 [3, S, S] in linear light, label uint8 [S, S], cover of the foreground [S, S]."""

  def __init__(self, size: int):
    self.size = size
    self.color = np.zeros((3, size, size), np.float32)
    self.label = np.zeros((size, size), np.uint8)
    self.solid = np.zeros((size, size), np.float32)

  def cover(self, *outlines: np.ndarray) -> Patch:
    """Exact-area cover of polygons, filled together by the even-odd rule, so a second outline inside cuts a hole."""
    size = self.size
    x0, y0, x1, y1 = box_of(outlines, size)
    # Small parts need the finer grid: an eye is six pixels high.
    halvings = 2 if (x1 - x0) * (y1 - y0) < size * size // 3 else 1
    scale = 1 << halvings
    image = np.zeros(((y1 - y0) * scale, (x1 - x0) * scale), np.uint8)
    cv2.fillPoly(image, fixed_point(outlines, x0, y0, size, scale), 255, 0, FRACTION_BITS)
    return Patch(slice(y0, y1), slice(x0, x1), halved(image, halvings) * np.float32(1 / 255))

  def strokes(self, lines: Sequence[np.ndarray], width: float) -> Patch:
    """Cover of open lines drawn with a round pen, `width` in picture units, at least a pixel."""
    size = self.size
    x0, y0, x1, y1 = box_of(lines, size, margin=width)
    image = np.zeros((y1 - y0, x1 - x0), np.uint8)
    thickness = max(1, round(width * size))
    cv2.polylines(image, fixed_point(lines, x0, y0, size, 1), False, 255, thickness, cv2.LINE_AA, FRACTION_BITS)
    return Patch(slice(y0, y1), slice(x0, x1), image * np.float32(min(width * size, 1) / 255))

  def paint(self, patch: Patch, color: np.ndarray, label: int | None = None, opacity: np.ndarray | float = 1.0) -> None:
    """Lays `color` ([3] or [3, h, w]) over the patch; where it covers half a pixel or more, that pixel takes `label`."""
    here = self.color[:, patch.rows, patch.columns]
    color = np.asarray(color, np.float32)
    here += (color.reshape(3, *(color.shape[1:] or (1, 1))) - here) * (patch.cover * np.asarray(opacity, np.float32))
    if label is not None:
      self.mark(patch, label)

  def mark(self, patch: Patch, label: int) -> None:
    """Gives the patch to `label` and to the foreground, leaving its colour alone."""
    np.copyto(self.label[patch.rows, patch.columns], np.uint8(label), where=patch.cover >= 0.5)
    solid = self.solid[patch.rows, patch.columns]
    np.maximum(solid, patch.cover, out=solid)

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
