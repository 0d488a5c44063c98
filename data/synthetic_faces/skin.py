"""The skin of the head: its colour, blotches, freckles, beard, the makeup that lies on it, and the ears."""

from collections.abc import Sequence

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, curve, tinted
from .head import GRID, Head
from .ink import Ink
from .makeup import Makeup
from .scene import Scene

_SKIN = labels.index('skin')
# The subject's left is on the picture's right.
_EARS = {1: labels.index('l_ear'), -1: labels.index('r_ear')}


def paint_skin(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None) -> None:
  """The head's skin with its blotches, freckles and beard, and the makeup that lies on skin."""
  skin, features = scene.skin, scene.features
  patch = canvas.cover(head.outline)
  x, y, nose = head.x, head.y, features.nose_y
  # All but hair is smooth: it is worked out on the head's grid.
  eye_x = features.eye_x
  patterns = [
    [
      (0.8, 0.55, 0.22, 0.45, 0.18), (0.9, 0, 0.15, nose, 0.11), (0.35, 0, 0.3, 1.45, 0.14),
      (0.55, eye_x, 0.2, 0.08, 0.09), (0.25, 0, 0.5, -0.7, 0.2),
    ],
    [(1.0, eye_x - 0.05, 0.17, 0.13, 0.06), (0.6, eye_x, 0.2, -0.09, 0.07)],
  ]  # fmt: skip
  if makeup:
    patterns += [
      [(1.0, 0.62, 0.20, 0.42, 0.13)],
      [
        (1.05, eye_x + 0.01, 0.19, -0.13, 0.065),
        (0.6, eye_x + 0.19, 0.10, -0.11, 0.07),
        (0.3, eye_x + 0.06, 0.15, 0.10, 0.035),
      ],
    ]
  flush, hollow, *pigmented = head.over_face(*patterns)
  blotches = tiles.sample(tiles.clouds, x * 0.45 + skin.offset, y * 0.45)
  even = 1 - (0.8 * makeup.foundation if makeup else 0.0)
  lift = 1 + (makeup.foundation_lift if makeup else 0.0)
  red = (even * skin.redness) * (flush + 0.25 * blotches)
  tone = lift + (lift * even * 0.04) * blotches
  if skin.freckles:
    spots = tiles.sample(tiles.grain, x * 0.22, y * 0.22 + skin.offset)
    tone -= even * skin.freckles * 0.5 * clip(spots - 1.1, 0, 0.7) * clip(flush * 1.5, 0, 1)
  # Tired, darker skin round the eyes.
  tone *= 1 - (even * (0.10 + 0.14 * scene.shape.age)) * hollow
  planes = [
    (tone * base) * (1 + give * red) for base, give in zip(skin.color.tolist(), (0.05, -0.16, -0.13), strict=True)
  ]
  if makeup:
    blush, shadow = pigmented
    for opacity, pigment in (
      (clip(blush, 0, 1) * makeup.blush_opacity, makeup.blush),
      (clip(1.15 * shadow, 0, 1) * makeup.shadow_opacity, makeup.shadow),
    ):
      # Pigment tints the skin below it rather than hiding it.
      tint = 0.7 * pigment + 0.3 * np.sqrt(pigment * skin.color)
      for plane, stain in zip(planes, tint.tolist(), strict=True):
        plane += (stain - plane) * opacity
  picture = cv2.convertScaleAbs(np.sqrt(cv2.merge(planes)), alpha=255)
  picture = _fitted(picture, head, patch, canvas.size)
  if skin.beard or skin.stubble:
    picture = _bearded(picture, head, patch, canvas.size, scene)
  canvas.paint(patch, picture, _SKIN)


def _fitted(plane: np.ndarray, head: Head, patch: Patch, size: int) -> np.ndarray:
  """Planes [h, w] or [h, w, C] over the head's box of the grid, at the pixels of the patch, which lie in it."""
  if size % GRID:
    (left, right), (top, bottom) = ((side.start, GRID - side.stop) for side in (head.columns, head.rows))
    plane = cv2.copyMakeBorder(plane, top, bottom, left, right, cv2.BORDER_REPLICATE)
    return cv2.resize(plane, (size, size), interpolation=cv2.INTER_LINEAR)[patch.rows, patch.columns]
  # Where cells are whole pixels, the head's box is enlarged for itself.
  cell = size // GRID
  (height, width), top, left = plane.shape[:2], cell * head.rows.start, cell * head.columns.start
  large = cv2.resize(plane, (cell * width, cell * height), interpolation=cv2.INTER_LINEAR)
  return large[patch.rows.start - top : patch.rows.stop - top, patch.columns.start - left : patch.columns.stop - left]


def _bearded(picture: np.ndarray, head: Head, patch: Patch, size: int, scene: Scene) -> np.ndarray:
  """The picture with beard or stubble, which grows where the terms say."""
  skin, features = scene.skin, scene.features
  mouth, chin = features.mouth_y, scene.shape.chin_y
  moustache = [
    (1.15, 0.12, 0.14, mouth - features.upper_lip - 0.075, 0.042),
    (1.05, 0.31, 0.10, mouth - features.upper_lip - 0.035, 0.05),
    (0.7, features.mouth_width, 0.07, mouth + 0.02, 0.12),
  ]
  goatee = [*moustache, (1.7, 0, 0.22, chin - 0.12, 0.16), (0.8, features.mouth_width - 0.02, 0.08, mouth + 0.15, 0.16)]
  full = [
    *goatee,
    (1.5, 0.55, 0.17, 1.28, 0.2),
    (1.4, 0.80, 0.13, 0.85, 0.22),
    (1.0, 0.3, 0.25, 1.5, 0.12),
    (0.7, 0.95, 0.10, 0.4, 0.25),
  ]
  terms = {'full': full, 'goatee': goatee, 'moustache': moustache[:2], '': full}[skin.beard]
  x, y, density = (_fitted(plane, head, patch, size) for plane in (head.x, head.y, *head.over_face(terms)))
  hair = scene.hair.color * 0.8
  if skin.beard:
    strand = tiles.sample(tiles.strands, x * 0.55 + 0.1 * y * np.sign(x), y * 0.5 + skin.offset)
    opacity = clip(density * 1.5 - 0.42 + 0.16 * strand, 0, 0.93)
    tone = 1 + 0.15 * strand
  else:
    dots = tiles.sample(tiles.grain, x * 0.6, y * 0.6 + skin.offset)
    opacity = clip(density - 0.1, 0, 0.55) * skin.stubble * (0.75 + 0.16 * dots)
    hair, tone = 0.35 * skin.color + 0.4 * hair, np.ones_like(x)
  return cv2.blendLinear(tinted(tone, None, hair, hair), np.ascontiguousarray(picture), opacity, 1 - opacity)


# (out from the head, down): a C with a lobe, and the hollow in it.
_EAR = curve(np.array([
  (-0.1, -0.02), (0.28, -0.33), (0.75, -0.42), (1.02, -0.15), (0.92, 0.35), (0.62, 0.72), (0.40, 1.18), (0.08, 1.30),
  (-0.12, 0.95), (-0.15, 0.4),
]), 4, closed=True)  # fmt: skip
_CONCHA = curve(np.array([
  (0.10, 0.1), (0.38, -0.15), (0.70, -0.1), (0.66, 0.3), (0.52, 0.45), (0.50, 0.15), (0.38, 0.12), (0.36, 0.5),
  (0.15, 0.75),
]), 4, closed=True)  # fmt: skip

_EAR_PARTS = np.concatenate([_EAR, _CONCHA])

# Two cells of the grid that shapes are lit on: what lies further inside an outline leaves no trace at its edge.
_WELL_INSIDE = 2 / GRID
# Ears are redder than faces, and dark inside.
_FLESH, _HOLLOW = np.array([1.02, 0.90, 0.88], np.float32), np.array([0.73, 0.63, 0.6], np.float32)


def paint_ears(
  canvas: Canvas, head: Head, scene: Scene, sides: Sequence[int], behind: bool = False
) -> dict[int, np.ndarray]:
  """The ears on these sides (+1: the subject's left) -> their outlines by side, picture units.

  What lies `behind` the head and is hidden by it altogether is not painted.
  """
  features, skin = scene.features, scene.skin.color * _FLESH
  size, out, lean = features.ear_size, features.ear_out, 0.12
  u, v = _EAR_PARTS[:, 0] * size, _EAR_PARTS[:, 1] * (size * 0.82)
  x = 0.955 * scene.shape.cheek + u * (0.25 + 0.55 * out)
  places = {side: head.project(side * x, 0.13 + v, -0.02 - u * (0.9 - 0.4 * out) - v * lean) for side in sides}
  outlines = {side: place[: len(_EAR)] for side, place in places.items()}
  if behind and all(_hides(head.outline, outline) for outline in outlines.values()):
    return outlines
  ink = Ink(canvas, np.concatenate(list(places.values())))
  hollow = skin * _HOLLOW
  for side, place in places.items():
    points = ink.points(place)
    ink.fill([points[: len(_EAR)]], skin, labels=[_EARS[side]])
    ink.fill([points[len(_EAR) :]], hollow)
  ink.apply()
  return outlines


def _hides(outline: np.ndarray, other: np.ndarray) -> bool:
  """Whether an outline that is all but convex lies well round the other's box."""
  (left, top), (right, bottom) = other.min(0).tolist(), other.max(0).tolist()
  corners = (left, top), (right, top), (left, bottom), (right, bottom)
  return all(cv2.pointPolygonTest(outline, corner, True) > _WELL_INSIDE for corner in corners)
