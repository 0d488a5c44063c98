"""What is worn on the head: glasses, hats, earrings."""

import math

import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, clip, curve, ellipse, moved, ribbon, within
from .head import Head
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


def paint_glasses(canvas: Canvas, head: Head, scene: Scene) -> None:
  """Frame and lenses. As in CelebAMask-HQ, eyes and brows keep their labels behind clear lenses, not behind dark."""
  wear, scale = scene.wear, head.pose.scale
  clear = wear.lens_opacity < 0.5
  rim = _RIM[wear.glasses] * scale
  labels_below = canvas.label.copy()
  outlines, lines = _glasses_lines(head, scene)
  for outline in outlines:
    shadow = canvas.cover(ribbon(moved(outline, 0.01 * scale, 0.06 * scale), 2 * rim))
    canvas.shade(shadow, np.array([0.72, 0.62, 0.6]), 0.7)
    lens = canvas.cover(outline)
    canvas.paint(lens, wear.lens, _GLASSES, opacity=wear.lens_opacity)
    low, span = outline.min(0), np.ptp(outline, axis=0)
    glare = low + span * np.array([(0.30, 0.0), (0.52, 0.0), (0.28, 1.0), (0.06, 1.0)])
    canvas.paint(within(canvas.cover(glare), lens), np.full(3, 0.9), opacity=0.10 if clear else 0.16)
    sky = np.square(np.linspace(1, 0, len(lens.cover), dtype=np.float32))[:, None]
    canvas.paint(lens, np.array([0.62, 0.72, 0.82]), opacity=(0.04 if clear else 0.22) * sky)
  frame = np.zeros(canvas.label.shape, bool)
  for line in lines:
    bar = canvas.cover(ribbon(line, rim))
    canvas.paint(bar, wear.glasses_color, _GLASSES)
    frame[bar.rows, bar.columns] |= bar.cover >= 0.5
    edge = canvas.cover(ribbon(moved(line, -0.1 * rim, -0.22 * rim), 0.3 * rim))
    canvas.paint(edge, wear.glasses_color * 2 + 0.10, opacity=0.5)
  if clear:
    np.copyto(canvas.label, labels_below, where=_SEEN_THROUGH[labels_below] & ~frame)


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

  def raise_relief(self, relief: Relief, px: np.ndarray, py: np.ndarray) -> None:
    """Adds crown and brim to the shapes that are lit."""
    u, v = self._head.head_units(px, py)
    x, y = 0.1 * math.sin(self._scene.pose.yaw), self._band_y + 0.05
    round_ = np.sqrt(np.maximum(1 - np.square((u - x) / 1.25) - np.square(np.minimum(v - y, 0) / 1.3), 0.02))
    ribs = 0.012 * np.sin(30 * u) if self.kind == 'beanie' else 0.03 * tiles.sample(tiles.clouds, u * 0.3, v * 0.3)
    relief.add(relief.mask(self.crown), (1.4 * round_ - 0.05).astype(np.float32), bump=ribs.astype(np.float32))
    if self.brim is not None:
      slope = 1.55 + 0.25 * (v - y)
      relief.add(relief.mask(self.brim), slope.astype(np.float32))

  def paint_back(self, canvas: Canvas) -> None:
    """The part of a brim that lies behind the head."""
    if self.brim_back is not None:
      canvas.paint(canvas.cover(self.brim_back), self._scene.wear.hat_color * 0.45, _HAT)

  def paint(self, canvas: Canvas) -> None:
    """Crown, band, brim."""
    wear, scale = self._scene.wear, self._head.pose.scale
    color = wear.hat_color
    crown = canvas.cover(self.crown)
    px = (np.arange(crown.columns.start, crown.columns.stop, dtype=np.float32) + 0.5) / canvas.size
    py = (np.arange(crown.rows.start, crown.rows.stop, dtype=np.float32) + 0.5) / canvas.size
    u, v = self._head.head_units(px[None], py[:, None])
    if self.kind == 'beanie':
      knit = 0.82 + 0.18 * np.sin(26 * (u + 0.25 * u * (v + 1))) + 0.05 * tiles.sample(tiles.grain, u * 0.3, v * 0.3)
    else:
      knit = (
        1 + 0.07 * tiles.sample(tiles.clouds, u * 0.5, v * 0.5) + 0.04 * tiles.sample(tiles.grain, u * 0.35, v * 0.35)
      )
    base = color[:, None, None] * knit
    if self.kind == 'bandana':
      dots = clip(5 * (np.sin(14 * u) * np.sin(14 * v) - 0.45), 0, 1)
      base = base + (wear.hat_band[:, None, None] - base) * dots
    canvas.paint(crown, base, _HAT)
    turn = self._turn
    if self.kind in ('beanie', 'brim'):
      height = 0.34 if self.kind == 'beanie' else 0.20
      upper = self._ring(turn, self._band_y - height, 1.12)
      band = within(canvas.cover(np.concatenate([self._lower, upper[::-1]])), crown)
      tint = color * 0.82 if self.kind == 'beanie' else wear.hat_band
      canvas.paint(band, tint, opacity=0.75)
      canvas.shade(within(canvas.cover(ribbon(upper, 0.03 * scale)), crown), 0.5, 0.7)
    if self.kind == 'cap':
      for at in (-0.55, 0.0, 0.55):
        seam = np.stack([self._ring(np.array([at]), self._band_y, 1.1)[0], self.crown[len(turn) + 12]])
        canvas.shade(within(canvas.cover(ribbon(seam, 0.018 * scale)), crown), 0.6, 0.6)
      badge = self._ring(np.array([0.0]), self._band_y - 0.38, 1.12)[0]
      canvas.paint(within(canvas.cover(ellipse(*badge, 0.2 * scale, 0.16 * scale)), crown), wear.hat_band, opacity=0.9)
    if self.brim is not None:
      brim = canvas.cover(self.brim)
      canvas.paint(brim, color * 0.85, _HAT)
      edge = self.brim[: len(self.brim) // 2]
      canvas.shade(canvas.cover(ribbon(edge, 0.03 * scale)), 0.6, 0.6)
      canvas.shade(within(canvas.cover(ribbon(self._lower[6:-6], 0.05 * scale)), brim), 0.55, 0.7)


def paint_earring(canvas: Canvas, head: Head, scene: Scene, ear: np.ndarray) -> None:
  """An earring at the lobe of an ear with the given outline."""
  wear, scale = scene.wear, head.pose.scale
  lobe = ear[ear[:, 1].argmax()] - (0, 0.05 * scale)
  x, y = lobe

  def dot(dx: float, dy: float, rx: float, ry: float) -> np.ndarray:
    return ellipse(x + dx * scale, y + dy * scale, rx * scale, ry * scale)

  if wear.earrings == 'stud':
    parts = [([dot(0, 0, 0.075, 0.075)], wear.gem * 0.7 + 0.1), ([dot(-0.02, -0.02, 0.028, 0.028)], np.full(3, 1.8))]
  elif wear.earrings == 'hoop':
    parts = [
      ([dot(0, 0.24, 0.19, 0.25), dot(0, 0.24, 0.14, 0.20)], wear.metal * 0.8),
      ([dot(-0.02, 0.23, 0.175, 0.235), dot(-0.01, 0.24, 0.155, 0.22)], wear.metal * 1.7),
    ]
  else:
    parts = [
      ([dot(0, 0.02, 0.035, 0.035), dot(0, 0.14, 0.022, 0.1)], wear.metal),
      ([dot(0, 0.32, 0.085, 0.13)], wear.gem),
      ([dot(-0.025, 0.28, 0.025, 0.04)], np.full(3, 1.7)),
    ]
  for outlines, color in parts:
    canvas.paint(canvas.cover(*outlines), color, _EARRING)
