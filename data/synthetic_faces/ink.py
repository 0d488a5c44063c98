"""Many small parts drawn at four samples a pixel, and laid on a canvas together."""

import math

import cv2
import numpy as np

from .canvas import FRACTION_BITS, Canvas, box_of, fixed_point, halved, share


class Ink:
  """Small strokes, four samples a pixel each way, inside one box of a canvas: many parts for the price of one patch.

  Points are in the ink's own units (OpenCV's fixed point): `points` converts, `length` converts lengths. Like ink,
  what is drawn later replaces what is below. `shade` collects soft shadows, laid over the ink at the end.
  """

  SCALE = 4

  def __init__(self, canvas: Canvas, corners: np.ndarray):
    self._canvas = canvas
    self._box = x0, y0, x1, y1 = box_of(fixed_point(corners, canvas.size), 1, canvas.size)
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
    origin = np.array(
      [(x0 * self.SCALE << FRACTION_BITS) + half, (y0 * self.SCALE << FRACTION_BITS) + half], np.float32
    )
    return (picture * self._unit).astype(np.float32) - origin

  def length(self, picture: float) -> float:
    """A length in picture units -> the ink's units."""
    return picture * self._unit

  @staticmethod
  def _value(color: np.ndarray, opacity: float) -> tuple[float, ...]:
    red, green, blue = color.tolist()
    full = 255.0 * opacity
    # Few colours are brighter than 1, and OpenCV saturates those that are.
    return full * math.sqrt(red), full * math.sqrt(green), full * math.sqrt(blue), full

  def fill(self, outlines: np.ndarray, color: np.ndarray, opacity: float = 1.0, labels: tuple[int, ...] = ()) -> None:
    """Fills polygons [K, N, 2] that do not overlap, and gives them the `labels` [K]; none leave the labels below."""
    fixed = list(outlines.astype(np.int32))
    cv2.fillPoly(self._ink, fixed, self._value(color, opacity), 0, FRACTION_BITS)
    for polygon, label in zip(fixed, labels, strict=bool(labels)):
      cv2.fillPoly(self._label, [polygon], label, 0, FRACTION_BITS)

  def strokes(self, lines: np.ndarray, width: float, color, opacity: float = 1.0) -> None:
    """Draws open lines [N, points, 2] with a round pen."""
    thickness = max(1, round(width / (1 << FRACTION_BITS)))
    cv2.polylines(
      self._ink,
      list(lines.astype(np.int32, order='C')),
      False,
      self._value(color, opacity),
      thickness,
      8,
      FRACTION_BITS,
    )

  def shade(self, outlines: np.ndarray, strength: float) -> None:
    """Darkens polygons [K, N, 2] by `strength` in [0, 1], softly."""
    cv2.fillPoly(self._shade, list(outlines.astype(np.int32)), 255.0 * strength, 0, FRACTION_BITS)

  def shade_lines(self, lines: np.ndarray, width: float, strength: float) -> None:
    """Darkens lines [K, N, 2] by `strength` in [0, 1], softly."""
    thickness = max(1, round(width / (1 << FRACTION_BITS)))
    cv2.polylines(
      self._shade, list(lines.astype(np.int32, order='C')), False, 255.0 * strength, thickness, 8, FRACTION_BITS
    )

  def keep_inside(self, outlines: np.ndarray) -> None:
    """Wipes away the ink outside the polygons [K, N, 2], on their rows and about as many above and below."""
    fixed = outlines.astype(np.int32)
    _, top, _, height = (side >> FRACTION_BITS for side in cv2.boundingRect(fixed.reshape(-1, 2)))
    first = max(top - height, 0)
    region = self._ink[first : top + 2 * height + 2]
    inside = np.zeros(region.shape[:2], np.uint8)
    cv2.fillPoly(inside, list(fixed), 255, 0, FRACTION_BITS, (0, -first << FRACTION_BITS))
    region[...] = cv2.copyTo(region, inside)

  def apply(self, tint: np.ndarray, blur: float) -> None:
    """Lays all on the canvas; shadows, blurred by `blur` picture units, multiply colour by `tint` [3] where full."""
    canvas, (x0, y0, x1, y1) = self._canvas, self._box
    here = canvas.color[:, y0:y1, x0:x1]
    ink = cv2.split(halved(self._ink, 2))
    bare = 1 - share(ink[3])
    sigma = max(blur * canvas.size, 0.3)
    reach = 2 * int(2.5 * sigma + 0.5) + 1
    shade = cv2.GaussianBlur(share(halved(self._shade, 2)), (reach, reach), sigma)
    for plane, drawn, factor in zip(here, ink, tint.tolist(), strict=False):
      value = np.sqrt(plane)
      value *= bare
      value += share(drawn)
      value *= value
      np.multiply(value, 1 + (factor - 1) * shade, out=plane)
    label = self._label[self.SCALE // 2 :: self.SCALE, self.SCALE // 2 :: self.SCALE]
    np.copyto(canvas.label[y0:y1, x0:x1], label, where=label > 0)
