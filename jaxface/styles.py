"""Styles of the parts of faces, one vector a class: taken from one face or another, and mixed. All of it is numpy."""

# K classes | D numbers of a style

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from jaxface import labels
from jaxface.errors import UserError

# What people call parts, beside the classes' own names.
GROUPS = {
  'face': ('skin', 'nose'),
  'eyes': ('l_eye', 'r_eye'),
  'brows': ('l_brow', 'r_brow'),
  'ears': ('l_ear', 'r_ear'),
  'lips': ('u_lip', 'l_lip', 'mouth'),
  'glasses': ('eye_g',),
  'earrings': ('ear_r',),
  'necklace': ('neck_l',),
}

# Parts that together are all classes, from those of a face outwards.
PARTITION = (
  'face', 'eyes', 'brows', 'lips', 'ears', 'hair', 'neck', 'cloth', 'hat', 'glasses', 'earrings', 'necklace',
  'background',
)  # fmt: skip


def part_classes(name: str) -> tuple[int, ...]:
  """The classes of a part: of a group, or one class. UserError, which lists all parts, for another name."""
  if name in GROUPS:
    return tuple(labels.index(each) for each in GROUPS[name])
  if name not in labels.CLASSES:
    raise UserError(f'unknown part {name!r}; choose from {", ".join([*GROUPS, *labels.CLASSES])}')
  return (labels.index(name),)


class Style(NamedTuple):
  """The style of one face.

  Attributes:
    tokens: float32 [K, D].
    present: bool [K], the classes that the face has; what the others' tokens are means nothing.
  """

  tokens: np.ndarray
  present: np.ndarray


def classes_in(label: np.ndarray) -> np.ndarray:
  """Which classes a label map [H, W] has, bool [K]."""
  return np.isin(np.arange(labels.NUM_CLASSES), label)


def class_names(classes: Iterable[int]) -> list[str]:
  """Names of classes, for people."""
  return [labels.CLASSES[each] for each in classes]


def lacking(wanted: np.ndarray, style: Style, classes: Sequence[int] | None = None) -> list[int]:
  """Of some classes (None: all) those that are `wanted`, bool [K], and that a face does not have."""
  return [each for each in _all_or(classes) if wanted[each] and not style.present[each]]


def take(source: Style, reference: Style, classes: Sequence[int] | None = None) -> Style:
  """The style of `source` with that of some classes (None: all) of `reference`, where that face has them."""
  chosen = np.isin(np.arange(len(source.tokens)), _all_or(classes)) & reference.present
  return Style(np.where(chosen[:, None], reference.tokens, source.tokens), source.present | chosen)


def mix(first: Style, second: Style, share: float) -> Style:
  """On the straight line from the first style (`share` 0) to the second (1), exact at both ends."""
  share = np.float32(share)
  return Style((1 - share) * first.tokens + share * second.tokens, first.present | second.present)


def _all_or(classes: Sequence[int] | None) -> Sequence[int]:
  return range(labels.NUM_CLASSES) if classes is None else classes
