"""Neck, shoulders, clothes and necklace."""

import functools
import itertools

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, coordinates, curve, ellipse, moved, tinted
from .head import Head, half_grid
from .ink import Ink
from .lighting import Relief
from .scene import Scene

_NECK, _CLOTH, _NECKLACE = labels.index('neck'), labels.index('cloth'), labels.index('neck_l')

_NECK_TINT = np.array([0.97, 0.94, 0.93], np.float32)
_WHITE, _SHIRT = np.ones(3, np.float32), np.array([0.78, 0.80, 0.84], np.float32)
_MIRROR = np.array([-1, 1], np.float32)
_BELOW = np.array([0, 0.03], np.float32)
# Half of each neckline, from the middle of the trapezius down to the middle of the chest; x in half-widths of the neck.
_NECKLINES = {
  'crew': [(1.12, 2.0), (0.85, 2.22), (0.45, 2.36), (0, 2.41)],
  'scoop': [(1.6, 2.14), (1.3, 2.42), (0.7, 2.66), (0, 2.74)],
  'vee': [(1.25, 2.05), (0.8, 2.36), (0.4, 2.66), (0, 2.95)],
  'shirt': [(1.0, 1.90), (0.7, 2.15), (0.33, 2.38), (0, 2.62)],
  'suit': [(1.02, 1.92), (0.72, 2.12), (0.36, 2.28), (0, 2.36)],
  'turtle': [(1.06, 1.62), (0.8, 1.72), (0.4, 1.78), (0, 1.80)],
  'hood': [(1.25, 1.98), (0.95, 2.25), (0.5, 2.44), (0, 2.50)],
  'straps': [(1.7, 2.2), (1.5, 2.5), (0.8, 2.72), (0, 2.78)],
}
_TRIMMED = ('crew', 'turtle', 'hood', 'scoop')
_FRONT = np.array([(-0.8, 2.0), (0, 2.36), (0.8, 2.0), (0.62, 2.6), (0.1, 4.2), (-0.1, 4.2), (-0.62, 2.6)], np.float32)
_TIE = np.array([(-0.11, 2.36), (0.11, 2.36), (0.075, 2.54), (0.17, 3.2), (-0.17, 3.2), (-0.075, 2.54)], np.float32)
_FLAP = np.array([(1.12, 1.84), (1.22, 2.06), (0.62, 2.68), (0.02, 2.44), (0.55, 2.2)], np.float32)
_LAPEL = np.array([(1.25, 2.02), (1.35, 2.35), (0.98, 2.75), (0.3, 3.4), (0.28, 3.0), (0.66, 2.55)], np.float32)
_NECKLACE_LOW = {'chain': 2.42, 'beads': 2.30, 'pendant': 2.46}
_BONES_STEP = 40
_BEAD = ellipse(0, 0, 1, 1, count=10)


def _wave(phase: np.ndarray) -> np.ndarray:
  return clip(0.5 + 2.2 * np.sin(phase), 0, 1)


# Share of the second colour at body points.
_PATTERNS = {
  'stripes': lambda x, y: _wave(24 * y),
  'bars': lambda x, y: _wave(20 * x),
  'plaid': lambda x, y: 0.5 * _wave(13 * x) + 0.5 * _wave(13 * y),
  'dots': lambda x, y: clip(4 * (np.sin(19 * x) * np.sin(19 * y) - 0.35), 0, 1),
}


@functools.cache
def _bones() -> np.ndarray:
  """How far collar bones and the cords of the neck stand out: float32 [rows, columns], `_BONES_STEP` a body unit."""
  y, x = np.mgrid[0 : 3.5 : 1 / _BONES_STEP, 0 : 2.5 : 1 / _BONES_STEP].astype(np.float32)
  cords, bones = (x - 0.36 + 0.34 * (y - 1.3)) / 0.09, (y - 2.30 + 0.06 * x) / 0.06
  cords = np.exp(-cords * cords) * (0.05 * clip(2.3 - y, 0, 1))
  return cords + np.exp(-bones * bones) * (0.05 * clip(4 * x - 0.4, 0, 1))


class Body:
  """The bust below one head, upright however the head leans. Points (x, y): head units in the picture's own axes."""

  def __init__(self, head: Head, scene: Scene):
    self._scene, self._pose = scene, scene.pose
    top = head.project(np.zeros(1), np.full(1, 1.0), np.full(1, -0.15))[0]
    pose = scene.pose
    self._top_x = float((top[0] - pose.x) / pose.scale)
    self._drop = float((top[1] - pose.y) / pose.scale) - 1.0
    self.neck = scene.shape.neck
    self.shoulder = scene.wear.shoulder

  def place(self, points: np.ndarray) -> np.ndarray:
    """Body points -> picture units; what is high leans with the head."""
    pose = self._pose
    placed = np.empty((len(points), 2), np.float32)
    placed[:, 0] = (points[:, 0] + self._center(points[:, 1])) * pose.scale + pose.x
    placed[:, 1] = points[:, 1] * pose.scale + (pose.y + self._drop * pose.scale)
    return placed

  def _center(self, y: np.ndarray) -> np.ndarray:
    return self._top_x * clip((2.5 - y) / 1.5, 0, 1)

  @functools.cached_property
  def _slope(self) -> list[tuple[float, float]]:
    """Right edge from the jaw over the trapezius to the shoulder."""
    n, s = self.neck, self.shoulder
    return [
      (n * 1.02, 0.8),
      (n, 1.45),
      (n * 1.03, 1.80),
      (n * 1.25, 2.06),
      (0.5 * (n * 1.3 + s), 2.27),
      (s, 2.48),
      (s + 0.28, 2.85),
      (s + 0.36, 4.2),
    ]

  @functools.cached_property
  def outline(self) -> np.ndarray:
    """Skin of neck and shoulders, picture units."""
    right = self._slope
    return self.place(curve([*((-x, y) for x, y in right[::-1]), *right], 4))

  def raise_relief(self, relief: Relief) -> None:
    """Adds neck and shoulders to the shapes that are lit."""
    pose, (px, py) = self._pose, half_grid()
    y = (py[:, :1] - pose.y) * (1 / pose.scale) - self._drop
    x = (px - pose.x) * (1 / pose.scale) - self._center(y)
    right = coordinates(self._slope)
    width = np.interp(y, right[:, 1], right[:, 0]).astype(np.float32)
    bulge = 0.62 * self.neck + 0.16 * clip(width - self.neck, 0, 2)
    round_ = x * (1 / width)
    round_ = np.sqrt((1 - round_ * round_).clip(0.01))
    depth = round_ * bulge + (0.22 * clip(y - 1.6, 0, 2) - 0.62)
    folds = tiles.sample(tiles.clouds, x * 0.22 + self._scene.skin.offset, cv2.repeat(y * 0.16, 1, y.size))
    folds *= 0.05 * clip((y - 2.2) * 2, 0, 1)
    at = np.abs(x) * _BONES_STEP
    folds += cv2.remap(_bones(), at, cv2.repeat(y * _BONES_STEP, 1, y.size), cv2.INTER_LINEAR)
    relief.add(relief.mask(self.outline), depth, folds)

  def paint(self, canvas: Canvas) -> None:
    """Skin, clothes, necklace."""
    scene, wear = self._scene, self._scene.wear
    neckline, side = self._cut()
    cloth = self.place(np.concatenate([neckline, side, side[::-1] * _MIRROR]))
    jewels = wear.necklace and wear.neckline not in ('turtle', 'shirt', 'suit')
    fine = 2 if jewels else 1
    ink = Ink(canvas, self.outline, halvings=fine if wear.pattern == 'plain' else 1)
    ink.fill([ink.points(self.outline)], scene.skin.color * _NECK_TINT, labels=[_NECK])
    if wear.pattern == 'plain':
      ink.fill([ink.points(cloth)], wear.cloth, labels=[_CLOTH])
    else:
      ink.apply()
      patch = canvas.cover(cloth)
      canvas.paint(patch, self._fabric(canvas, patch), _CLOTH)
      ink = Ink(canvas, self.outline, halvings=fine)
    if wear.neckline in _TRIMMED:
      self._trim(ink, neckline)
    if wear.neckline in ('shirt', 'suit'):
      self._collar(ink)
    if jewels:
      self._necklace(ink)
    ink.apply()

  def _cut(self) -> tuple[np.ndarray, np.ndarray]:
    """The clothes' neckline, and their right edge from it down: body points."""
    wear, n = self._scene.wear, self.neck
    edge = [(x * n, y) for x, y in _NECKLINES[wear.neckline]]
    end = (self.shoulder + 0.5, 4.2)
    if wear.neckline == 'turtle':
      right = [edge[0], *((x + 0.05, y) for x, y in self._slope if y > 1.66), end]
    else:
      right = [edge[0], *((x, y - 0.03) for x, y in self._slope if x > edge[0][0] * 1.04 and y > edge[0][1]), end]
    return curve([*((-x, y) for x, y in edge), *edge[-2::-1]], 4), curve(right, 4)

  def _trim(self, ink: Ink, neckline: np.ndarray) -> None:
    """The hem round the neckline."""
    color, unit = self._scene.wear.cloth, ink.length(self._pose.scale)
    hem = ink.points(self.place(neckline + _BELOW))
    ink.strokes([hem], 0.09 * unit, 0.82 * color)
    ink.strokes([moved(hem, 0, 0.05 * unit)], 0.02 * unit, 0.6 * color)
    if self._scene.wear.neckline == 'turtle':
      n = self.neck
      fold = self.place(np.array([(-1.1 * n, 2.0), (0, 2.16), (1.1 * n, 2.0)]))
      ink.strokes([ink.points(fold)], 0.05 * unit, 0.6 * color)

  def _collar(self, ink: Ink) -> None:
    wear, n = self._scene.wear, self.neck
    suit = wear.neckline == 'suit'
    shirt = _SHIRT if suit else wear.cloth * 0.9 + 0.06
    # A point whose x is to be counted in widths of the neck is moved there.
    flap = _FLAP * np.array([(n, 1), (n, 1), (1, 1), (1, 1), (n, 1)], np.float32)
    lapel = _LAPEL * np.array([(n, 1), (n, 1), (1, 1), (1, 1), (1, 1), (1, 1)], np.float32)
    front = _FRONT * np.array([(n, 1), (1, 1), (n, 1), (1, 1), (1, 1), (1, 1), (1, 1)], np.float32)
    points = ink.points(
      self.place(np.concatenate([front, _TIE, flap, flap * _MIRROR, lapel, lapel * _MIRROR])).astype(np.float32)
    )
    ends = itertools.pairwise((0, 7, 13, 18, 23, 29, 35))
    front, tie, flap, flap_right, lapel, lapel_right = (points[start:end] for start, end in ends)
    if suit:
      ink.fill([front], shirt, labels=[_CLOTH])
      ink.fill([tie], wear.cloth_second * 0.8, labels=[_CLOTH])
    for side, over in ((flap, lapel), (flap_right, lapel_right)):
      ink.fill([side], shirt, labels=[_CLOTH])
      ink.strokes([side[1:4]], ink.length(0.03 * self._pose.scale), 0.65 * shirt)
      if suit:
        ink.fill([over], wear.cloth * 0.7, labels=[_CLOTH])

  def _fabric(self, canvas: Canvas, patch: Patch) -> np.ndarray:
    """Picture of the cloth, uint8 [h, w, 3]."""
    wear, pose = self._scene.wear, self._pose
    px, py = canvas.centers(patch)
    x = cv2.repeat((px - pose.x) / pose.scale, py.size, 1)
    y = cv2.repeat((py - pose.y) / pose.scale, 1, px.size)
    soft = tiles.sample(tiles.clouds, x * 0.25 + self._scene.skin.offset, y * 0.25)
    x, y = x + 0.04 * soft, y + 0.10 * x * x + 0.03 * soft
    weave = 1 + 0.06 * soft
    planes = weave, weave * _PATTERNS[wear.pattern](x, y)
    return tinted(*planes, wear.cloth + 0.004, wear.cloth_second)

  def _necklace(self, ink: Ink) -> None:
    wear, n, unit = self._scene.wear, self.neck, ink.length(self._pose.scale)
    low = _NECKLACE_LOW[wear.necklace]
    half = [(1.02 * n, 1.86), (0.80 * n, 2.12), (0.42 * n, low - 0.07)]
    line = ink.points(self.place(curve([*((-x, y) for x, y in half), (0, low), *half[::-1]], 5)))
    skin = 0.6 * self._scene.skin.color
    if wear.necklace == 'beads':
      ink.strokes([moved(line, 0, 0.03 * unit)], 0.09 * unit, skin, 0.5)
      ink.strokes([line], 0.085 * unit, wear.gem * 0.55, label=_NECKLACE)
      beads = line[::2, None]
      ink.fill(beads + _BEAD * (0.042 * unit), wear.gem * 0.8 + 0.05)
      ink.fill(beads + (_BEAD * 0.014 - 0.014) * unit, _WHITE)
      return
    ink.strokes([moved(line, 0, 0.02 * unit)], 0.05 * unit, skin, 0.5)
    ink.strokes([line], 0.042 * unit, wear.metal * 0.75, label=_NECKLACE)
    ink.strokes([moved(line, 0, -0.008 * unit)], 0.014 * unit, wear.metal * 1.5)
    if wear.necklace == 'pendant':
      x, y = line[len(line) // 2] + (0, 0.07 * unit)
      ink.fill([ellipse(x, y, 0.075 * unit, 0.10 * unit)], wear.metal, labels=[_NECKLACE])
      ink.fill([ellipse(x, y, 0.05 * unit, 0.072 * unit)], wear.gem)
      ink.fill([ellipse(x - 0.018 * unit, y - 0.03 * unit, 0.016 * unit, 0.02 * unit)], _WHITE)
