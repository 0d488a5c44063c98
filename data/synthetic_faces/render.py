"""One face, rendered: `render(seed, index)` is a pure function of its arguments, picture and exact label map.

A scene is drawn (`scene`), its solid shapes are lit on a fixed grid (`head`, `hair`, `body`, `wear`, `lighting`), what
is seen is painted at the picture's own size with antialiased masks (`canvas`, `skin`, `features`), and both are
multiplied, over a background (`backdrop`).
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np

from jaxface import labels

from .alignment import align
from .backdrop import draw_backdrop
from .body import Body
from .canvas import Canvas
from .features import paint_features
from .hair import Hair, covers_ears
from .head import GRID, Head, Solid
from .lighting import Relief, illuminate
from .makeup import Makeup
from .scene import Dice, Scene, draw_scene
from .skin import paint_ears, paint_skin
from .wear import Hat, paint_earrings, paint_glasses


def _among(*names: str) -> np.ndarray:
  """1 at the labels of these names: float32 [256]."""
  return np.isin(np.arange(256), [labels.index(name) for name in names]).astype(np.float32)


_SKIN, _LIPS = _among('skin', 'nose', 'l_eye', 'r_eye', 'l_brow', 'r_brow', 'mouth'), _among('u_lip', 'l_lip')
# Lit colours are display values up to this one, so that there is something left for the shoulder.
_RANGE = 1.4


def _shoulder() -> np.ndarray:
  """Lit colours -> what the camera shows: a shoulder instead of clipping, so that highlights keep their form."""
  light = np.square(np.linspace(0, _RANGE, 256))
  over = np.maximum(light - 0.6, 0)
  return np.round(255 * np.sqrt(light - over + over / (1 + 2.5 * over))).astype(np.uint8)


_SHOULDER = _shoulder()
_NOISE_STEP, _NOISE_SIDE = 40, 256


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


def render(
  seed: int, index: int, *, size: int = 144, makeup: bool | Mapping[str, float] = False, aligned: bool = False
) -> Face:
  """Face number `index` of the endless set that `seed` stands for, `size` pixels square.

  The same person, pose, light, surroundings and noise with and without makeup, and at any size. `makeup` True is the
  face's own; the parameters of another face's are worn instead of it (`makeup.py` says what is the same on everyone).
  `aligned` moves the head so that the eyes lie where `alignment.py` says; it changes nothing else.
  """
  stage, backdrop = _set(seed, index, size, None if isinstance(makeup, bool) else makeup, aligned)
  stage.paint_front(stage.scene.makeup if makeup else None)
  return _developed(stage, backdrop, stage.lit())


def render_pair(seed: int, index: int, *, size: int = 144, aligned: bool = False) -> tuple[Face, Face]:
  """What `render` gives without makeup and with the face's own, for much less than the price of two."""
  stage, backdrop = _set(seed, index, size, None, aligned)
  twin = copy.copy(stage)
  twin.canvas = stage.canvas.copy()
  stage.paint_front(None)
  # Makeup moves no shape, so both have the same light; the twin's shapes, raised over it afterwards, are not looked at.
  light = stage.lit()
  twin.paint_front(stage.scene.makeup)
  return _developed(stage, backdrop, light), _developed(twin, backdrop, light)


def _set(
  seed: int, index: int, size: int, makeup: Mapping[str, float] | None, aligned: bool
) -> tuple['_Stage', list[np.ndarray]]:
  """A stage on which all that the head hides is painted, and the backdrop."""
  rng = np.random.default_rng([seed, index])
  scene = draw_scene(rng)
  backdrop = draw_backdrop(Dice(rng))
  jitter = rng.random((160, 4), np.float32)
  if makeup is not None:
    scene = dataclasses.replace(scene, makeup=Makeup.of(makeup))
  solid = Solid(scene.shape, scene.features)
  if aligned:
    pose = align(scene.pose, solid, scene.features, jitter[141].reshape(2, 2))
    scene = dataclasses.replace(scene, pose=pose)
  stage = _Stage(scene, solid, size, jitter)
  stage.paint_behind()
  return stage, backdrop


class _Stage:
  """One picture in the making: its layers are painted, and their shapes raised for the light, back to front."""

  def __init__(self, scene: Scene, solid: Solid, size: int, jitter: np.ndarray):
    self.scene, self.jitter = scene, jitter
    self.makeup: Makeup | None = None
    self.canvas = Canvas(size)
    self.head = Head(solid, scene.pose)
    self.hair = Hair(self.head, scene, jitter[:90])
    self.hat = Hat(self.head, scene) if scene.wear.hat else None
    self.relief = Relief(1 / (scene.pose.scale * GRID))
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
        hair.raise_relief(relief, outline, behind=True)
        hair.paint_behind(canvas, outline)
    body = Body(self.head, self.scene)
    body.raise_relief(relief)
    body.paint(canvas)
    self._paint_ears([side for side in (1, -1) if side not in self.near_ears], behind=True)

  def paint_front(self, makeup: Makeup | None) -> None:
    """The head, which wears this makeup, and what else it wears."""
    self.makeup = makeup
    self._paint_head()
    self._paint_worn()

  def lit(self) -> tuple[list[np.ndarray], np.ndarray]:
    """What `illuminate` gives for the shapes so far."""
    # Dark skin lets less light through, and less of it red.
    softness = np.array([0.34, 0.16, 0.12] if self.scene.skin.color[0] > 0.1 else [0.25, 0.16, 0.14])
    return illuminate(self.relief, self.scene.light, softness)

  def _paint_head(self) -> None:
    """Skin, features, hair and ears, in the order in which this hair style needs the last two."""
    canvas, head, scene, makeup = self.canvas, self.head, self.scene, self.makeup
    self.relief.add_head(head)
    paint_skin(canvas, head, scene, makeup)
    paint_features(canvas, head, scene, makeup, self.jitter[90:122, :3])
    over_ears = covers_ears(scene)
    if not over_ears:
      self._paint_hair()
    self._paint_ears(self.near_ears)
    if over_ears:
      self._paint_hair()

  def _paint_worn(self) -> None:
    """Earrings, glasses, hat."""
    canvas, scene = self.canvas, self.scene
    # A stud shows only where the ear does.
    if scene.wear.earrings and not (scene.wear.earrings == 'stud' and covers_ears(scene)):
      sides = self.near_ears if abs(scene.pose.yaw) > 0.12 else (1, -1)
      paint_earrings(canvas, self.head, scene, [self.ears[side] for side in sides])
    if scene.wear.glasses:
      paint_glasses(canvas, self.head, scene)
    if self.hat:
      self.hat.raise_relief(self.relief)
      self.hat.paint(canvas)

  def _paint_ears(self, sides: list[int], behind: bool = False) -> None:
    if sides:
      ears = paint_ears(self.canvas, self.head, self.scene, sides, behind)
      self.ears |= ears
      self.relief.add_flat(list(ears.values()), -0.1 if behind else 0.25)

  def _paint_hair(self) -> None:
    if self.hair.outline is not None:
      self.hair.raise_relief(self.relief, self.hair.outline, behind=False)
      self.hair.paint_front(self.canvas)


def _to_size(image: np.ndarray, size: int) -> np.ndarray:
  """[h, w, ...] -> [size, size, ...]."""
  if len(image) == size:
    return image
  return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if len(image) > size else cv2.INTER_LINEAR)


def _shine(scene: Scene, makeup: Makeup | None) -> np.ndarray:
  """Label -> how much of a highlight its material shows, in `_RANGE`: uint8 [256]."""
  skin = 0.16 * scene.skin.shine
  lips = skin + 0.16 + (0.5 * makeup.lip_gloss if makeup else 0.0)
  # Light adds up as light does; on display values it counts for less where there is much of it already.
  skin, lips = (
    255 / _RANGE * shine / math.sqrt(4 * color[1] + shine)
    for shine, color in ((skin, scene.skin.color), (lips, scene.skin.lip))
  )
  return (skin * _SKIN + lips * _LIPS).astype(np.uint8)


def _developed(stage: _Stage, backdrop: list[np.ndarray], light: tuple[list[np.ndarray], np.ndarray]) -> Face:
  return Face(_develop(stage, backdrop, *light), stage.canvas.label, stage.scene.makeup.parameters())


def _develop(stage: _Stage, backdrop: list[np.ndarray], lit: list[np.ndarray], highlight: np.ndarray) -> np.ndarray:
  """Light times colour over the background, through the camera -> uint8 [S, S, 3]."""
  canvas, scene, size = stage.canvas, stage.scene, stage.canvas.size
  camera = scene.camera
  gains = np.sqrt(camera.balance).tolist()
  vignette = np.sqrt(1 - camera.vignette * _distance(GRID))
  lit = cv2.merge(
    [
      cv2.multiply(np.sqrt(plane), vignette, scale=gain * 255 / _RANGE, dtype=cv2.CV_8U)
      for plane, gain in zip(lit, gains, strict=True)
    ]
  )
  ground = cv2.merge(
    [cv2.multiply(plane, vignette, scale=gain, dtype=cv2.CV_8U) for plane, gain in zip(backdrop, gains, strict=True)]
  )
  solid = cv2.extractChannel(canvas.color, 3)
  gloss = cv2.multiply(highlight, vignette, scale=255, dtype=cv2.CV_8U)
  gloss = cv2.multiply(_to_size(gloss, size), cv2.LUT(canvas.label, _shine(scene, stage.makeup)), scale=1 / 255)
  image = cv2.multiply(cv2.cvtColor(canvas.color, cv2.COLOR_BGRA2BGR), _to_size(lit, size), scale=1 / 255)
  image = cv2.LUT(cv2.add(image, cv2.merge([gloss] * 3)), _SHOULDER)
  ground = cv2.multiply(_to_size(ground, size), cv2.merge([cv2.bitwise_not(solid)] * 3), scale=1 / 255)
  image = cv2.add(image, ground)
  sigma = camera.blur * size
  # Less than this would not be seen.
  if sigma > 0.3:
    # Faster than GaussianBlur, which works with whole numbers on such pictures; equal but for a last digit.
    kernel = cv2.getGaussianKernel(2 * int(2.5 * sigma + 0.5) + 1, sigma, cv2.CV_32F)
    image = cv2.sepFilter2D(image, cv2.CV_8U, kernel, kernel)
  y, x = (stage.jitter[140, :2] * _NOISE_SIDE).astype(int).tolist()
  strength = camera.noise * 255 / _NOISE_STEP
  return cv2.addWeighted(image, 1, _noise(size)[y : y + size, x : x + size], strength, -128 * strength)


@functools.cache
def _distance(side: int) -> np.ndarray:
  """Half the square of the distance from the middle, in half sides: float32 [side, side]."""
  at = np.linspace(-1, 1, side, dtype=np.float32)
  return 0.5 * (at[:, None] ** 2 + at**2)


@functools.lru_cache(4)
def _noise(size: int) -> np.ndarray:
  """Sensor noise about 128, of deviation _NOISE_STEP: uint8 [N, N, 3], N = size + _NOISE_SIDE, to be cut from."""
  repeats = -(-(size + _NOISE_SIDE) // _NOISE_SIDE)
  noise = np.random.default_rng(5).standard_normal((_NOISE_SIDE, _NOISE_SIDE))
  tile = np.tile(np.round(128 + _NOISE_STEP * noise.clip(-3, 3)).astype(np.uint8), (repeats, repeats))
  return np.stack([tile, np.roll(tile, (71, 113), (0, 1)), np.roll(tile, (149, 37), (0, 1))], axis=-1)
