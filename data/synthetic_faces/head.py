"""The head as a solid: a stack of elliptic sections with the relief of a face on its front, turned and projected.

In head coordinates a point is (x, y, z). The section at height y is an ellipse of half-width W(y) and half-depth D(y)
about (0, zc(y)); the relief is a sum of Gaussians over (x, y), laid on along z. A picture point is found by projecting;
the surface under a pixel is found by intersecting the section in closed form and marching through the relief.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from .canvas import clip, coordinates, planes, shifted
from .scene import Features, Pose, Shape

# A pattern on the face: amplitude, x, sigma x, y, sigma y of each of its Gaussians.
Terms = list[tuple[float, float, float, float, float]]

# Shapes are lit on this grid whatever the picture's size, so that a face keeps its shading at any size.
GRID = 72

_TABLE_Y = np.linspace(-1.9, 2.1, 128, dtype=np.float32)
_PER_TABLE_STEP = 1 / (_TABLE_Y[1] - _TABLE_Y[0])
_RELIEF_X = np.linspace(-1.15, 1.15, 51, dtype=np.float32)
_RELIEF_Y = np.linspace(-1.45, 1.85, 73, dtype=np.float32)
_PER_RELIEF_X, _PER_RELIEF_Y = 1 / (_RELIEF_X[1] - _RELIEF_X[0]), 1 / (_RELIEF_Y[1] - _RELIEF_Y[0])
_CROWN_Y = -1.56
_OUTLINE_HEIGHTS = np.sin(np.linspace(-1, 1, 30, dtype=np.float32) * np.float32(np.pi / 2)) * np.float32(0.9995)
# Left side down, right side up.
_BEHIND = np.repeat(np.array([-np.pi, np.pi], np.float32), 30)
_FAINTEST = np.float32(-80)
# The relief is searched at no more than so many levels; between two of them the crossing is interpolated.
_LEVELS = 6


@functools.cache
def _smoothing(knots: tuple[float, ...]) -> np.ndarray:
  """[128, K]: values at `knots` to a smooth curve over the table."""
  linear = np.stack([np.interp(_TABLE_Y, knots, row) for row in np.eye(len(knots))], axis=1).astype(np.float32)
  return cv2.GaussianBlur(linear, (1, 0), sigmaX=1e-6, sigmaY=4.5, borderType=cv2.BORDER_REPLICATE)


@functools.cache
def half_grid() -> tuple[np.ndarray, np.ndarray]:
  """Centres x and y of the cells of half the grid, float32 [GRID / 2, GRID / 2], picture units."""
  centers = (np.arange(GRID // 2, dtype=np.float32) + 0.5) / (GRID // 2)
  return tuple(np.meshgrid(centers, centers))


def gaussians(patterns: Sequence[Terms], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
  """Sums of Gaussians over a grid whose x is symmetric -> [len(y), len(x)] each; a term with x != 0 is at -x too."""
  amplitude, cx, sx, cy, sy = coordinates(list(itertools.chain(*patterns))).T[..., None]
  across, down = (x - cx) / sx, (y - cy) / sy
  # What is next to nothing would be computed slowly, as a denormal number.
  across, down = (cv2.exp(np.maximum(-0.5 * far * far, _FAINTEST)) for far in (across, down))
  across += (cx != 0) * across[:, ::-1]
  down *= amplitude
  ends = list(itertools.accumulate(map(len, patterns)))
  return [down[first:end].T @ across[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _at_surface(textures: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
  column, row = (x - _RELIEF_X[0]) * _PER_RELIEF_X, (y - _RELIEF_Y[0]) * _PER_RELIEF_Y
  # One by one: OpenCV is slow at pixels of two or three numbers.
  return [cv2.remap(texture, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for texture in textures]


def _turn(sin_yaw: float, cos_yaw: float, sin_pitch: float, cos_pitch: float) -> np.ndarray:
  """Where x, y and z of a head point on the screen plane, the roll undone: [3, 2]."""
  return np.array([[cos_yaw, sin_yaw * sin_pitch], [0, cos_pitch], [sin_yaw, -cos_yaw * sin_pitch]])


class Solid:
  """One head's own form, whatever its pose: its sections, and the relief of its face."""

  def __init__(self, shape: Shape, features: Features):
    self.chin_y = shape.chin_y
    width, half_depth, center_z = self._sections(shape)
    self.table = cv2.merge([width[None], half_depth[None], center_z[None]])
    (self.relief,) = gaussians([_relief_terms(shape, features)], _RELIEF_X, _RELIEF_Y)

  @staticmethod
  def _sections(shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chin_y = shape.chin_y
    knots = (-1.9, -0.5, 0.05, 0.45, 0.95, 1.25, 1.6, 2.1)
    jaw_mid = 0.55 * shape.jaw + 0.45 * shape.chin
    width = [
      shape.cranium * 0.99,
      shape.cranium,
      shape.cranium * 0.995,
      shape.cheek,
      shape.jaw,
      jaw_mid + 0.06,
      shape.chin,
      shape.chin,
    ]
    front = [1.06, 1.14, 1.12, 1.14, 1.18, 1.17, 1.14, 1.1]
    depth = [1.3, 1.3, 1.22, 1.15, 1.06, 0.86, 0.62, 0.5]
    width, front, depth = (_smoothing(knots) @ np.array([width, front, depth], np.float32).T).T
    top = clip((-0.35 - _TABLE_Y) / (-0.35 - _CROWN_Y), 0, 1) ** 2.5
    bottom = clip((_TABLE_Y - 0.9) / (chin_y - 0.9), 0, 1) ** 2.6
    closing = np.sqrt(np.maximum((1 - top) * (1 - bottom), 1e-6))
    return width * closing, depth * closing, front - depth

  def sections(self, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W, D and zc at heights `y` [N]."""
    at = (y[None] - _TABLE_Y[0]) * _PER_TABLE_STEP
    found = cv2.remap(
      self.table,
      at.astype(np.float32, copy=False),
      np.zeros(at.shape, np.float32),
      cv2.INTER_LINEAR,
      borderMode=cv2.BORDER_REPLICATE,
    )
    return found[0, :, 0], found[0, :, 1], found[0, :, 2]

  def raised(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The relief at (x, y), both [rows, columns]."""
    return _at_surface([self.relief], x, y)[0]

  def front(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """z of the front of the face at (x, y), all [N]."""
    width, depth, center = self.sections(y)
    across = x / width
    z = center + depth * np.sqrt(np.maximum(1 - across * across, 0))
    return z + self.raised(x[None], y[None])[0]

  def seen(self, points: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """Points (x, y) [N, 2] on the front of the face -> head units on the screen plane [N, 2], without any roll."""
    x, y = np.ascontiguousarray(points.T)
    turn = _turn(math.sin(yaw), math.cos(yaw), math.sin(pitch), math.cos(pitch))
    return np.stack([x, y, self.front(x, y)], axis=1) @ turn


class Head:
  """Geometry of one head in one pose.

  `depth`, `x`, `y` are float32 [rows, columns]: the visible surface point of each cell of the grid inside the box
  (`rows`, `columns`), in head coordinates (`depth` along the view), meaningful inside `outline`.
  """

  def __init__(self, solid: Solid, pose: Pose):
    self.pose = pose
    self._solid = solid
    self._sin = np.sin([pose.yaw, pose.pitch, pose.roll]).tolist()
    self._cos = np.cos([pose.yaw, pose.pitch, pose.roll]).tolist()
    (sin_yaw, sin_pitch, sin_roll), (cos_yaw, cos_pitch, cos_roll) = self._sin, self._cos
    upright = _turn(sin_yaw, cos_yaw, sin_pitch, cos_pitch)
    roll = np.array([[cos_roll, sin_roll], [-sin_roll, cos_roll]])
    self._axes = (pose.scale * upright @ roll).astype(np.float32)
    self._origin = np.array([pose.x, pose.y], np.float32)
    self._intersect()

  def project(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Head coordinates [N] each -> picture units [N, 2]."""
    points = np.empty((len(x), 3), np.float32)
    points[:, 0], points[:, 1], points[:, 2] = x, y, z
    return points @ self._axes + self._origin

  def on_face(self, points: np.ndarray) -> np.ndarray:
    """Points (x, y) [N, 2] on the front of the face -> picture units [N, 2]."""
    x, y = np.ascontiguousarray(np.asarray(points, np.float32).T)
    return self.project(x, y, self._solid.front(x, y))

  def foreshortened(self, points: np.ndarray) -> np.ndarray:
    """Offsets (x, y) [N, 2] on a plate that faces forward from the head -> offsets on the screen, in head units."""
    return points @ (self._axes[:2] * (1 / self.pose.scale))

  def around(
    self, angle: np.ndarray, y: np.ndarray, radius: float | np.ndarray = 1.0, clamp: bool = True
  ) -> np.ndarray:
    """Points at `angle` round the vertical axis (0 is the front), `radius` sections out -> picture units [N, 2].

    `clamp` moves points that lie behind the outline onto it.
    """
    width, depth, center = self._solid.sections(y)
    if clamp:
      turn = np.arctan2(depth * self._sin[0], width * self._cos[0])
      angle = clip(angle, -np.pi / 2 - turn, np.pi / 2 - turn)
    return self.project(width * radius * np.sin(angle), y, center + depth * radius * np.cos(angle))

  @functools.cached_property
  def outline(self) -> np.ndarray:
    """The head's silhouette, ears and hair left out -> picture units [60, 2]."""
    # Heights gather at crown and chin, where the outline turns.
    y = (_CROWN_Y + self._solid.chin_y) / 2 + (self._solid.chin_y - _CROWN_Y) / 2 * _OUTLINE_HEIGHTS
    return self.around(_BEHIND, np.concatenate([y, y[::-1]]))

  def head_units(self, px: np.ndarray, py: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture units -> head units on the screen plane, roll undone, origin at the pose's."""
    pose, sin, cos = self.pose, self._sin[2], self._cos[2]
    u, v = (px - pose.x) * (1 / pose.scale), (py - pose.y) * (1 / pose.scale)
    return u * cos + v * sin, v * cos - u * sin

  def _intersect(self) -> None:
    (sin_yaw, sin_pitch, sin_roll), (cos_yaw, cos_pitch, cos_roll) = self._sin, self._cos
    outline = self.outline
    (left, top), (right, bottom) = (
      (corner * (GRID / 2)).astype(int).tolist() for corner in (outline.min(0), outline.max(0))
    )
    # In half cells of the grid: the bare head is smooth, only its relief needs them all.
    left, top, right, bottom = max(left - 1, 0), max(top - 1, 0), min(right + 2, GRID // 2), min(bottom + 2, GRID // 2)
    self.rows, self.columns = slice(2 * top, 2 * bottom), slice(2 * left, 2 * right)
    u, v = self.head_units(*(plane[top:bottom, left:right] for plane in half_grid()))
    zero = np.zeros_like(u)
    # A guess is enough to tell the section from: heads are nodded little.
    along = np.sqrt((1.35 - u * u - 0.45 * v * v).clip(0.05))
    y = (v + along * sin_pitch) * (1 / cos_pitch)
    at = (y - _TABLE_Y[0]) * _PER_TABLE_STEP
    width, depth, center = planes(
      cv2.remap(self._solid.table, at, zero, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    )
    a, b = width * cos_yaw, depth * sin_yaw
    reach = np.sqrt(a * a + b * b)
    q = clip((u - center * sin_yaw) / reach, -1, 1)
    p = np.sqrt(1 - q * q)
    x = width * (q * a - p * b) / reach
    z = center + depth * (p * a + q * b) / reach
    along = z * cos_yaw - x * sin_yaw
    depth = y * sin_pitch + along * cos_pitch
    shape = (2 * (right - left), 2 * (bottom - top))
    bare = cv2.resize(cv2.merge([x, y, depth, depth]), shape, interpolation=cv2.INTER_LINEAR)
    x, y = cv2.extractChannel(bare, 0), cv2.extractChannel(bare, 1)
    relief = self._solid.raised(x, y)
    # A point raised by d along z appears this many grid cells away from where it would lie unraised.
    du, dv = sin_yaw, -cos_yaw * sin_pitch
    cells = self.pose.scale * GRID
    shift = (du * cos_roll - dv * sin_roll) * cells, (du * sin_roll + dv * cos_roll) * cells
    lift = self._march(relief, shift)
    columns, rows = np.arange(shape[0], dtype=np.float32), np.arange(shape[1], dtype=np.float32)[:, None]
    bare = cv2.remap(
      bare, columns - lift * shift[0], rows - lift * shift[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    self.x, self.y, depth, _ = planes(bare)
    self.depth = depth + lift * np.float32(cos_yaw * cos_pitch)

  def over_face(self, *patterns: Terms) -> Sequence[np.ndarray]:
    """Patterns of Gaussians in face coordinates, seen on the head's box of the grid -> each float32 [rows, columns]."""
    return _at_surface(gaussians(patterns, _RELIEF_X, _RELIEF_Y), self.x, self.y)

  @staticmethod
  def _march(relief: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    """Highest d with relief(p - d * shift) >= d, for each pixel p of the box."""
    lowest, highest, _, _ = cv2.minMaxLoc(relief)
    # Levels less than half a cell apart would tell nothing new.
    steps = min(1 + int(2 * (highest - lowest) * math.hypot(*shift)), _LEVELS - 1)
    step = (highest - lowest) / steps
    levels = [lowest + step * level for level in range(steps + 1)]
    above = shifted(relief, [(level * shift[0], level * shift[1]) for level in levels])
    levels = np.array(levels, np.float32)[:, None, None]
    above -= levels
    # Between a level below the surface and the next, which is above it, lies a crossing; the highest one is seen.
    below, above = above[:-1], above[1:]
    crossing = below / (below - above + np.float32(1e-6))
    crossing = crossing.clip(0, 1) * step + levels[:-1]
    np.copyto(crossing, np.float32(lowest), where=below < 0)
    return crossing.max(0)


def _relief_terms(shape: Shape, f: Features) -> Terms:
  """Amplitude, x, sigma x, y, sigma y, in head units."""
  nose, mouth, eye = f.nose_y, f.mouth_y, f.eye_x
  smile = max(f.smile, 0.0)
  gape = f.gape
  return [
    # nose: root, bridge, tip, wings, and the hollow where it meets the cheeks
    (0.55 * f.nose_bridge, 0, 0.095, -0.02, 0.18),
    (0.85 * f.nose_bridge, 0, 0.110, 0.25, 0.17),
    (0.44 * f.nose_tip, 0, 0.185, nose - 0.12, 0.17),
    (0.60 * f.nose_tip, 0, 0.125, nose - 0.035, 0.10),
    (0.105, 0.72 * f.nose_width, 0.085, nose + 0.015, 0.075),
    (-0.03, 1.25 * f.nose_width, 0.06, nose + 0.03, 0.09),
    # brow ridge, glabella, eye sockets, eyeballs and the fold of the upper lid
    (shape.brow_ridge, eye - 0.02, 0.24, f.brow_y + 0.02, 0.085),
    (0.4 * shape.brow_ridge, 0, 0.14, f.brow_y + 0.02, 0.12),
    (-shape.socket, eye - 0.03, 0.22, -0.01, 0.125),
    (-0.035, 0.20, 0.08, 0.02, 0.12),
    (0.105, eye, 0.135, 0.0, 0.085),
    (-0.02 - 0.04 * shape.age, eye - 0.04, 0.17, 0.20, 0.05),
    # cheekbones, hollow cheeks, smile, temples
    (shape.cheekbone, 0.60, 0.20, 0.42, 0.16),
    (0.05 * smile, 0.45, 0.15, 0.55, 0.13),
    (-0.045, 0.70, 0.16, 0.92, 0.20),
    (-0.04, 0.90, 0.14, -0.28, 0.20),
    # folds from nose to mouth
    (-0.025 - 0.035 * smile - 0.035 * shape.age, f.mouth_width + 0.02, 0.045, 0.84, 0.11),
    # mouth: mound, lips, line between them, groove of the upper lip, corners
    (0.075, 0, 0.32, mouth + 0.02, 0.22),
    (0.050, 0, 0.9 * f.mouth_width * 0.6, mouth - 0.55 * f.upper_lip - 0.5 * gape * 0.3, 0.045),
    (0.062, 0, 0.8 * f.mouth_width * 0.6, mouth + 0.62 * f.lower_lip + 0.6 * gape, 0.055),
    (-0.045, 0, 0.26, mouth + 0.3 * gape, 0.03 + 0.25 * gape),
    (-0.020, 0, 0.035, mouth - f.upper_lip - 0.10, 0.07),
    (-0.030, f.mouth_width + 0.03, 0.05, mouth - 0.03 * smile, 0.06),
    # chin
    (-0.050, 0, 0.24, mouth + f.lower_lip + 0.13 + gape, 0.055),
    (0.075, 0, 0.19, shape.chin_y - 0.22, 0.12),
    # the forehead is flatter than the ellipse
    (0.03, 0.42, 0.28, -0.75, 0.22),
  ]
