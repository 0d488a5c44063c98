"""What a picture shows: every random choice of a face and its light, drawn before anything is rendered.

Lengths are in head units: 1 is half the width of the face at the cheekbones (7 cm in life), with the origin between the
eyes, x to the right of the picture, y down, z to the camera. Angles are radians. Colours are float32 [3], linear light.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable

import numpy as np

from .canvas import srgb
from .makeup import Makeup, draw_makeup

LONG_STYLES = ('bob', 'long', 'wavy', 'curly')
HATS = ('beanie', 'cap', 'brim', 'bandana')

_SKIN_TONES = np.stack([srgb(*c) for c in [
  (244, 213, 196), (236, 195, 170), (226, 178, 146), (204, 148, 112), (168, 112, 80), (124, 80, 56), (84, 54, 40),
]])  # fmt: skip
_HAIR_COLORS = [srgb(*c) for c in [
  (22, 18, 18), (30, 23, 21), (44, 30, 24), (62, 42, 30), (88, 60, 40), (122, 86, 54), (176, 136, 84), (216, 184, 128),
  (130, 62, 32), (164, 84, 44), (120, 116, 114), (190, 188, 186), (226, 222, 216), (140, 40, 70), (60, 80, 130),
]]  # fmt: skip
_HAIR_ODDS = list(itertools.accumulate([16, 16, 14, 11, 9, 7, 6, 5, 3, 3, 4, 3, 1.5, 1, 0.5]))
_LIP_TINT, _LIP_PIGMENT = np.array([0.74, 0.34, 0.38], np.float32), srgb(166, 62, 70)
_GREY = srgb(176, 174, 172)
_IRIS_COLORS = [srgb(*c) for c in [
  (58, 36, 22), (80, 50, 28), (104, 74, 42), (92, 98, 58), (72, 104, 132), (96, 130, 150), (90, 108, 104),
]]  # fmt: skip
_FRAME_COLORS = [srgb(*c) for c in [
  (22, 20, 22), (24, 22, 20), (90, 52, 28), (168, 140, 84), (150, 30, 40), (40, 60, 110),
]]  # fmt: skip
_DARK_LENSES, _CLEAR_LENS = [srgb(18, 18, 22), srgb(48, 32, 22), srgb(22, 36, 46)], srgb(210, 222, 230)
_METALS = [srgb(232, 190, 96), srgb(218, 220, 226), srgb(224, 168, 140)]
_NECKLINES = ['crew', 'scoop', 'vee', 'shirt', 'suit', 'turtle', 'hood']


class Dice:
  """Cheap scalar draws: blocks of uniform numbers, used up in order. `unit()` draws from [0, 1)."""

  def __init__(self, rng: np.random.Generator):
    # An endless iterator that never enters Python but for a new block: thousands of numbers are drawn a face.
    blocks = iter(lambda: rng.random(256).tolist(), None)
    self.unit: Callable[[], float] = itertools.chain.from_iterable(blocks).__next__

  def range(self, low: float, high: float) -> float:
    """Uniform between `low` and `high`."""
    return low + (high - low) * self.unit()

  def bell(self, mean: float, spread: float) -> float:
    """Nearly normal (the sum of four uniform numbers), never beyond 3.5 `spread`."""
    return mean + spread * 1.732 * (self.unit() + self.unit() + self.unit() + self.unit() - 2)

  def chance(self, probability: float) -> bool:
    """True with that probability."""
    return self.unit() < probability

  def choice(self, options):
    """One of the options, all alike."""
    return options[int(self.unit() * len(options))]

  def color(self, saturation: float = 1.0, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Any hue, at the given saturation, with its brightest channel between `low` and `high` of display range."""
    value = self.range(low, high)
    hue = [self.unit(), self.unit(), self.unit()]
    least, span = min(hue), max(max(hue) - min(hue), 1e-3)
    return np.array([(value * (1 - saturation * (1 - (h - least) / span))) ** 2 for h in hue], np.float32)


@dataclasses.dataclass(frozen=True)
class Pose:
  """Where the head is and how it turns; `scale` is picture units a head unit, (x, y) the origin in picture units."""

  yaw: float
  pitch: float
  roll: float
  scale: float
  x: float
  y: float


@dataclasses.dataclass(frozen=True)
class Light:
  """Key light from unit vector `toward` (x right, y down, z to the camera), its colour, and the sky's and ground's."""

  toward: np.ndarray
  key: np.ndarray
  sky: np.ndarray
  ground: np.ndarray


@dataclasses.dataclass(frozen=True)
class Shape:
  """The head's build; `age` is in [0, 1]."""

  age: float
  cranium: float
  cheek: float
  jaw: float
  chin: float
  chin_y: float
  neck: float
  cheekbone: float
  brow_ridge: float
  socket: float


@dataclasses.dataclass(frozen=True)
class Features:
  """Eyes, brows, nose, mouth, ears: positions, sizes, colours."""

  eye_x: float
  eye_width: float
  eye_open: float
  eye_tilt: float
  eye_fold: float
  lash: float
  iris: np.ndarray
  iris_radius: float
  gaze: tuple[float, float]
  brow_y: float
  brow_thick: float
  brow_arch: float
  brow_tilt: float
  brow_density: float
  nose_y: float
  nose_width: float
  nose_bridge: float
  nose_tip: float
  mouth_y: float
  mouth_width: float
  upper_lip: float
  lower_lip: float
  cupid: float
  smile: float
  gape: float
  ear_size: float
  ear_out: float

  @property
  def eye_y(self) -> float:
    """Height of the middle of the open eyes."""
    return -0.18 * self.eye_open


@dataclasses.dataclass(frozen=True)
class Skin:
  """Albedo of skin and lips; shine, redness, freckles, stubble in [0, 1]; `offset` chooses its blotches."""

  color: np.ndarray
  lip: np.ndarray
  shine: float
  redness: float
  freckles: float
  stubble: float
  beard: str
  mole: tuple[float, float] | None
  offset: float


@dataclasses.dataclass(frozen=True)
class Hair:
  """Style and colour of the hair; `parting` is the x the strands run from, `length` the y where long hair ends."""

  style: str
  color: np.ndarray
  line: float
  temple: float
  parting: float
  volume: float
  length: float
  wave: float
  frame: float
  shine: float
  offset: float


@dataclasses.dataclass(frozen=True)
class Wear:
  """What is worn. None or '' where it is not; colours linear."""

  glasses: str
  glasses_color: np.ndarray
  lens: np.ndarray
  lens_opacity: float
  hat: str
  hat_color: np.ndarray
  hat_band: np.ndarray
  hat_y: float
  earrings: str
  necklace: str
  metal: np.ndarray
  gem: np.ndarray
  neckline: str
  pattern: str
  cloth: np.ndarray
  cloth_second: np.ndarray
  shoulder: float


@dataclasses.dataclass(frozen=True)
class Camera:
  """Blur (Gaussian sigma, picture units), noise (deviation, display range), vignette strength, white balance [3]."""

  blur: float
  noise: float
  vignette: float
  balance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scene:
  """One picture."""

  pose: Pose
  light: Light
  shape: Shape
  features: Features
  skin: Skin
  hair: Hair
  wear: Wear
  camera: Camera
  makeup: Makeup


def draw_scene(rng: np.random.Generator) -> Scene:
  """All choices of one picture. The numbers used up depend on the choices, never on what is rendered later."""
  dice = Dice(rng)
  # 1: soft, feminine features; 0: rugged ones. Most faces lie nearer to one end.
  softness = min(max(dice.choice([0.22, 0.78]) + dice.bell(0, 0.13), 0), 1)
  age = dice.unit() ** 1.4
  tone = dice.unit()
  return Scene(
    pose=_pose(dice),
    light=_light(dice),
    shape=_shape(dice, softness, age),
    features=_features(dice, softness, age),
    skin=_skin(dice, softness, age, tone),
    hair=_hair(dice, softness, age, tone),
    wear=_wear(dice, softness),
    camera=Camera(
      blur=dice.range(0.0012, 0.0042),
      noise=dice.range(0.003, 0.014),
      vignette=dice.range(0, 0.35),
      balance=np.array([1 + dice.bell(0, 0.05), 1, 1 + dice.bell(0, 0.06)], np.float32),
    ),
    makeup=draw_makeup(dice),
  )


def _pose(dice: Dice) -> Pose:
  half_span = dice.range(1.8, 2.2)
  return Pose(
    yaw=min(max(dice.bell(0, 0.24), -0.6), 0.6),
    pitch=min(max(dice.bell(-0.02, 0.10), -0.26), 0.26),
    roll=dice.bell(0, 0.08),
    scale=0.5 / half_span,
    x=0.5 + dice.bell(0, 0.02),
    y=0.462 + dice.bell(0, 0.018),
  )


def _light(dice: Dice) -> Light:
  azimuth, height = dice.bell(0, 0.62), dice.range(0.12, 0.95)
  toward = math.sin(azimuth) * math.cos(height), -math.sin(height), math.cos(azimuth) * math.cos(height)
  warmth = dice.bell(0, 0.09)
  hardness = dice.range(0.45, 1.0)
  exposure = dice.range(0.84, 1.08)
  key, sky, ground = (
    exposure * (base + slope * hardness) for base, slope in ((0.62, 0.62), (0.78, -0.52), (0.42, -0.26))
  )
  colors = [
    toward,
    (key * (1 + warmth), key, key * (1 - warmth)),
    (sky * (1 - warmth), sky, sky * (1 + warmth)),
    (1.08 * ground, ground, 0.90 * ground),
  ]
  return Light(*np.array(colors, np.float32))


def _shape(dice: Dice, softness: float, age: float) -> Shape:
  return Shape(
    age=age,
    cranium=dice.bell(1.0, 0.025),
    cheek=dice.bell(0.965, 0.03),
    jaw=dice.bell(0.90 - 0.10 * softness, 0.035),
    chin=dice.bell(0.58 - 0.12 * softness, 0.05),
    chin_y=dice.bell(1.62 - 0.06 * softness, 0.055),
    neck=dice.bell(0.71 - 0.19 * softness, 0.03),
    cheekbone=dice.range(0.02, 0.09),
    brow_ridge=dice.range(0.02, 0.05) + 0.06 * (1 - softness),
    socket=dice.range(0.09, 0.17),
  )


def _features(dice: Dice, softness: float, age: float) -> Features:
  smiling = dice.chance(0.5)
  gape = dice.range(0.06, 0.20) if dice.chance(0.6 if smiling else 0.2) else 0.0
  fullness = dice.bell(1.0 + 0.15 * softness - 0.2 * age, 0.16)
  return Features(
    eye_x=dice.bell(0.455, 0.014),
    eye_width=dice.bell(0.240, 0.012),
    eye_open=max(dice.bell(0.088 + 0.018 * softness, 0.013), 0.055) * (0.88 if smiling else 1.0),
    eye_tilt=dice.bell(0.05, 0.05),
    eye_fold=dice.unit(),
    lash=0.35 + 0.5 * softness + dice.bell(0, 0.08),
    iris=_IRIS_COLORS[int(dice.unit() ** 1.6 * len(_IRIS_COLORS))] * dice.range(0.7, 1.4),
    iris_radius=dice.bell(0.100, 0.003),
    gaze=(dice.bell(0, 0.03), dice.bell(0, 0.012)),
    brow_y=dice.bell(-0.275 - 0.02 * softness, 0.025),
    brow_thick=max(dice.bell(0.100 - 0.028 * softness, 0.013), 0.055),
    brow_arch=dice.bell(0.03 + 0.03 * softness, 0.02),
    brow_tilt=dice.bell(0.0, 0.02),
    brow_density=dice.range(0.55, 0.95),
    nose_y=dice.bell(0.63, 0.03),
    nose_width=dice.bell(0.275 - 0.03 * softness, 0.026),
    nose_bridge=dice.range(0.08, 0.17),
    nose_tip=dice.bell(0.27 - 0.03 * softness, 0.03),
    mouth_y=dice.bell(1.02, 0.02),
    mouth_width=dice.bell(0.375, 0.022) * (1.13 if smiling else 1.0),
    upper_lip=max(0.090 * fullness, 0.035) * (0.85 if smiling else 1.0),
    lower_lip=max(0.128 * fullness, 0.05),
    cupid=dice.range(0.2, 1.0),
    smile=dice.range(0.35, 1.0) if smiling else dice.bell(0.0, 0.15),
    gape=gape,
    ear_size=dice.bell(0.33, 0.03),
    ear_out=dice.range(0.15, 0.6),
  )


def _skin(dice: Dice, softness: float, age: float, tone: float) -> Skin:
  at = tone * (len(_SKIN_TONES) - 1)
  low = min(int(at), len(_SKIN_TONES) - 2)
  color = _SKIN_TONES[low] + (at - low) * (_SKIN_TONES[low + 1] - _SKIN_TONES[low])
  color = color * np.array([1 + dice.bell(0, 0.03), 1, 1 + dice.bell(0, 0.07)], np.float32)
  lip = 0.72 * color * _LIP_TINT + _LIP_PIGMENT * dice.range(0.10, 0.34) * (1 - 0.45 * tone)
  hairy = softness < 0.45
  beard = dice.choice(['full', 'full', 'goatee', 'moustache']) if hairy and dice.chance(0.3) else ''
  return Skin(
    color=color.astype(np.float32),
    lip=lip.astype(np.float32),
    shine=dice.range(0.15, 0.7) + 0.25 * tone,
    redness=dice.range(0.1, 0.8) * (1 - 0.6 * tone),
    freckles=dice.range(0.3, 1.0) if tone < 0.35 and dice.chance(0.25) else 0.0,
    stubble=dice.range(0.15, 0.9) if hairy and not beard and dice.chance(0.6) else 0.0,
    beard=beard,
    mole=(dice.range(-0.7, 0.7), dice.range(0.2, 1.3)) if dice.chance(0.2) else None,
    offset=dice.unit(),
  )


def _hair(dice: Dice, softness: float, age: float, tone: float) -> Hair:
  feminine = dice.chance(softness)
  if feminine:
    odds = dict(fringe=0.08, side_part=0.10, bob=0.17, long=0.22, wavy=0.20, curly=0.08, afro=0.03, updo=0.12)
  else:
    odds = dict(
      bald=0.08, buzz=0.14, short=0.30, fringe=0.12, side_part=0.18, receding=0.08, afro=0.04, long=0.03, curly=0.03
    )
  edges = list(itertools.accumulate(odds.values()))
  style = list(odds)[bisect.bisect_left(edges, dice.unit() * edges[-1])]
  if tone > 0.75 and style in ('long', 'bob') and dice.chance(0.5):
    style = 'afro' if style == 'bob' else 'curly'
  dark = tone > 0.45 and dice.chance(0.8)
  pick = dice.unit() * _HAIR_ODDS[3 if dark else -1]
  color = _HAIR_COLORS[bisect.bisect_left(_HAIR_ODDS, pick)]
  grey = min(max((age - 0.62) * 2.6, 0), 1) * dice.unit()
  color = color * (1 - grey) + _GREY * grey
  return Hair(
    style=style,
    color=(color * dice.range(0.85, 1.2)).astype(np.float32),
    line=dice.bell(-1.08, 0.06) - (0.16 if style == 'receding' else 0.0),
    temple=dice.range(0.0, 0.12) + 0.05 * (1 - softness),
    parting=dice.choice([-0.45, -0.3, 0.0, 0.3, 0.45]) + dice.bell(0, 0.05),
    volume=dice.range(0.05, 0.16),
    length=dice.range(1.2, 1.7) if style == 'bob' else dice.range(2.0, 3.4),
    wave=dice.range(0.03, 0.09) if style in ('wavy', 'updo') else dice.range(0, 0.012),
    frame=dice.unit(),
    shine=dice.range(0.3, 1.0),
    offset=dice.unit(),
  )


def _wear(dice: Dice, softness: float) -> Wear:
  glasses = (
    dice.choice(['round', 'square', 'square', 'rimless', 'cat', 'sun', 'sun', 'aviator']) if dice.chance(0.13) else ''
  )
  dark_lens = glasses in ('sun', 'aviator')
  return Wear(
    glasses=glasses,
    glasses_color=dice.choice(_FRAME_COLORS),
    lens=dice.choice(_DARK_LENSES) if dark_lens else _CLEAR_LENS,
    lens_opacity=dice.range(0.82, 0.96) if dark_lens else dice.range(0.04, 0.14),
    hat=dice.choice(HATS) if dice.chance(0.08) else '',
    hat_color=dice.color(dice.range(0, 0.8), 0.15, 0.9),
    hat_band=dice.color(dice.range(0, 0.9), 0.1, 1.0),
    hat_y=dice.bell(-0.70, 0.04),
    earrings=dice.choice(['stud', 'stud', 'hoop', 'drop', 'drop']) if dice.chance(0.08 + 0.40 * softness) else '',
    necklace=dice.choice(['chain', 'beads', 'pendant']) if dice.chance(0.04 + 0.17 * softness) else '',
    metal=dice.choice(_METALS),
    gem=dice.color(0.85, 0.5, 1.0),
    neckline=dice.choice([*_NECKLINES, 'straps' if softness > 0.5 else 'crew']),
    pattern=dice.choice(['plain', 'plain', 'plain', 'stripes', 'bars', 'plaid', 'dots']),
    cloth=dice.color(dice.range(0, 0.85), 0.08, 0.95),
    cloth_second=dice.color(dice.range(0, 0.85), 0.1, 1.0),
    shoulder=dice.bell(1.75 - 0.22 * softness, 0.1),
  )
