"""One face, rendered: `render(seed, index)` is a pure function of its arguments, picture and exact label map.

A scene is drawn (`scene`), its solid shapes are lit on a fixed grid (`head`, `hair`, `body`, `wear`, `lighting`), what is
seen is painted at the picture's own size with antialiased masks (`canvas`, `face`), and both are multiplied.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from . import face, tiles
from .backdrop import draw_backdrop
from .body import Body
from .canvas import Canvas
from .hair import Hair, covers_ears
from .head import GRID, Head
from .lighting import Relief, illuminate
from .scene import Dice, Scene, draw_scene
from .wear import Hat, paint_earring, paint_glasses


class Face(NamedTuple):
  """A rendered face.

  Attributes:
    image: uint8 [S, S, 3], RGB.
    label: uint8 [S, S], values in 0..18, in the order of `jaxface.labels.CLASSES`.
    makeup: the parameters of the face's makeup, worn or not: named floats, colours as display RGB in [0, 1].
  """

  image: np.ndarray
  label: np.ndarray
  makeup: dict[str, float]


def render(seed: int, index: int, *, size: int = 144, makeup: bool = False) -> Face:
  """Face number `index` of the endless set that `seed` stands for, `size` pixels square.

  The same person, pose, light, surroundings and noise with and without `makeup`, and at any size.
  """
  rng = np.random.default_rng([seed, index])
  scene = draw_scene(rng)
  backdrop = draw_backdrop(Dice(rng))
  jitter = rng.random((160, 4), np.float32)
  canvas = Canvas(size)
  head = Head(scene.shape, scene.features, scene.pose)
  lit, gloss = _paint(canvas, head, scene, jitter, makeup)
  image = _develop(canvas, scene, backdrop, lit, gloss, jitter)
  return Face(image, canvas.label, scene.makeup.parameters())


def _paint(canvas: Canvas, head: Head, scene: Scene, jitter: np.ndarray, made_up: bool) -> tuple[np.ndarray, np.ndarray]:
  """Paints all layers, back to front -> irradiance [3, S, S] and highlight [S, S]."""
  makeup = scene.makeup if made_up else None
  px, py = _grid_centers()
  relief = Relief(1 / (scene.pose.scale * GRID))
  hair, body = Hair(head, scene, jitter[:64, 0]), Body(head, scene)
  hat = Hat(head, scene) if scene.wear.hat else None
  shine = np.zeros((canvas.size, canvas.size), np.float32)

  if hat:
    hat.paint_back(canvas)
  back, front, bun = hair.back(), hair.front(), hair.bun()
  if back is not None:
    hair.raise_relief(relief, px, py, back, cut=False)
    hair.paint(canvas, back, cut=False, light_x=0, dim=0.6)
  if bun is not None and not hat:
    hair.raise_relief(relief, px, py, bun, cut=False)
    hair.paint(canvas, bun, cut=False, light_x=0, dim=0.85)
  body.raise_relief(relief, px, py)
  body.paint(canvas)

  yaw = scene.pose.yaw
  # The subject's left ear (+1) turns away when the face turns to the picture's right.
  near = [side for side in (1, -1) if side * yaw < 0.10]
  ears = {side: face.paint_ear(canvas, head, scene, side) for side in (1, -1) if side not in near}
  for outline, _ in ears.values():
    relief.add(relief.mask(outline), head.depth * 0 - 0.1)
  head_mask = relief.mask(head.outline())
  relief.add(head_mask, head.depth)
  skin = face.paint_skin(canvas, head, scene, makeup)
  shine[skin.rows, skin.columns] += 0.16 * scene.skin.shine * skin.cover
  brows = face.paint_brows(canvas, head, scene, makeup, jitter[64:104, :3])
  nose = face.paint_nose(canvas, head, scene)
  eyes = face.paint_eyes(canvas, head, scene, makeup, nose)
  lips = face.paint_mouth(canvas, head, scene, makeup)
  gloss = 0.16 + (0.5 * makeup.lip_gloss if makeup else 0.0)
  shine[lips.rows, lips.columns] += gloss * lips.cover

  hidden = covers_ears(scene)
  if not hidden and front is not None:
    _hair_front(canvas, relief, hair, front, px, py, shine)
  for side in near:
    ears[side] = face.paint_ear(canvas, head, scene, side)
    relief.add(relief.mask(ears[side][0]), head.depth * 0 + 0.25, flatten=0)
  front_hair = _hair_front(canvas, relief, hair, front, px, py, shine) if hidden else None
  if front is not None and scene.hair.style != 'buzz' and not hat:
    hair.stray(canvas, jitter[104:130])
  if scene.wear.earrings:
    for side in near if abs(yaw) > 0.12 else (1, -1):
      paint_earring(canvas, head, scene, ears[side][0], front_hair if scene.wear.earrings == 'stud' else None)
  if scene.wear.glasses:
    paint_glasses(canvas, head, scene, [*eyes, *brows])
  if hat:
    hat.raise_relief(relief, px, py)
    hat.paint(canvas)

  softness = np.array([0.34, 0.16, 0.12]) if scene.skin.color[0] > 0.1 else np.array([0.25, 0.16, 0.14])
  lit, highlight, occlusion = illuminate(relief, scene.light, softness)
  lit, highlight = _to_size(lit, canvas.size), _to_size(highlight[None], canvas.size)[0]
  return lit, highlight * shine


def _hair_front(canvas, relief, hair, front, px, py, shine):
  hair.raise_relief(relief, px, py, front, cut=True)
  patch = hair.paint(canvas, front, cut=True, light_x=0)
  shine[patch.rows, patch.columns] *= 1 - patch.cover
  return patch


@functools.cache
def _grid_centers() -> tuple[np.ndarray, np.ndarray]:
  centers = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
  return tuple(np.meshgrid(centers, centers))


def _to_size(planes: np.ndarray, size: int) -> np.ndarray:
  if planes.shape[-1] == size:
    return planes
  kernel = cv2.INTER_AREA if planes.shape[-1] > size else cv2.INTER_LINEAR
  return np.stack([cv2.resize(p, (size, size), interpolation=kernel) for p in planes])


def _develop(canvas: Canvas, scene: Scene, backdrop: np.ndarray, lit: np.ndarray, gloss: np.ndarray, jitter: np.ndarray) -> np.ndarray:
  """Light times colour over the background, through the camera -> uint8 [S, S, 3]."""
  camera, size = scene.camera, canvas.size
  image = canvas.color * lit + gloss * scene.light.key[:, None, None]
  # A shoulder instead of clipping: highlights on light skin keep their form.
  image = np.where(image > 0.6, 1 - 0.4 * np.exp((0.6 - image) * 2.5), image)
  ground = _to_size(backdrop, size)
  image = ground + (image - ground) * canvas.solid
  image *= _vignette(size, round(camera.vignette, 2)) * camera.balance[:, None, None]
  sigma = camera.blur * size
  image = np.sqrt(np.clip(image, 0, 1))
  image = cv2.merge(list(image))
  image = cv2.GaussianBlur(image, (0, 0), sigma)
  image += _noise(size, jitter) * np.float32(camera.noise)
  return cv2.convertScaleAbs(np.maximum(image, 0), alpha=255)


@functools.lru_cache(64)
def _vignette(size: int, strength: float) -> np.ndarray:
  at = np.linspace(-1, 1, size, dtype=np.float32)
  return 1 - np.float32(strength) * 0.5 * (at[:, None] ** 2 + at**2)


def _noise(size: int, jitter: np.ndarray) -> np.ndarray:
  """Sensor noise, float32 [S, S, 3], deviation 1: the shared tile at places of the picture's own."""
  tile = _noise_tile(size)
  places = (jitter[140:143, :2] * tiles.SIDE).astype(int)
  return np.stack([tile[y : y + size, x : x + size] for y, x in places], axis=-1)


@functools.lru_cache(4)
def _noise_tile(size: int) -> np.ndarray:
  repeats = -(-(size + tiles.SIDE) // tiles.SIDE)
  return np.tile(tiles.grain(), (repeats, repeats))
