"""Light on the solid shapes of a picture, on the fixed grid: diffuse light, shadows, occlusion, highlights."""

import math

import cv2
import numpy as np

from .canvas import clip, share
from .head import GRID, Head
from .scene import Light

# All shapes but the face are smooth, and so are shadows: half the grid is enough for them.
HALF = GRID // 2
# How far, in head units, a shadow is searched for along the light.
_SHADOW_STEPS = (0.07, 0.14, 0.22, 0.34, 0.50, 0.72, 1.0)
_FAR = -3.0
_NOTHING = np.broadcast_to(np.array([0, 0, 1, _FAR], np.float32), (GRID, GRID, 4)).copy()


class Relief:
  """Normals and depth of the frontmost shapes, float32 [GRID, GRID, 4]: x, y, z, depth; `spacing` is head units a cell.

  Shapes are laid over each other as a painter would: the last one wins, whatever its depth.
  """

  def __init__(self, spacing: float):
    self.spacing = spacing
    self.surface = _NOTHING.copy()

  @staticmethod
  def mask(*outlines: np.ndarray) -> np.ndarray:
    """Cells inside the polygons (picture units), uint8 [GRID, GRID], 0 or 1."""
    cells = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(cells, [_cells(outline) for outline in outlines], 1, 0, 4)
    return cells

  def add(self, mask: np.ndarray, depth: np.ndarray, bump: np.ndarray | None = None, flatten: float = 1.0) -> None:
    """Lays a shape over the others; `depth` [HALF, HALF]. `bump` moves the surface for its normals only; `flatten` < 1
    softens them."""
    shape = _with_normals(depth, bump, flatten, 2 * self.spacing)
    cv2.copyTo(cv2.resize(shape, (GRID, GRID), interpolation=cv2.INTER_LINEAR), mask, self.surface)

  def add_flat(self, outline: np.ndarray, depth: float) -> None:
    """Lays a plate that faces the camera over the others; `outline` in picture units."""
    cv2.fillPoly(self.surface, [_cells(outline)], (0, 0, 1, depth), 0, 4)

  def add_head(self, head: Head) -> None:
    """Lays the head over the others, at the grid's full resolution."""
    shape = _with_normals(head.depth, None, 1.0, self.spacing)
    # A soft edge: a hard one would show as a chain of dark and light cells along the jaw.
    mask = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(mask, [_cells(head.outline)], 255, cv2.LINE_AA, 4)
    cover = share(mask[head.rows, head.columns])
    here = self.surface[head.rows, head.columns]
    # With nothing behind, the head's normals go on past its outline, so that no rim is lit as if it faced the camera.
    cover[here[..., 3] < _FAR + 0.5] = 1
    here[:] = cv2.blendLinear(shape, here, cover, 1 - cover)


def _cells(outline: np.ndarray) -> np.ndarray:
  """Picture units -> fixed-point cells of the grid."""
  return (outline * (16 * GRID) - 7.5).astype(np.int32)


def _with_normals(depth: np.ndarray, bump: np.ndarray | None, flatten: float, spacing: float) -> np.ndarray:
  surface = depth if bump is None else depth + bump
  scale = -flatten / (8 * spacing)
  nx = cv2.Sobel(surface, cv2.CV_32F, 1, 0, scale=scale)
  ny = cv2.Sobel(surface, cv2.CV_32F, 0, 1, scale=scale)
  nz = 1 / np.sqrt(nx * nx + ny * ny + 1)
  return cv2.merge([nx * nz, ny * nz, nz, depth])


def illuminate(relief: Relief, light: Light, softness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Irradiance [3, GRID, GRID], and the highlight [GRID, GRID] in [0, 1] before any material.

  `softness` float32 [3]: how far light of each colour wraps round the terminator (skin lets red through).
  """
  # Shapes meet in hard steps of the grid; real edges are rounder than that.
  nx, ny, nz, depth = cv2.split(cv2.blur(relief.surface, (2, 2)))
  lx, ly, lz = light.toward.tolist()
  facing = nx * lx + ny * ly + nz * lz
  depth = cv2.resize(depth, (HALF, HALF), interpolation=cv2.INTER_AREA)
  both = cv2.merge([_shadow(depth, light.toward, 2 * relief.spacing), _occlusion(depth)])
  shadow, occlusion = cv2.split(cv2.resize(both, (GRID, GRID), interpolation=cv2.INTER_LINEAR))
  up = 0.5 - 0.5 * ny
  ambient = occlusion * (0.55 + 0.45 * nz)
  lit = np.empty((3, GRID, GRID), np.float32)
  for plane, wrap, key, sky, ground in zip(
    lit, softness.tolist(), *(c.tolist() for c in (light.key, light.sky, light.ground)), strict=True
  ):
    np.maximum((facing + wrap) * (1 / (1 + wrap)), 0, out=plane)
    # Blood under the skin lets a little red into the shadow's edge.
    plane *= key * 0.5 * wrap + (key * (1 - 0.5 * wrap)) * shadow
    plane += ambient * (ground + (sky - ground) * up)
  # Half-way between the light and the camera.
  length = math.sqrt(2 * (lz + 1))
  shine = np.maximum((facing + nz) * (1 / length), 0)
  for _ in range(4):
    shine *= shine
  return lit, shine * shadow


def _shadow(depth: np.ndarray, toward: np.ndarray, spacing: float) -> np.ndarray:
  """1 where the light arrives, 0 where something stands in its way; [h, w] like depth."""
  lx, ly, lz = toward.tolist()
  blocked = np.zeros_like(depth)
  move = np.eye(2, 3, dtype=np.float32)
  for step in _SHADOW_STEPS:
    move[0, 2], move[1, 2] = -step * lx / spacing, -step * ly / spacing
    other = cv2.warpAffine(depth, move, depth.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    other -= depth
    # The further the thing, the softer its shadow's edge.
    other -= step * lz + 0.02
    other *= 1 / (0.06 + 0.16 * step)
    np.maximum(blocked, other, out=blocked)
  return 1 - cv2.GaussianBlur(np.minimum(blocked, 1), (5, 5), 0.9)


def _occlusion(depth: np.ndarray) -> np.ndarray:
  """Share of the sky seen, from how much of the neighbourhood stands higher."""
  near = np.maximum(depth, -1.6)
  fine = cv2.GaussianBlur(near, (7, 7), 1.5) - near
  wide = cv2.blur(cv2.blur(near, (15, 15)), (15, 15)) - near
  return 1 / (1 + clip(3.2 * fine, 0, 1.5) + clip(0.9 * wide, 0, 1.2))
