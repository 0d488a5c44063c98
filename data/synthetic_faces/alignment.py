"""Faces placed as aligned training sets have them: a similarity transform brings the eyes to fixed points."""

import cmath
import dataclasses

import numpy as np

from .head import Solid
from .scene import Features, Pose

# Of the picture's side: between the eyes' centres, and down to the middle between them.
EYE_DISTANCE = 0.25
EYE_LEVEL = 0.46
# The most that a detector misses an eye by.
EYE_ERROR = 0.015
# Turned heads show their eyes close together, and would have to be so large that their chins leave the picture: from
# this scale on eyes stay closer than they should, by some 0.015 each at the most.
_LARGEST = 0.3


def align(pose: Pose, solid: Solid, features: Features, jitter: np.ndarray) -> Pose:
  """The pose with the same turn of the head whose roll, scale and place bring each eye's centre to its fixed point.

  `jitter` uniform [2, 2] places each eye within `EYE_ERROR` of that point; further in, where the head turns far.
  """
  eyes = np.array([(side * features.eye_x, features.eye_y) for side in (-1, 1)], np.float32)
  # In the complex plane a similarity transform is a product and a sum.
  start, end = _complex(solid.seen(eyes, pose.yaw, pose.pitch))
  left, right = (
    complex(0.5 + side * EYE_DISTANCE / 2, EYE_LEVEL) + cmath.rect(EYE_ERROR * far**0.5, cmath.tau * turn)
    for side, (far, turn) in zip((-1, 1), jitter.tolist(), strict=True)
  )
  factor = (right - left) / (end - start)
  factor *= min(1, _LARGEST / abs(factor))
  place = (left + right) / 2 - factor * (start + end) / 2
  return dataclasses.replace(pose, roll=cmath.phase(factor), scale=abs(factor), x=place.real, y=place.imag)


def _complex(points: np.ndarray) -> list[complex]:
  return [complex(x, y) for x, y in points.tolist()]
