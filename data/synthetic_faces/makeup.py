"""The makeup layer: what is put on, and nothing about how a face is built. Opacities and strengths are in [0, 1].

Two faces wear the same makeup when these numbers are the same: the same products, laid on as thickly. Lip colour, eye
shadow and blush cover by their opacity, so that what they let through is the wearer's own; liner and lashes are as
dark on everyone; brows become darker by the same share of their own colour. Foundation is the wearer's shade, as it is
in life: it evens out and brightens the skin it lies on by the same share, and carries no colour from face to face.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from jaxface.errors import UserError

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
    (112, 56, 150),
    (48, 76, 160),
    (146, 76, 44),
    (186, 92, 96),
    (46, 42, 46),
    (28, 118, 124),
    (196, 136, 60),
    (182, 58, 116),
  ]
]
_BLUSHES = [srgb(226, 90, 90), srgb(232, 110, 84), srgb(220, 84, 124)]

_CHANNELS = ('red', 'green', 'blue')


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
        flat |= {f'{name}_{c}': math.sqrt(v) for c, v in zip(_CHANNELS, value.tolist(), strict=True)}
      else:
        flat[name] = value
    return flat

  @classmethod
  def of(cls, parameters: Mapping[str, float]) -> 'Makeup':
    """The makeup with these `parameters()`; UserError where one is missing, unknown, or outside of [0, 1]."""
    left, values = dict(parameters), {}
    try:
      for field in dataclasses.fields(cls):
        if field.type is np.ndarray:
          values[field.name] = np.float32([left.pop(f'{field.name}_{c}') ** 2 for c in _CHANNELS])
        else:
          values[field.name] = float(left.pop(field.name))
    except KeyError as error:
      raise UserError(f'makeup: no parameter {error}; take all that `render` gives a face') from error
    if left:
      raise UserError(f'makeup: unknown {", ".join(left)}; take only what `render` gives a face')
    for name, value in parameters.items():
      if not 0 <= value <= 1:
        raise UserError(f'makeup: {name}={value}; choose from 0 to 1')
    return cls(**values)


def draw_makeup(dice) -> Makeup:
  """A random look; `dice` is a `scene.Dice`."""

  def jitter(colors: list[np.ndarray]) -> np.ndarray:
    return np.minimum(dice.choice(colors) * dice.range(0.75, 1.3), 1)

  return Makeup(
    lip=jitter(_LIPS),
    lip_opacity=dice.range(0.7, 0.95),
    lip_gloss=dice.range(0.0, 1.0),
    shadow=jitter(_SHADOWS),
    shadow_opacity=dice.range(0.5, 0.9),
    liner=dice.range(0.3, 1.0),
    lash=dice.range(0.3, 1.0),
    blush=jitter(_BLUSHES),
    blush_opacity=dice.range(0.2, 0.6),
    foundation=dice.range(0.3, 0.9),
    foundation_lift=dice.range(0.0, 0.10),
    brow=dice.range(0.2, 0.8),
  )
