"""Whom to take makeup from: for every face another one on whom its makeup can be seen."""

import itertools

import numpy as np

from .scene import Scene, draw_scene

# No dataset has as many faces: nobody is both a face and a reference, or a reference twice, in whatever split.
_APART = 2**32
# A head that turns further shows one cheek and one eye.
_MOST_TURN = 0.4
# Of display values in [0, 1]; a quarter of all faces are as near to a given one.
_NEAR_TONE = 0.1


def reference_index(seed: int, index: int) -> int:
  """Index of the face of the same `seed` that wears the makeup of face `index` as a reference.

  Its skin has nearly the same tone. Systems that take the tone for a part of the makeup then differ from the true
  result by what they do wrong with the makeup itself.
  """
  scene = lambda i: draw_scene(np.random.default_rng([seed, i]))
  tone = _tone(scene(index))
  candidates = itertools.count(index + _APART, _APART)
  return next(i for i in candidates if _is_reference(scene(i), tone))


def _tone(scene: Scene) -> np.ndarray:
  """Display RGB of the skin, float32 [3]."""
  return np.sqrt(scene.skin.color)


def _is_reference(scene: Scene, tone: np.ndarray) -> bool:
  return _shows_makeup(scene) and np.abs(_tone(scene) - tone).max() < _NEAR_TONE


def _shows_makeup(scene: Scene) -> bool:
  dark_lenses = scene.wear.glasses and scene.wear.lens_opacity > 0.5
  return not (dark_lenses or scene.skin.beard or scene.skin.stubble) and abs(scene.pose.yaw) < _MOST_TURN
