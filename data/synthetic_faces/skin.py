"""The skin of the head: its colour, blotches, freckles, beard, the makeup that lies on it, and the ears."""

import functools
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from jaxface import labels

from . import tiles
from .canvas import Canvas, Patch, clip, curve, ellipse, within
from .head import GRID, Head
from .makeup import Makeup
from .scene import Scene

_SKIN = labels.index('skin')
# The subject's left is on the picture's right.
_EARS = {1: labels.index('l_ear'), -1: labels.index('r_ear')}


def paint_skin(canvas: Canvas, head: Head, scene: Scene, makeup: Makeup | None) -> Patch:
  """The head's skin with its blotches, freckles and beard, and the makeup that lies on skin."""
  skin, features = scene.skin, scene.features
  patch = canvas.cover(head.outline)
  x, y, nose = head.x, head.y, features.nose_y
  # All but hair is smooth: it is worked out on the head's grid.
  flush, hollow = head.over_face(
    [
      (0.8, 0.55, 0.22, 0.45, 0.18), (0.9, 0, 0.15, nose, 0.11), (0.35, 0, 0.3, 1.45, 0.14),
      (0.55, features.eye_x, 0.2, 0.08, 0.09), (0.25, 0, 0.5, -0.7, 0.2),
    ],
    [(1.0, features.eye_x - 0.05, 0.17, 0.13, 0.06), (0.6, features.eye_x, 0.2, -0.09, 0.07)],
  )  # fmt: skip
  blotches = tiles.sample(tiles.clouds, x * 0.45 + skin.offset, y * 0.45)
  even = 1 - (0.8 * makeup.foundation if makeup else 0.0)
  lift = 1 + (makeup.foundation_lift if makeup else 0.0)
  red = (even * skin.redness) * (flush + 0.25 * blotches)
  tone = lift + (lift * even * 0.04) * blotches
  if skin.freckles:
    spots = tiles.sample(tiles.grain, x * 0.11, y * 0.11 + skin.offset)
    tone -= even * skin.freckles * 0.5 * clip(spots - 1.1, 0, 0.7) * clip(flush * 1.5, 0, 1)
  # Tired, darker skin round the eyes.
  tone *= 1 - (even * (0.10 + 0.14 * scene.shape.age)) * hollow
  planes = [
    (tone * base) * (1 + give * red) for base, give in zip(skin.color.tolist(), (0.05, -0.16, -0.13), strict=True)
  ]
  if makeup:
    blush, shadow = head.over_face(
      [(1.0, 0.62, 0.20, 0.42, 0.13)],
      [(1.05, features.eye_x + 0.03, 0.19, -0.09, 0.07), (0.5, features.eye_x + 0.16, 0.10, -0.05, 0.06)],
    )
    for opacity, pigment in (
      (clip(blush, 0, 1) * makeup.blush_opacity, makeup.blush),
      (clip(1.15 * shadow, 0, 1) * makeup.shadow_opacity, makeup.shadow),
    ):
      # Pigment tints the skin below it rather than hiding it.
      tint = 0.55 * pigment + 0.45 * np.sqrt(pigment * skin.color)
      for plane, stain in zip(planes, tint.tolist(), strict=True):
        plane += (stain - plane) * opacity
  fit = functools.partial(_fitted, head=head, patch=patch, size=canvas.size)
  color = cv2.split(fit(cv2.merge(planes)))
  if skin.beard or skin.stubble:
    _beard(color, head, fit, scene)
  canvas.paint(patch, color, _SKIN)
  if skin.mole:
    spot = head.on_face(np.array([skin.mole]))[0]
    size = 0.018 * head.pose.scale
    canvas.paint(within(canvas.cover(ellipse(*spot, size, size)), patch), skin.color * 0.25, opacity=0.8)
  return patch


def _fitted(plane: np.ndarray, head: Head, patch: Patch, size: int) -> np.ndarray:
  """Planes [h, w] or [h, w, C] over the head's box of the grid, at the pixels of the patch."""
  step = GRID / size
  move = np.array([
    [step, 0, (patch.columns.start + 0.5) * step - 0.5 - head.columns.start],
    [0, step, (patch.rows.start + 0.5) * step - 0.5 - head.rows.start],
  ])  # fmt: skip
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  return cv2.warpAffine(plane, move, patch.cover.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _beard(color: Sequence[np.ndarray], head: Head, fit: Callable[[np.ndarray], np.ndarray], scene: Scene) -> None:
  """Beard or stubble, over the planes of the skin's colour in place; it grows where the terms say."""
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
  x, y, density = cv2.split(fit(cv2.merge([head.x, head.y, *head.over_face(terms)])))
  hair = scene.hair.color * 0.8
  if skin.beard:
    strand = tiles.sample(tiles.strands, x * 0.55 + 0.1 * y * np.sign(x), y * 0.5 + skin.offset)
    opacity = clip(density * 1.5 - 0.42 + 0.16 * strand, 0, 0.93)
    tone = 1 + 0.3 * strand
  else:
    dots = tiles.sample(tiles.grain, x * 0.3, y * 0.3 + skin.offset)
    opacity = clip(density - 0.1, 0, 0.55) * skin.stubble * (0.75 + 0.16 * dots)
    hair, tone = 0.35 * skin.color + 0.4 * hair, 1.0
  for plane, base in zip(color, hair.tolist(), strict=True):
    plane += (base * tone - plane) * opacity


# (out from the head, down): a C with a lobe, and the hollow in it.
_EAR = curve(np.array([
  (-0.1, -0.02), (0.28, -0.33), (0.75, -0.42), (1.02, -0.15), (0.92, 0.35), (0.62, 0.72), (0.40, 1.18), (0.08, 1.30),
  (-0.12, 0.95), (-0.15, 0.4),
]), 4, closed=True)  # fmt: skip
_CONCHA = curve(np.array([
  (0.10, 0.1), (0.38, -0.15), (0.70, -0.1), (0.66, 0.3), (0.52, 0.45), (0.50, 0.15), (0.38, 0.12), (0.36, 0.5),
  (0.15, 0.75),
]), 4, closed=True)  # fmt: skip

# Ears are redder than faces, and dark inside.
_FLESH, _HOLLOW = np.array([1.02, 0.90, 0.88], np.float32), np.array([0.66, 0.54, 0.5], np.float32)


def paint_ear(canvas: Canvas, head: Head, scene: Scene, side: int) -> np.ndarray:
  """One ear (`side` +1: the subject's left) -> its outline, picture units."""
  features = scene.features
  size = features.ear_size
  out, lean = features.ear_out, 0.12

  def place(points: np.ndarray) -> np.ndarray:
    u, v = points[:, 0] * size, points[:, 1] * size * 0.82
    x = side * (0.955 * scene.shape.cheek + u * (0.25 + 0.55 * out))
    return head.project(x, 0.13 + v, -0.02 - u * (0.9 - 0.4 * out) - v * lean)

  outline = place(_EAR)
  patch = canvas.cover(outline)
  skin = scene.skin.color * _FLESH
  canvas.paint(patch, skin, _EARS[side])
  canvas.shade(canvas.cover(place(_CONCHA)), _HOLLOW, 0.8)
  return outline
