"""Light on the solid shapes of a picture, on the fixed grid: diffuse light, shadows, occlusion, highlights."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from .canvas import clip, planes, share, shifted
from .head import GRID, Head
from .scene import Light

# All shapes but the face are smooth, and so are shadows: half the grid is enough for them.
HALF = GRID // 2
# How far, in head units, a shadow is searched for along the light.
_SHADOW_STEPS = np.array([0.08, 0.17, 0.32, 0.56, 0.95], np.float32)[:, None, None]
_FAR = -3.0
_NOTHING = np.broadcast_to(np.array([0, 0, _FAR], np.float32), (GRID, GRID, 3)).copy()


class Relief:
  """The frontmost shapes, float32 [GRID, GRID, 3]: slopes along x and y, and depth; `spacing` is head units a cell.

  Shapes are laid over each other as a painter would: the last one wins, whatever its depth.
  """

  def __init__(self, spacing: float):
    self.spacing = spacing
    self.surface = _NOTHING.copy()

  @staticmethod
  def mask(outline: np.ndarray) -> np.ndarray:
    """Cells inside a polygon (picture units), uint8 [GRID, GRID], 0 or 1."""
    cells = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(cells, [_cells(outline)], 1, 0, 4)
    return cells

  def add(self, mask: np.ndarray, depth: np.ndarray, bump: np.ndarray, flatten: float = 1.0) -> None:
    """Lays a shape over the others; `depth` [HALF, HALF]. `bump` moves the surface for its slopes only; `flatten` < 1
    softens them."""
    shape = _with_slopes(depth, depth + bump, 2 * self.spacing / flatten)
    cv2.copyTo(cv2.resize(shape, (GRID, GRID), interpolation=cv2.INTER_LINEAR), mask, self.surface)

  def add_flat(self, outlines: Sequence[np.ndarray], depth: float) -> None:
    """Lays plates that face the camera over the others; `outlines` in picture units."""
    cv2.fillPoly(self.surface, [_cells(outline) for outline in outlines], (0, 0, depth), 0, 4)

  def add_head(self, head: Head) -> None:
    """Lays the head over the others, at the grid's full resolution."""
    shape = _with_slopes(head.depth, head.depth, self.spacing)
    # A soft edge: a hard one would show as a chain of dark and light cells along the jaw.
    mask = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(mask, [_cells(head.outline)], 255, cv2.LINE_AA, 4)
    cover = share(mask[head.rows, head.columns])
    here = self.surface[head.rows, head.columns]
    # With nothing behind, the head's slopes go on past its outline, so that no rim is lit as if it faced the camera.
    np.maximum(cover, here[..., 2] < _FAR + 0.5, out=cover)
    here[:] = cv2.blendLinear(shape, here, cover, 1 - cover)


def _cells(outline: np.ndarray) -> np.ndarray:
  """Picture units -> fixed-point cells of the grid."""
  return (outline * (16 * GRID) - 7.5).astype(np.int32)


def _with_slopes(depth: np.ndarray, surface: np.ndarray, spacing: float) -> np.ndarray:
  scale = -1 / (8 * spacing)
  x, y = (cv2.Sobel(surface, cv2.CV_32F, *along, scale=scale) for along in ((1, 0), (0, 1)))
  return cv2.merge([x, y, depth])


def illuminate(relief: Relief, light: Light, softness: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
  """Irradiance, three planes [GRID, GRID], and the highlight [GRID, GRID] in [0, 1] before any material.

  `softness` float32 [3]: how far light of each colour wraps round the terminator (skin lets red through).
  """
  # Shapes meet in hard steps of the grid; real edges are rounder than that.
  x, y, depth = planes(cv2.blur(relief.surface, (2, 2)))
  z = 1 / np.sqrt(x * x + y * y + 1)
  lx, ly, lz = light.toward.tolist()
  facing = (x * lx + y * ly + lz) * z
  depth = cv2.resize(depth, (HALF, HALF), interpolation=cv2.INTER_AREA)
  shadow, occlusion = (
    cv2.resize(plane, (GRID, GRID), interpolation=cv2.INTER_LINEAR)
    for plane in (_shadow(depth, light.toward, 2 * relief.spacing), _occlusion(depth))
  )
  ambient = occlusion * (0.55 + 0.45 * z)
  # Light of the sky rather than the ground falls on what looks up.
  tilted = ambient * (y * z)
  lit = []
  for wrap, key, sky, ground in zip(
    softness.tolist(), *(c.tolist() for c in (light.key, light.sky, light.ground)), strict=True
  ):
    # Blood under the skin lets a little red into the shadow's edge.
    plane = (facing + wrap).clip(0)
    plane *= (key * 0.5 * wrap + (key * (1 - 0.5 * wrap)) * shadow) * (1 / (1 + wrap))
    plane += (0.5 * (ground + sky)) * ambient
    plane += (0.5 * (ground - sky)) * tilted
    lit.append(plane)
  # Half-way between the light and the camera.
  shine = ((facing + z) * (1 / math.sqrt(2 * (lz + 1)))).clip(0)
  for _ in range(4):
    shine *= shine
  return lit, shine * shadow


def _shadow(depth: np.ndarray, toward: np.ndarray, spacing: float) -> np.ndarray:
  """1 where the light arrives, 0 where something stands in its way; [h, w] like depth."""
  lx, ly, lz = toward.tolist()
  steps = (_SHADOW_STEPS.ravel() * (-1 / spacing)).tolist()
  others = shifted(depth, [(step * lx, step * ly) for step in steps])
  others -= depth
  # The further the thing, the softer its shadow's edge.
  others -= _SHADOW_STEPS * lz + 0.02
  others *= 1 / (0.06 + 0.16 * _SHADOW_STEPS)
  return 1 - cv2.GaussianBlur(others.max(0).clip(0, 1), (5, 5), 0.9)


def _occlusion(depth: np.ndarray) -> np.ndarray:
  """Share of the sky seen, from how much of the neighbourhood stands higher."""
  near = depth.clip(-1.6)
  fine = cv2.GaussianBlur(near, (5, 5), 1.1) - near
  wide = cv2.blur(cv2.blur(near, (11, 11)), (11, 11)) - near
  return 1 / (1 + clip(3.2 * fine, 0, 1.5) + clip(0.9 * wide, 0, 1.2))
