"""Light on the solid shapes of a picture, on the fixed grid: diffuse with soft terminator, shadows, occlusion, highlights."""

import cv2
import numpy as np

from .head import GRID
from .canvas import clip
from .scene import Light

_HALF = GRID // 2
# How far, in head units, a shadow is searched for along the light.
_SHADOW_STEPS = (0.07, 0.13, 0.20, 0.29, 0.40, 0.55, 0.75, 1.0)
_FAR = -3.0


class Relief:
  """Depth [GRID, GRID] and normals [3, GRID, GRID] of the frontmost shapes; `spacing` is head units a grid cell.

  Shapes are laid over each other as a painter would: the last one wins, whatever its depth.
  """

  def __init__(self, spacing: float):
    self.spacing = spacing
    self.depth = np.full((GRID, GRID), _FAR, np.float32)
    self.normal = np.zeros((3, GRID, GRID), np.float32)
    self.normal[2] = 1

  def mask(self, *outlines: np.ndarray) -> np.ndarray:
    """Cells inside the polygons (picture units), bool [GRID, GRID]."""
    cells = np.zeros((GRID, GRID), np.uint8)
    cv2.fillPoly(cells, [np.rint((o * GRID - 0.5) * 16).astype(np.int32) for o in outlines], 1, 0, 4)
    return cells.view(bool)

  def add(self, mask: np.ndarray, depth: np.ndarray, bump: np.ndarray | None = None, flatten: float = 1.0) -> None:
    """Lays a shape over the others; `bump` moves the surface for its normals only, `flatten` < 1 softens them."""
    surface = depth if bump is None else depth + bump
    scale = -flatten / (8 * self.spacing)
    nx = cv2.Sobel(surface, cv2.CV_32F, 1, 0, scale=scale)
    ny = cv2.Sobel(surface, cv2.CV_32F, 0, 1, scale=scale)
    nz = 1 / np.sqrt(nx * nx + ny * ny + 1)
    nx *= nz
    ny *= nz
    for plane, value in zip(self.normal, (nx, ny, nz), strict=True):
      np.copyto(plane, value, where=mask)
    np.copyto(self.depth, depth, where=mask)


def illuminate(relief: Relief, light: Light, softness: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Irradiance [3, GRID, GRID], highlight [GRID, GRID] in [0, 1] before any material, and occlusion [GRID, GRID].

  `softness` float32 [3]: how far light of each colour wraps round the terminator (skin lets red through).
  """
  nx, ny, nz = relief.normal
  lx, ly, lz = (float(c) for c in light.toward)
  facing = nx * lx + ny * ly + nz * lz
  depth = cv2.resize(relief.depth, (_HALF, _HALF), interpolation=cv2.INTER_AREA)
  shadow = _shadow(depth, light.toward, 2 * relief.spacing)
  occlusion = _occlusion(depth)
  shadow, occlusion = (cv2.resize(m, (GRID, GRID), interpolation=cv2.INTER_LINEAR) for m in (shadow, occlusion))
  up = 0.5 - 0.5 * ny
  ambient = occlusion * (0.55 + 0.45 * nz)
  lit = np.empty((3, GRID, GRID), np.float32)
  for c in range(3):
    wrap = float(softness[c])
    diffuse = np.maximum((facing + wrap) * (1 / (1 + wrap)), 0)
    # Blood under the skin lets a little red into the shadow's edge.
    lit[c] = diffuse * (light.key[c] * (1 - (1 - 0.5 * wrap) * (1 - shadow)))
    lit[c] += ambient * (light.ground[c] + (light.sky[c] - light.ground[c]) * up)
  half = np.array([lx, ly, lz + 1])
  half = (half / np.linalg.norm(half)).tolist()
  shine = np.maximum(nx * half[0] + ny * half[1] + nz * half[2], 0)
  for _ in range(4):
    shine *= shine
  return lit, shine * shadow, occlusion


def _shadow(depth: np.ndarray, toward: np.ndarray, spacing: float) -> np.ndarray:
  """1 where the light arrives, 0 where something stands in its way; [h, w] like depth."""
  lx, ly, lz = (float(c) for c in toward)
  blocked = np.zeros_like(depth)
  for step in _SHADOW_STEPS:
    move = np.array([[1, 0, -step * lx / spacing], [0, 1, -step * ly / spacing]], np.float32)
    other = cv2.warpAffine(depth, move, depth.shape[::-1], flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    # The further the thing, the softer its shadow's edge.
    np.maximum(blocked, (other - depth - step * lz - 0.02) * (1 / (0.06 + 0.16 * step)), out=blocked)
  return 1 - cv2.GaussianBlur(np.minimum(blocked, 1), (5, 5), 0.9)


def _occlusion(depth: np.ndarray) -> np.ndarray:
  """Share of the sky seen, from how much of the neighbourhood stands higher."""
  near = np.maximum(depth, -1.6)
  fine = cv2.GaussianBlur(near, (7, 7), 1.5) - near
  wide = cv2.blur(cv2.blur(near, (15, 15)), (15, 15)) - near
  return 1 / (1 + clip(3.2 * fine, 0, 1.5) + clip(0.9 * wide, 0, 1.2))
