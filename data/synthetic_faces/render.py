"""One face, rendered: `render(seed, index)` is a pure function of its arguments, picture and exact label map.

A scene is drawn (`scene`), its solid shapes are lit on a fixed grid (`head`, `hair`, `body`, `wear`, `lighting`), what
is seen is painted at the picture's own size with antialiased masks (`canvas`, `skin`, `features`), and both are
multiplied, over a background (`backdrop`).
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from . import tiles
from .backdrop import draw_backdrop
from .body import Body
from .canvas import Canvas
from .features import paint_features
from .hair import Hair, covers_ears
from .head import GRID, Head
from .lighting import HALF, Relief, illuminate
from .makeup import Makeup
from .scene import Dice, Scene, draw_scene
from .skin import paint_ear, paint_skin
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
  stage = _Stage(scene, scene.makeup if makeup else None, size, rng.random((160, 4), np.float32))
  stage.paint_behind()
  stage.paint_head()
  stage.paint_worn()
  return Face(_develop(stage, backdrop), stage.canvas.label, scene.makeup.parameters())


class _Stage:
  """One picture in the making: its layers are painted, and their shapes raised for the light, back to front."""

  def __init__(self, scene: Scene, makeup: Makeup | None, size: int, jitter: np.ndarray):
    self.scene, self.makeup, self.jitter = scene, makeup, jitter
    self.canvas = Canvas(size)
    self.head = Head(scene.shape, scene.features, scene.pose)
    self.hair = Hair(self.head, scene, jitter[:64, 0])
    self.hat = Hat(self.head, scene) if scene.wear.hat else None
    self.relief = Relief(1 / (scene.pose.scale * GRID))
    # How much of a highlight each pixel's material shows.
    self.shine = np.zeros((size, size), np.float32)
    # The side of the head that an ear is on (+1: the subject's left) turns away when the face turns to that side.
    self.near_ears = [side for side in (1, -1) if side * scene.pose.yaw < 0.10]
    self.ears = {}

  def paint_behind(self) -> None:
    """All that the head hides: brim, hanging hair, a bun, neck and clothes, the far ear."""
    canvas, relief, hair = self.canvas, self.relief, self.hair
    if self.hat:
      self.hat.paint_back(canvas)
    bun = None if self.hat else hair.bun()
    for outline in (hair.outline if hair.hangs else None, bun):
      if outline is not None:
        hair.raise_relief(relief, *_grid_centers(), outline, behind=True)
        hair.paint_behind(canvas, outline)
    body = Body(self.head, self.scene)
    body.raise_relief(relief, *_grid_centers())
    body.paint(canvas)
    for side in (1, -1):
      if side not in self.near_ears:
        self._paint_ear(side, depth=-0.1)

  def paint_head(self) -> None:
    """Skin, features, hair and ears, in the order in which this hair style needs the last two."""
    canvas, head, scene, makeup = self.canvas, self.head, self.scene, self.makeup
    self.relief.add_head(head)
    skin = paint_skin(canvas, head, scene, makeup)
    self.shine[skin.rows, skin.columns] += 0.16 * scene.skin.shine * skin.cover
    lips = canvas.cover(paint_features(canvas, head, scene, makeup, self.jitter[64:104, :3]))
    gloss = 0.16 + (0.5 * makeup.lip_gloss if makeup else 0.0)
    self.shine[lips.rows, lips.columns] += gloss * lips.cover
    over_ears = covers_ears(scene)
    if not over_ears:
      self._paint_hair()
    for side in self.near_ears:
      self._paint_ear(side, depth=0.25)
    if over_ears:
      self._paint_hair()

  def paint_worn(self) -> None:
    """Earrings, glasses, hat."""
    canvas, scene = self.canvas, self.scene
    if scene.wear.earrings:
      # A stud shows only where the ear does.
      sides = self.near_ears if abs(scene.pose.yaw) > 0.12 else (1, -1)
      for side in sides if not (scene.wear.earrings == 'stud' and covers_ears(scene)) else ():
        paint_earring(canvas, self.head, scene, self.ears[side])
    if scene.wear.glasses:
      paint_glasses(canvas, self.head, scene)
    if self.hat:
      self.hat.raise_relief(self.relief, *_grid_centers())
      self.hat.paint(canvas)

  def _paint_ear(self, side: int, depth: float) -> None:
    self.ears[side] = outline = paint_ear(self.canvas, self.head, self.scene, side)
    self.relief.add_flat(outline, depth)

  def _paint_hair(self) -> None:
    hair = self.hair
    if hair.outline is None:
      return
    hair.raise_relief(self.relief, *_grid_centers(), hair.outline, behind=False)
    patch = hair.paint_front(self.canvas)
    self.shine[patch.rows, patch.columns] *= 1 - patch.cover
    if self.scene.hair.style != 'buzz' and not self.hat:
      hair.stray(self.canvas, self.jitter[104:130])


@functools.cache
def _grid_centers() -> tuple[np.ndarray, np.ndarray]:
  centers = (np.arange(HALF, dtype=np.float32) + 0.5) / HALF
  return tuple(np.meshgrid(centers, centers))


def _to_size(image: np.ndarray, size: int) -> np.ndarray:
  """[h, w] or [h, w, C], scaled to [size, size] or [size, size, C]."""
  if len(image) == size:
    return image
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)


def _develop(stage: _Stage, backdrop: np.ndarray) -> np.ndarray:
  """Light times colour over the background, through the camera -> uint8 [S, S, 3]."""
  canvas, scene, size = stage.canvas, stage.scene, stage.canvas.size
  camera = scene.camera
  # Dark skin lets less light through, and less of it red.
  softness = np.array([0.34, 0.16, 0.12] if scene.skin.color[0] > 0.1 else [0.25, 0.16, 0.14])
  lit, highlight = illuminate(stage.relief, scene.light, softness)
  gloss = _to_size(highlight, size) * stage.shine
  planes = []
  balance = camera.balance.tolist()
  for color, light, key, gain in zip(canvas.color, lit, scene.light.key.tolist(), balance, strict=True):
    plane = color * _to_size(light, size)
    plane += gloss * key
    # A shoulder instead of clipping: highlights on light skin keep their form.
    over = cv2.max(plane, 0.6)
    over -= 0.6
    plane -= over
    plane += over / (1 + 2.5 * over)
    if gain != 1:
      plane *= gain
    planes.append(plane)
  ground = _to_size(backdrop * camera.balance, size)
  image = cv2.blendLinear(cv2.merge(planes), ground, canvas.solid, 1 - canvas.solid)
  image *= _vignette(size, round(camera.vignette, 2))
  np.sqrt(np.minimum(image, 1, out=image), out=image)
  sigma = camera.blur * size
  reach = 2 * int(2.5 * sigma + 0.5) + 1
  if reach > 1:
    image = cv2.GaussianBlur(image, (reach, reach), sigma)
  y, x = (stage.jitter[140, :2] * tiles.SIDE).astype(int).tolist()
  image = cv2.scaleAdd(_noise(size)[y : y + size, x : x + size], camera.noise, image)
  return cv2.convertScaleAbs(np.maximum(image, 0, out=image), alpha=255)


@functools.lru_cache(64)
def _vignette(size: int, strength: float) -> np.ndarray:
  at = np.linspace(-1, 1, size, dtype=np.float32)
  plane = 1 - np.float32(strength) * 0.5 * (at[:, None] ** 2 + at**2)
  return np.stack([plane] * 3, axis=-1)


@functools.lru_cache(4)
def _noise(size: int) -> np.ndarray:
  """Sensor noise of deviation 1, float32 [size + SIDE, size + SIDE, 3], to be cut from."""
  repeats = -(-(size + tiles.SIDE) // tiles.SIDE)
  tile = np.tile(tiles.grain(), (repeats, repeats))
  return np.stack([tile, np.roll(tile, (71, 113), (0, 1)), np.roll(tile, (149, 37), (0, 1))], axis=-1)
