"""What is worn on the head: glasses, hats, earrings."""

import math
from collections.abc import Sequence

import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, curve, ellipse, moved, tinted
from .head import Head, half_grid
from .ink import Ink
from .lighting import Relief
from .scene import Scene

_GLASSES, _HAT, _EARRING = labels.index('eye_g'), labels.index('hat'), labels.index('ear_r')
_SEEN_THROUGH = np.array([name in ('l_eye', 'r_eye', 'l_brow', 'r_brow') for name in labels.CLASSES])

# Half a lens's outline about its middle, in head units.
_LENSES = {
  'round': ellipse(0, 0, 0.27, 0.26, count=12).tolist(),
  'square': [
    (-0.29, -0.18), (0, -0.20), (0.31, -0.20), (0.33, -0.05), (0.29, 0.17), (0, 0.21), (-0.25, 0.17), (-0.30, 0.0),
  ],
  'cat': [
    (-0.28, -0.14), (0, -0.19), (0.38, -0.29), (0.37, -0.08), (0.26, 0.16), (0, 0.20), (-0.24, 0.15), (-0.29, 0.0),
  ],
  'aviator': [
    (-0.28, -0.17), (0, -0.21), (0.33, -0.19), (0.35, 0.0), (0.24, 0.27), (0.0, 0.33), (-0.20, 0.22), (-0.29, 0.0),
  ],
  'sun': [
    (-0.32, -0.19), (0, -0.23), (0.38, -0.24), (0.40, -0.04), (0.32, 0.21), (0, 0.26), (-0.26, 0.20), (-0.33, 0.0),
  ],
}  # fmt: skip
_LENSES['rimless'] = [(x, 0.85 * y) for x, y in _LENSES['square']]
_RIM = {'rimless': 0.012, 'aviator': 0.022, 'round': 0.035, 'square': 0.05, 'cat': 0.06, 'sun': 0.07}
_BLACK, _WHITE = np.zeros(3, np.float32), np.ones(3, np.float32)
_SKY = np.array([0.62, 0.72, 0.82], np.float32)
_SEAMS = np.array([-0.55, 0.0, 0.55], np.float32)


def paint_glasses(canvas: Canvas, head: Head, scene: Scene) -> None:
  """Frame and lenses. As in CelebAMask-HQ, eyes and brows keep their labels behind clear lenses, not behind dark."""
  wear, scale = scene.wear, head.pose.scale
  outlines, lines = _glasses_lines(head, scene)
  clear = wear.lens_opacity < 0.5
  labels_below = canvas.label.copy() if clear else None
  everything = np.concatenate([*outlines, *lines])
  ink = Ink(canvas, everything, 0.1 * scale)
  unit = ink.length(scale)
  rim = _RIM[wear.glasses] * unit
  outlines, lines = [ink.points(outline) for outline in outlines], [ink.points(line) for line in lines]
  ink.strokes([moved(outline, 0.01 * unit, 0.06 * unit) for outline in outlines], 2 * rim, _BLACK, 0.13)
  ink.fill(outlines, wear.lens, wear.lens_opacity, labels=[_GLASSES])
  glare = (0.10 if clear else 0.16) * (1 - wear.lens_opacity) + wear.lens_opacity
  for outline in outlines:
    low, span = outline.min(0), np.ptp(outline, axis=0)
    if not clear:
      # Dark lenses mirror the sky in their upper part.
      for part, share in ((0.75, 0.02), (0.5, 0.07), (0.28, 0.14)):
        ink.fill([np.minimum(outline, low + np.array([9, part]) * span)], wear.lens + share * _SKY, wear.lens_opacity)
    # A streak of light from the upper edge to the lower one, which ends where the lens does.
    streak = low + span * np.array([(0.30, 0.1), (0.52, 0.1), (0.36, 0.9), (0.14, 0.9)])
    ink.fill([streak], wear.lens * 0.8 + 0.1, glare)
  if clear:
    ink.apply()
    np.copyto(canvas.label, labels_below, where=_SEEN_THROUGH[labels_below])
    ink = Ink(canvas, everything, 0.1 * scale)
  ink.strokes(lines, rim, wear.glasses_color, label=_GLASSES)
  edge = wear.glasses_color * 1.5 + 0.05
  ink.strokes([moved(line, -0.1 * rim, -0.22 * rim) for line in lines], 0.3 * rim, edge)
  ink.apply()


def _glasses_lines(head: Head, scene: Scene) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The lenses' outlines, and all lines of the frame that are seen; picture units."""
  eye_x, yaw = scene.features.eye_x, scene.pose.yaw

  def front(points: np.ndarray) -> np.ndarray:
    return head.project(points[:, 0], points[:, 1], 1.30 - 0.34 * np.square(points[:, 0]))

  lens = moved(curve(np.array(_LENSES[scene.wear.glasses]), 4, True), eye_x + 0.01, 0.03)
  outlines = [front(lens * np.array([side, 1])) for side in (1, -1)]
  lines = [np.concatenate([outline, outline[:1]]) for outline in outlines]
  inner = eye_x - 0.27
  lines.append(front(curve(np.array([(-inner, -0.02), (0, -0.08), (inner, -0.02)]))))
  x, y, z = np.array([(eye_x + 0.34, -0.05, 1.20), (0.92, -0.02, 0.75), (1.03, 0.0, 0.05)]).T
  # The far arm is hidden behind the face when the head turns.
  lines.extend(head.project(side * x, y, z) for side in (1, -1) if side * yaw < 0.06)
  return outlines, lines


class Hat:
  """One hat on one head; outlines in picture units."""

  def __init__(self, head: Head, scene: Scene):
    self._head, self._scene = head, scene
    wear = scene.wear
    self.kind = wear.hat
    y = wear.hat_y
    turn = np.linspace(-np.pi / 2, np.pi / 2, 25)
    self._band_y = y
    lower = self._ring(turn, y + 0.02, 1.10)
    dome_height = {'beanie': 1.22, 'cap': 1.12, 'brim': 1.16, 'bandana': 1.10}[self.kind]
    ends = np.stack([lower[0], lower[-1]])
    middle, reach = ends.mean(0), (ends[1] - ends[0]) / 2
    up = np.array([reach[1], -reach[0]]) / max(np.hypot(*reach), 1e-6) * head.pose.scale * dome_height
    t = np.linspace(0, np.pi, 25)
    power = 0.62 if self.kind == 'brim' else 0.85
    dome = middle + np.cos(t)[:, None] * reach * 1.02 + (np.sin(t) ** power)[:, None] * up
    self.crown = np.concatenate([lower, dome])
    self._lower, self._turn = lower, turn
    brim_turn = np.linspace(-np.pi, np.pi, 49)
    self.brim_back = self.brim = None
    if self.kind == 'brim':
      self.brim_back = self._ring(brim_turn, y + 0.04 + 0.05 * np.cos(brim_turn), 1.75)
      self.brim = np.concatenate(
        [self._ring(turn * 1.12, y + 0.10, 1.75), self._ring(turn * 1.12, y - 0.02, 1.08)[::-1]]
      )
    elif self.kind == 'cap':
      fan = np.linspace(-1.0, 1.0, 17)
      visor = self._ring(fan, y + 0.10 + 0.20 * np.cos(fan * 1.35), 1.10 + 0.55 * np.cos(fan * 1.35))
      self.brim = np.concatenate([visor, self._ring(fan, y, 1.09)[::-1]])

  def _ring(self, angle: np.ndarray, y: np.ndarray | float, radius: np.ndarray | float) -> np.ndarray:
    return self._head.around(angle, np.full(len(angle), y) if np.isscalar(y) else y, radius, clamp=False)

  def raise_relief(self, relief: Relief) -> None:
    """Adds crown and brim to the shapes that are lit."""
    u, v = self._head.head_units(*half_grid())
    x, y = 0.1 * math.sin(self._scene.pose.yaw), self._band_y + 0.05
    round_ = np.sqrt((1 - np.square((u - x) / 1.25) - np.square((v - y).clip(None, 0) / 1.3)).clip(0.02))
    ribs = 0.012 * np.sin(30 * u) if self.kind == 'beanie' else 0.03 * tiles.sample(tiles.clouds, u * 0.3, v * 0.3)
    relief.add(relief.mask(self.crown), 1.4 * round_ - 0.05, ribs)
    if self.brim is not None:
      relief.add(relief.mask(self.brim), 1.55 + 0.25 * (v - y), np.zeros_like(v))

  def paint_back(self, canvas: Canvas) -> None:
    """The part of a brim that lies behind the head."""
    if self.brim_back is not None:
      ink = Ink(canvas, self.brim_back, halvings=1)
      ink.fill([ink.points(self.brim_back)], self._scene.wear.hat_color * 0.45, labels=[_HAT])
      ink.apply()

  def paint(self, canvas: Canvas) -> None:
    """Crown, band, brim."""
    wear, scale = self._scene.wear, self._head.pose.scale
    color = wear.hat_color
    crown = canvas.cover(self.crown)
    canvas.paint(crown, self._cloth(canvas, crown), _HAT)
    parts = self.crown if self.brim is None else np.concatenate([self.crown, self.brim])
    ink = Ink(canvas, parts, 0.05 * scale)
    unit = ink.length(scale)
    lower, turn = ink.points(self._lower), self._turn
    if self.kind in ('beanie', 'brim'):
      upper = ink.points(self._ring(turn, self._band_y - (0.34 if self.kind == 'beanie' else 0.20), 1.12))
      tint = color * 0.82 if self.kind == 'beanie' else wear.hat_band
      ink.fill([np.concatenate([lower, upper[::-1]])], tint, 0.8)
      ink.strokes([upper], 0.03 * unit, _BLACK, 0.2)
    if self.kind == 'cap':
      tops = ink.points(self._ring(_SEAMS, np.full(3, self._band_y), 1.1))
      button = ink.points(self.crown[len(turn) + 12])
      ink.strokes([np.stack([top, button]) for top in tops], 0.018 * unit, _BLACK, 0.16)
      x, y = ink.points(self._ring(np.zeros(1), self._band_y - 0.38, 1.12))[0]
      ink.fill([ellipse(x, y, 0.2 * unit, 0.16 * unit)], wear.hat_band, 0.9)
    if self.brim is not None:
      brim = ink.points(self.brim)
      ink.fill([brim], color * 0.85, labels=[_HAT])
      ink.strokes([brim[: len(brim) // 2]], 0.03 * unit, color * 0.65)
      ink.strokes([lower[6:-6]], 0.05 * unit, color * 0.58)
    ink.apply()

  def _cloth(self, canvas: Canvas, crown: Patch) -> np.ndarray:
    """Picture of the crown's cloth, uint8 [h, w, 3]."""
    wear = self._scene.wear
    u, v = self._head.head_units(*canvas.centers(crown))
    if self.kind == 'beanie':
      knit = 0.9 + 0.09 * np.sin(26 * (u + 0.25 * u * (v + 1))) + 0.025 * tiles.sample(tiles.grain, u * 0.6, v * 0.6)
    else:
      felt = tiles.sample(tiles.clouds, u * 0.5, v * 0.5)
      knit = 1 + 0.035 * felt + 0.02 * tiles.sample(tiles.grain, u * 0.6, v * 0.6)
    dots = clip(5 * (np.sin(14 * u) * np.sin(14 * v) - 0.45), 0, 1) if self.kind == 'bandana' else None
    return tinted(knit, dots, wear.hat_color, wear.hat_band)


def paint_earrings(canvas: Canvas, head: Head, scene: Scene, ears: Sequence[np.ndarray]) -> None:
  """Earrings at the lobes of the ears with the given outlines."""
  wear = scene.wear
  lobes = np.stack([ear[ear[:, 1].argmax()] - (0, 0.05 * head.pose.scale) for ear in ears])
  ink = Ink(canvas, lobes, 0.55 * head.pose.scale)
  unit = ink.length(head.pose.scale)
  for x, y in ink.points(lobes):

    def dot(dx: float, dy: float, rx: float, ry: float) -> np.ndarray:
      return ellipse(x + dx * unit, y + dy * unit, rx * unit, ry * unit)  # noqa: B023 - called in this turn only

    if wear.earrings == 'stud':
      ink.fill([dot(0, 0, 0.075, 0.075)], wear.gem * 0.7 + 0.1, labels=[_EARRING])
      ink.fill([dot(-0.02, -0.02, 0.028, 0.028)], _WHITE)
    elif wear.earrings == 'hoop':
      ink.fill([dot(0, 0.24, 0.19, 0.25), dot(0, 0.24, 0.14, 0.20)], wear.metal * 0.8, labels=[_EARRING])
      ink.fill([dot(-0.02, 0.23, 0.175, 0.235), dot(-0.01, 0.24, 0.155, 0.22)], wear.metal * 1.7, labels=[_EARRING])
    else:
      ink.fill([dot(0, 0.02, 0.035, 0.035)], wear.metal, labels=[_EARRING])
      ink.fill([dot(0, 0.14, 0.022, 0.1)], wear.metal, labels=[_EARRING])
      ink.fill([dot(0, 0.32, 0.085, 0.13)], wear.gem, labels=[_EARRING])
      ink.fill([dot(-0.025, 0.28, 0.025, 0.04)], _WHITE)
  ink.apply()
