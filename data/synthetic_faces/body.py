"""Neck, shoulders, clothes and necklace."""

import functools

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, curve, ellipse, moved, ribbon, within
from .head import Head
from .lighting import Relief
from .scene import Scene

_NECK, _CLOTH, _NECKLACE = labels.index('neck'), labels.index('cloth'), labels.index('neck_l')

_NECK_TINT = np.array([0.97, 0.94, 0.93], np.float32)


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
    points = np.asarray(points, np.float32)
    x, y = points[:, 0], points[:, 1]
    pose, placed = self._pose, np.empty_like(points)
    placed[:, 0] = pose.x + (x + self._center(y)) * pose.scale
    placed[:, 1] = pose.y + (y + self._drop) * pose.scale
    return placed

  def _center(self, y: np.ndarray) -> np.ndarray:
    return self._top_x * clip((2.5 - y) / 1.5, 0, 1)

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
    right = self._slope()
    return self.place(curve(np.array([*((-x, y) for x, y in right[::-1]), *right]), 4))

  def raise_relief(self, relief: Relief, px: np.ndarray, py: np.ndarray) -> None:
    """Adds neck and shoulders to the shapes that are lit."""
    pose = self._pose
    y = (py - pose.y) / pose.scale - self._drop
    x = (px - pose.x) / pose.scale - self._center(y)
    right = np.array(self._slope())
    width = np.interp(y[:, :1], right[:, 1], right[:, 0]).astype(np.float32)
    across = clip(x / width, -1, 1)
    bulge = 0.62 * self.neck + 0.16 * clip(width - self.neck, 0, 2)
    depth = -0.62 + 0.22 * clip(y - 1.6, 0, 2) + bulge * np.sqrt(np.maximum(1 - across**2, 0.01))
    # Collar bones and the cords of the neck.
    out = np.abs(x)
    cords, bones = (out - 0.36 + 0.34 * (y - 1.3)) * (1 / 0.09), (y - 2.30 + 0.06 * out) * (1 / 0.06)
    cords = cv2.exp(-cords * cords) * (0.05 * clip(2.3 - y, 0, 1))
    bones = cv2.exp(-bones * bones) * (0.05 * clip(out * 4 - 0.4, 0, 1))
    folds = 0.05 * tiles.sample(
      tiles.clouds, (x * 0.22 + self._scene.skin.offset).astype(np.float32), (y * 0.16).astype(np.float32)
    )
    folds *= clip((y - 2.2) * 2, 0, 1)
    relief.add(relief.mask(self.outline), depth.astype(np.float32), bump=(cords + bones + folds).astype(np.float32))

  def paint(self, canvas: Canvas) -> None:
    """Skin, clothes, necklace."""
    scene = self._scene
    patch = canvas.cover(self.outline)
    canvas.paint(patch, scene.skin.color * _NECK_TINT, _NECK)
    self._clothes(canvas)
    if scene.wear.necklace and scene.wear.neckline not in ('turtle', 'shirt', 'suit'):
      self._necklace(canvas)

  def _clothes(self, canvas: Canvas) -> None:
    wear, n, s = self._scene.wear, self.neck, self.shoulder
    # The neckline from the middle of the trapezius down to the middle of the chest.
    edge = {
      'crew': [(1.12 * n, 2.0), (0.85 * n, 2.22), (0.45 * n, 2.36), (0, 2.41)],
      'scoop': [(1.6 * n, 2.14), (1.3 * n, 2.42), (0.7 * n, 2.66), (0, 2.74)],
      'vee': [(1.25 * n, 2.05), (0.8 * n, 2.36), (0.4 * n, 2.66), (0, 2.95)],
      'shirt': [(1.0 * n, 1.90), (0.7 * n, 2.15), (0.33 * n, 2.38), (0, 2.62)],
      'suit': [(1.02 * n, 1.92), (0.72 * n, 2.12), (0.36 * n, 2.28), (0, 2.36)],
      'turtle': [(1.06 * n, 1.62), (0.8 * n, 1.72), (0.4 * n, 1.78), (0, 1.80)],
      'hood': [(1.25 * n, 1.98), (0.95 * n, 2.25), (0.5 * n, 2.44), (0, 2.50)],
      'straps': [(1.7 * n, 2.2), (1.5 * n, 2.5), (0.8 * n, 2.72), (0, 2.78)],
    }[wear.neckline]
    right = [
      edge[0],
      *((x, y - 0.03) for x, y in self._slope() if x > edge[0][0] * 1.04 and y > edge[0][1]),
      (s + 0.5, 4.2),
    ]
    if wear.neckline == 'turtle':
      right = [edge[0], *((x + 0.05, y) for x, y in self._slope() if y > 1.66), (s + 0.5, 4.2)]
    neckline = curve(np.array([*((-x, y) for x, y in edge), *edge[-2::-1]]), 4)
    side = curve(np.array(right), 4)
    patch = canvas.cover(self.place(np.concatenate([neckline, side, side[::-1] * (-1, 1)])))
    canvas.paint(patch, self._fabric(canvas, patch), _CLOTH)
    scale = self._pose.scale
    line = self.place(neckline)
    if wear.neckline in ('shirt', 'suit'):
      self._collar(canvas, line, patch)
    elif wear.neckline in ('crew', 'turtle', 'hood', 'scoop'):
      canvas.shade(within(canvas.cover(ribbon(moved(line, 0, 0.03 * scale), 0.10 * scale)), patch), 0.78, 0.8)
      canvas.shade(within(canvas.cover(ribbon(moved(line, 0, 0.075 * scale), 0.02 * scale)), patch), 0.6, 0.7)
    if wear.neckline == 'turtle':
      canvas.shade(
        within(
          canvas.cover(ribbon(self.place(np.array([(-1.1 * n, 2.0), (0, 2.16), (1.1 * n, 2.0)])), 0.05 * scale)), patch
        ),
        0.6,
        0.8,
      )

  def _collar(self, canvas: Canvas, line: np.ndarray, cloth: Patch) -> None:
    wear, n = self._scene.wear, self.neck
    suit = wear.neckline == 'suit'
    white = np.array([0.78, 0.80, 0.84], np.float32)
    shirt = white if suit else wear.cloth * 0.9 + 0.06
    if suit:
      front = self.place(
        np.array([(-0.8 * n, 2.0), (0, 2.36), (0.8 * n, 2.0), (0.62, 2.6), (0.1, 4.2), (-0.1, 4.2), (-0.62, 2.6)])
      )
      canvas.paint(canvas.cover(front), shirt, _CLOTH)
      tie = self.place(
        np.array([(-0.11, 2.36), (0.11, 2.36), (0.075, 2.54), (0.17, 3.2), (-0.17, 3.2), (-0.075, 2.54)])
      )
      canvas.paint(canvas.cover(tie), wear.cloth_second * 0.8, _CLOTH)
    for side in (-1, 1):
      flap = np.array([(1.12 * n, 1.84), (1.22 * n, 2.06), (0.62, 2.68), (0.02, 2.44), (0.55 * n, 2.2)]) * (side, 1)
      patch = canvas.cover(self.place(flap))
      canvas.paint(patch, shirt, _CLOTH)
      canvas.shade(canvas.cover(ribbon(self.place(flap[1:4]), 0.03 * self._pose.scale)), 0.5, 0.7)
      if suit:
        lapel = self.place(
          np.array([(1.25 * n, 2.02), (1.35 * n, 2.35), (0.98, 2.75), (0.3, 3.4), (0.28, 3.0), (0.66, 2.55)])
          * (side, 1)
        )
        canvas.paint(canvas.cover(lapel), wear.cloth * 0.7, _CLOTH)

  def _fabric(self, canvas: Canvas, patch: Patch) -> np.ndarray:
    wear, pose = self._scene.wear, self._pose
    px = (np.arange(patch.columns.start, patch.columns.stop, dtype=np.float32) + 0.5) / canvas.size
    py = (np.arange(patch.rows.start, patch.rows.stop, dtype=np.float32) + 0.5) / canvas.size
    x = cv2.repeat((px[None] - pose.x) / pose.scale, len(py), 1)
    y = cv2.repeat((py[:, None] - pose.y) / pose.scale, 1, len(px))
    offset = self._scene.skin.offset
    soft = tiles.sample(tiles.clouds, x * 0.25 + offset, y * 0.25)
    x, y = x + 0.04 * soft, y + 0.10 * x * x + 0.03 * soft

    def wave(phase: np.ndarray) -> np.ndarray:
      return clip(0.5 + 2.2 * np.sin(phase), 0, 1)

    blend = {
      'plain': lambda: np.zeros_like(soft),
      'stripes': lambda: wave(24 * y),
      'bars': lambda: wave(20 * x),
      'plaid': lambda: 0.5 * wave(13 * x) + 0.5 * wave(13 * y),
      'dots': lambda: clip(4 * (np.sin(19 * x) * np.sin(19 * y) - 0.35), 0, 1),
    }[wear.pattern]()
    weave = 1 + 0.12 * soft
    base, second = wear.cloth[:, None, None] + 0.004, wear.cloth_second[:, None, None]
    return (base + (second - base) * blend) * weave

  def _necklace(self, canvas: Canvas) -> None:
    wear, n, scale = self._scene.wear, self.neck, self._pose.scale
    low = {'chain': 2.42, 'beads': 2.30, 'pendant': 2.46}[wear.necklace]
    line = self.place(
      curve(
        np.array(
          [
            (-1.02 * n, 1.86),
            (-0.80 * n, 2.12),
            (-0.42 * n, low - 0.07),
            (0, low),
            (0.42 * n, low - 0.07),
            (0.80 * n, 2.12),
            (1.02 * n, 1.86),
          ]
        ),
        5,
      )
    )
    if wear.necklace == 'beads':
      shadow = canvas.cover(ribbon(moved(line, 0, 0.03 * scale), 0.09 * scale))
      canvas.shade(shadow, 0.6, 0.6)
      whole = canvas.cover(ribbon(line, 0.085 * scale))
      canvas.paint(whole, wear.gem * 0.55, _NECKLACE)
      for color, size, shift in ((wear.gem * 0.8 + 0.05, 0.042, 0), (np.full(3, 1.1), 0.014, -0.014)):
        beads = [
          ellipse(px + shift * scale, py + shift * scale, size * scale, size * scale, count=10) for px, py in line
        ]
        canvas.paint(canvas.cover(*beads[::2]), color)
      return
    canvas.shade(canvas.cover(ribbon(moved(line, 0, 0.02 * scale), 0.05 * scale)), 0.6, 0.6)
    canvas.paint(canvas.cover(ribbon(line, 0.042 * scale)), wear.metal * 0.75, _NECKLACE)
    canvas.paint(canvas.cover(ribbon(moved(line, 0, -0.008 * scale), 0.014 * scale)), wear.metal * 1.5)
    if wear.necklace == 'pendant':
      x, y = line[len(line) // 2] + (0, 0.07 * scale)
      canvas.paint(canvas.cover(ellipse(x, y, 0.075 * scale, 0.10 * scale)), wear.metal, _NECKLACE)
      canvas.paint(canvas.cover(ellipse(x, y, 0.05 * scale, 0.072 * scale)), wear.gem)
      canvas.paint(
        canvas.cover(ellipse(x - 0.018 * scale, y - 0.03 * scale, 0.016 * scale, 0.02 * scale)),
        np.full(3, 1.6),
        opacity=0.9,
      )
