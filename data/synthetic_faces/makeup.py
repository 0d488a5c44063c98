"""The makeup layer: what is put on, and nothing about how a face is built. Opacities and strengths are in [0, 1]."""

import dataclasses
import math

import numpy as np

from .canvas import srgb

_LIPS = [
  srgb(*c)
  for c in [
    (176, 24, 44),
    (204, 40, 70),
    (150, 20, 50),
    (110, 18, 48),
    (214, 84, 96),
    (226, 92, 60),
    (196, 60, 130),
    (92, 30, 70),
  ]
]
_SHADOWS = [
  srgb(*c)
  for c in [
    (96, 60, 120),
    (60, 70, 130),
    (140, 76, 50),
    (176, 100, 92),
    (50, 46, 50),
    (40, 110, 120),
    (184, 130, 70),
    (170, 60, 110),
  ]
]
_BLUSHES = [srgb(226, 90, 90), srgb(232, 110, 84), srgb(220, 84, 124)]


@dataclasses.dataclass(frozen=True)
class Makeup:
  """Colours float32 [3], linear light in [0, 1], and how strongly each is laid on."""

  lip: np.ndarray
  lip_opacity: float
  lip_gloss: float
  shadow: np.ndarray
  shadow_opacity: float
  liner: float
  lash: float
  blush: np.ndarray
  blush_opacity: float
  foundation: float
  foundation_lift: float
  brow: float

  def parameters(self) -> dict[str, float]:
    """Flat named floats; colours as display RGB in [0, 1]."""
    flat = {}
    for name, value in vars(self).items():
      if isinstance(value, np.ndarray):
        flat |= {f'{name}_{c}': math.sqrt(v) for c, v in zip(('red', 'green', 'blue'), value.tolist(), strict=True)}
      else:
        flat[name] = value
    return flat


def draw_makeup(dice) -> Makeup:
  """A random look; `dice` is a `scene.Dice`."""

  def jitter(colors: list[np.ndarray]) -> np.ndarray:
    return np.minimum(dice.choice(colors) * dice.range(0.75, 1.3), 1)

  return Makeup(
    lip=jitter(_LIPS),
    lip_opacity=dice.range(0.55, 0.95),
    lip_gloss=dice.range(0.0, 1.0),
    shadow=jitter(_SHADOWS),
    shadow_opacity=dice.range(0.35, 0.8),
    liner=dice.range(0.3, 1.0),
    lash=dice.range(0.3, 1.0),
    blush=jitter(_BLUSHES),
    blush_opacity=dice.range(0.15, 0.5),
    foundation=dice.range(0.3, 0.9),
    foundation_lift=dice.range(0.0, 0.10),
    brow=dice.range(0.1, 0.7),
  )
