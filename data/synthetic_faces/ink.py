"""Many small parts drawn at several samples a pixel, and laid on a canvas together."""

import functools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from .canvas import FRACTION_BITS, Canvas, box_of, display, fixed_point, halved

# What full shade leaves of red, green and blue light: creases of skin glow red.
_CREASE = np.array([0.42, 0.30, 0.28, 1.0], np.float32)


class Ink:
  """Parts of one colour each, `1 << halvings` samples a pixel each way, inside one box: many for the price of a layer.

  Points are in the ink's own units (OpenCV's fixed point): `points` converts, `length` converts lengths. Like ink,
  what is drawn later replaces what is below, whatever its opacity. `shade` collects soft shadows, laid over the ink
  at the end. The box holds `points` [N, 2] and a `margin`, picture units.
  """

  def __init__(self, canvas: Canvas, points: np.ndarray, margin: float = 0.0, halvings: int = 2):
    self._canvas, self._halvings = canvas, halvings
    size = canvas.size
    self._box = x0, y0, x1, y1 = box_of(fixed_point(points, size), 1, size, margin=math.ceil(margin * size))
    height, width = y1 - y0, x1 - x0
    # Display values times opacity, opacity last: premultiplied, so that averaging keeps edges free of halos.
    self._ink = np.zeros((height << halvings, width << halvings, 4), np.uint8)
    self._label = np.zeros((height << halvings, width << halvings), np.uint8)
    # Shadows are soft: half the samples do.
    self._shade = np.zeros((height << halvings - 1, width << halvings - 1), np.uint8)
    half, bits = (1 << FRACTION_BITS) / 2 - 0.5, halvings + FRACTION_BITS
    self._unit = np.float32(size << bits)
    self._origin = np.array([(x0 << bits) + half, (y0 << bits) + half], np.float32)

  def points(self, picture: np.ndarray) -> np.ndarray:
    """Picture units -> float32, the ink's units."""
    return picture * self._unit - self._origin

  def length(self, picture: float) -> float:
    """A length in picture units -> the ink's units."""
    return picture * float(self._unit)

  @staticmethod
  def _value(color: np.ndarray, opacity: float) -> tuple[float, ...]:
    red, green, blue = display(color)
    return opacity * red, opacity * green, opacity * blue, opacity * 255

  @staticmethod
  def _fixed(points: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    if isinstance(points, np.ndarray):
      return list(points.astype(np.int32, order='C'))
    return [one.astype(np.int32) for one in points]

  def fill(
    self,
    outlines: np.ndarray | Sequence[np.ndarray],
    color: np.ndarray,
    opacity: float = 1.0,
    labels: Sequence[int] = (),
  ) -> None:
    """Fills polygons [K, N, 2] by the even-odd rule. `labels` has one for all of them, or one for each, or none, which
    leaves the labels below."""
    fixed = self._fixed(outlines)
    cv2.fillPoly(self._ink, fixed, self._value(color, opacity), 0, FRACTION_BITS)
    if len(labels) == 1:
      cv2.fillPoly(self._label, fixed, labels[0], 0, FRACTION_BITS)
    elif labels:
      for polygon, label in zip(fixed, labels, strict=True):
        cv2.fillPoly(self._label, [polygon], label, 0, FRACTION_BITS)

  def strokes(
    self,
    lines: np.ndarray | Sequence[np.ndarray],
    width: float,
    color: np.ndarray,
    opacity: float = 1.0,
    label: int = 0,
  ) -> None:
    """Draws open lines [K, N, 2] with a round pen; `label` 0 leaves the labels below."""
    thickness = max(1, round(width / (1 << FRACTION_BITS)))
    fixed = self._fixed(lines)
    cv2.polylines(self._ink, fixed, False, self._value(color, opacity), thickness, 8, FRACTION_BITS)
    if label:
      cv2.polylines(self._label, fixed, False, label, thickness, 8, FRACTION_BITS)

  def shade(self, outlines: np.ndarray | Sequence[np.ndarray], strength: float) -> None:
    """Darkens polygons [K, N, 2] by `strength` in [0, 1], softly."""
    fixed = self._fixed(outlines)
    cv2.fillPoly(self._shade, fixed, 255 * strength, 0, FRACTION_BITS + 1)

  def shade_lines(self, lines: np.ndarray | Sequence[np.ndarray], width: float, strength: float) -> None:
    """Darkens lines [K, N, 2] by `strength` in [0, 1], softly."""
    thickness = max(1, round(width / (2 << FRACTION_BITS)))
    fixed = self._fixed(lines)
    cv2.polylines(self._shade, fixed, False, 255 * strength, thickness, 8, FRACTION_BITS + 1)

  def keep_inside(self, outlines: np.ndarray) -> None:
    """Wipes away the ink outside the polygons [K, N, 2], on their rows and about as many above and below."""
    fixed = outlines.astype(np.int32)
    _, top, _, height = (side >> FRACTION_BITS for side in cv2.boundingRect(fixed.reshape(-1, 2)))
    first = max(top - height, 0)
    region = self._ink[first : top + 2 * height + 2]
    inside = np.zeros(region.shape[:2], np.uint8)
    cv2.fillPoly(inside, list(fixed), 255, 0, FRACTION_BITS, (0, -first << FRACTION_BITS))
    region[...] = cv2.copyTo(region, inside)

  def apply(self, blur: float = 0.0) -> None:
    """Lays all on the canvas, then shadows, blurred by `blur` picture units."""
    x0, y0, x1, y1 = self._box
    rows, columns = slice(y0, y1), slice(x0, x1)
    middle, step = 1 << self._halvings - 1, 1 << self._halvings
    self._canvas.lay(rows, columns, halved(self._ink, self._halvings), self._label[middle::step, middle::step].copy())
    if blur:
      sigma = max(blur * self._canvas.size, 0.3)
      reach = 2 * int(2.5 * sigma + 0.5) + 1
      shade = halved(self._shade, self._halvings - 1).astype(np.float32)
      shade = cv2.convertScaleAbs(cv2.GaussianBlur(shade, (reach, reach), sigma))
      here = self._canvas.color[rows, columns]
      cv2.multiply(here, cv2.LUT(cv2.merge([shade] * 4), _creases()), here, scale=1 / 255)


@functools.cache
def _creases() -> np.ndarray:
  """Shade -> what it leaves of display values: uint8 [256, 1, 4]."""
  left = 1 + (_CREASE - 1) * np.linspace(0, 1, 256, dtype=np.float32)[:, None, None]
  return (255 * np.sqrt(left) + 0.5).astype(np.uint8)
