"""Cluttered surroundings: what a picture holds besides the face, high in contrast and of no use to it."""

import math

import cv2
import numpy as np

from . import tiles
from .canvas import planes
from .scene import Dice

# Drawn at one resolution for all sizes, twice what is kept: backgrounds are out of focus.
SIDE = 144
_SHIFT = 4


def _color(dice: Dice, saturation: float = 0.7) -> tuple[float, float, float]:
  """Display colour, 0..255; muted more often than not."""
  unit = dice.unit
  red, green, blue = unit(), unit(), unit()
  least = min(red, green, blue)
  value, saturation = 255 * dice.range(0.06, 1.0), saturation * unit() ** 1.5
  grey = value * (1 - saturation)
  gain = value * saturation / max(max(red, green, blue) - least, 1e-3)
  return grey + gain * (red - least), grey + gain * (green - least), grey + gain * (blue - least)


def _fixed(points) -> np.ndarray:
  return ((np.array(points) * SIDE - 0.5) * (1 << _SHIFT) + 0.5).astype(np.int32)


def _polygon(image: np.ndarray, points, color) -> None:
  cv2.fillConvexPoly(image, _fixed(points), color, cv2.LINE_8, _SHIFT)


def _polygons(image: np.ndarray, corners: dict[tuple, list]) -> None:
  """Quadrilaterals by colour: together they cost a fraction of what they cost one by one."""
  for color, quads in corners.items():
    cv2.fillPoly(image, list(_fixed(quads).reshape(-1, 4, 2)), color, cv2.LINE_8, _SHIFT)


def _box(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, color) -> None:
  """An upright rectangle, its edges on whole pixels."""
  cv2.rectangle(image, (round(x0 * SIDE), round(y0 * SIDE)), (round(x1 * SIDE), round(y1 * SIDE)), color, -1)


def _disc(image: np.ndarray, x: float, y: float, rx: float, ry: float, tilt: float, color, thickness: int = -1) -> None:
  scale = SIDE * (1 << _SHIFT)
  axes = (max(1, round(rx * scale)), max(1, round(ry * scale)))
  cv2.ellipse(image, (round(x * scale), round(y * scale)), axes, tilt, 0, 360, color, thickness, cv2.LINE_8, _SHIFT)


def _bokeh(image: np.ndarray, dice: Dice) -> None:
  """Lights out of focus: they add up where they overlap."""
  hues = [_color(dice, 1.0) for _ in range(3)]
  for _ in range(2):
    lights = np.zeros_like(image)
    for _ in range(int(dice.range(4, 10))):
      x, y, radius, dim = dice.unit(), dice.unit(), dice.range(0.015, 0.085), dice.range(0.4, 0.8)
      color = tuple(dim * c for c in dice.choice(hues))
      _disc(lights, x, y, radius, radius, 0, color)
      _disc(lights, x, y, radius, radius, 0, tuple(1.3 * c for c in color), 1)
    cv2.add(image, lights, image)


def _foliage(image: np.ndarray, dice: Dice) -> None:
  """Leaves, dark ones first."""
  base = dice.range(40, 120), dice.range(70, 160), dice.range(20, 80)
  count = int(dice.range(20, 32))
  for i in range(count):
    light = 0.25 + 1.05 * i / count * dice.range(0.6, 1.3)
    color = tuple(min(c * light, 255) for c in base)
    length = dice.range(0.05, 0.15)
    _disc(image, dice.unit(), dice.unit(), length, length * dice.range(0.25, 0.5), dice.range(0, 180), color)


def _stripes(image: np.ndarray, dice: Dice) -> None:
  """Slats, curtains, panelling."""
  tilt, width = dice.choice([0.0, 0.0, np.pi / 2, np.pi / 2, dice.range(0, np.pi)]), dice.range(0.025, 0.10)
  colors = [_color(dice), _color(dice), _color(dice, 0.4)]
  at, spans = -0.8, {}
  while at < 0.8:
    step = width * dice.range(0.5, 1.5)
    spans.setdefault(dice.choice(colors), []).append(((at, -1), (at, 1), (at + step, 1), (at + step, -1)))
    at += step * dice.range(1.0, 2.0)
  cos, sin = math.cos(tilt), math.sin(tilt)
  turn = np.array([[cos, sin], [-sin, cos]])
  _polygons(image, {color: 0.5 + np.array(quads) @ turn for color, quads in spans.items()})


def _bricks(image: np.ndarray, dice: Dice) -> None:
  """A wall of bricks or tiles."""
  base, rows = _color(dice, 0.6), int(dice.range(4, 9))
  height, width = 1 / rows, dice.range(1.6, 3.2) / rows
  for row in range(rows + 1):
    x = -width * dice.unit()
    while x < 1:
      tint = dice.range(0.65, 1.25)
      color = tuple(min(c * tint, 255) for c in base)
      y, gap = row * height, 0.10 * height
      _box(image, x + gap, y + gap, x + width - gap, y + height - gap, color)
      x += width


def _shelf(image: np.ndarray, dice: Dice) -> None:
  """Shelves full of books and boxes."""
  y, colors, wood = dice.range(0.02, 0.2), [_color(dice) for _ in range(14)], _color(dice, 0.5)
  books, bands = {}, []
  while y < 1.2:
    height, x = dice.range(0.2, 0.36), 0.0
    while x < 1:
      width, tall = dice.range(0.03, 0.10), height * dice.range(0.55, 0.95)
      lean = dice.range(-0.02, 0.02)
      books.setdefault(dice.choice(colors), []).append(
        ((x, y), (x + width, y), (x + width + lean, y - tall), (x + lean, y - tall))
      )
      if width > 0.06:
        band = y - tall * dice.range(0.3, 0.8)
        bands.append((x, band - 0.02, x + width, band))
      x += width * dice.range(1.0, 1.2)
    bands.append((0, y, 1, y + 0.025))
    y += height + 0.03
  _polygons(image, books)
  for x0, y0, x1, y1 in bands:
    _box(image, x0, y0, x1, y1, wood if x1 == 1 else dice.choice(colors))


def _windows(image: np.ndarray, dice: Dice) -> None:
  """Buildings with lit windows."""
  x = -0.05
  while x < 1:
    width, top = dice.range(0.12, 0.32), dice.range(-0.1, 0.5)
    wall, glass = _color(dice, 0.4), [_color(dice, 0.5), _color(dice, 0.9)]
    _box(image, x, top, x + width, 1, wall)
    step = dice.range(0.075, 0.125)
    for gy in np.arange(top + 0.03, 1, step * 1.3).tolist():
      for gx in np.arange(x + 0.02, x + width - step * 0.6, step).tolist():
        if dice.chance(0.75):
          _box(image, gx, gy, gx + 0.55 * step, gy + 0.8 * step, dice.choice(glass))
    x += width * dice.range(0.9, 1.2)


def _shapes(image: np.ndarray, dice: Dice) -> None:
  """Things of any kind."""
  for _ in range(int(dice.range(8, 15))):
    x, y, size = dice.unit(), dice.unit(), dice.range(0.05, 0.24)
    if dice.chance(0.45):
      _disc(image, x, y, size, size * dice.range(0.4, 1), dice.range(0, 180), _color(dice))
    else:
      turn = dice.range(0, np.pi)
      angles = turn + np.arange(int(dice.range(3, 7))) * 2 * np.pi / int(dice.range(4, 6))
      _polygon(image, np.stack([x + size * np.cos(angles), y + size * np.sin(angles)], 1), _color(dice))


def _writing(image: np.ndarray, dice: Dice) -> None:
  """Lines of strokes that look like words, as on a poster or a press wall."""
  if dice.chance(0.5):
    image[:] = _color(dice, 0.5)
  ink, unit = _color(dice), dice.unit
  y = dice.range(0, 0.1)
  while y < 1:
    height, x = dice.range(0.09, 0.18), dice.range(-0.05, 0.1)
    letters = []
    while x < 1:
      letters.append([(x + 0.6 * height * unit(), y + height * unit()) for _ in range(4)])
      x += height * (0.75 if dice.chance(0.82) else 1.6)
    cv2.polylines(image, list(_fixed(letters)), False, ink, max(1, round(height * 0.13 * SIDE)), cv2.LINE_8, _SHIFT)
    y += height * dice.range(1.4, 2.2)


def _crowd(image: np.ndarray, dice: Dice) -> None:
  """People far behind."""
  for _ in range(int(dice.range(4, 9))):
    x, y, size = dice.unit(), dice.range(0.15, 0.75), dice.range(0.05, 0.11)
    tone = dice.choice([(232, 190, 160), (190, 140, 105), (120, 82, 60)])
    _disc(image, x, y + 3.4 * size, 1.9 * size, 2.4 * size, 0, _color(dice))
    _disc(
      image, x, y - 0.25 * size, 1.02 * size, 1.15 * size, 0, dice.choice([(30, 22, 20), (90, 60, 40), (190, 150, 100)])
    )
    _disc(image, x, y + 0.1 * size, 0.8 * size, size, 0, tone)


_KINDS = (_bokeh, _foliage, _stripes, _bricks, _shelf, _windows, _shapes, _writing, _crowd)


def draw_backdrop(dice: Dice) -> list[np.ndarray]:
  """One background: its three planes, float32 [SIDE / 2, SIDE / 2], display values."""
  corners = np.array([[_color(dice), _color(dice)], [_color(dice), _color(dice)]], np.uint8)
  image = cv2.resize(corners, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
  blur = dice.range(0.004, 0.012)
  if not dice.chance(0.12):
    for kind in {dice.choice(_KINDS): 0, dice.choice(_KINDS): 0} if dice.chance(0.5) else [dice.choice(_KINDS)]:
      kind(image, dice)
    if dice.chance(0.35):
      blur = dice.range(0.015, 0.03)
  # What is out of focus needs half the pixels only; halving blurs by about 0.7 itself.
  half = SIDE // 2
  image = cv2.resize(image, (half, half), interpolation=cv2.INTER_AREA).astype(np.float32)
  sigma = math.sqrt(max((blur * SIDE) ** 2 - 0.5, 0.04)) / 2
  reach = 2 * int(2.2 * sigma + 0.5) + 1
  if reach > 1:
    image = cv2.GaussianBlur(image, (reach, reach), sigma)
  exposure = math.sqrt(dice.range(0.55, 1.1))
  offset, depth = int(dice.range(0, tiles.SIDE - half)), 0.5 * dice.range(0, 0.16)
  cloud = tiles.clouds()[offset : offset + half, offset : offset + half] * (depth * exposure) + exposure
  return [plane * cloud for plane in planes(image)]
