"""What `jaxface synthesize` draws, laid out in tables: which face is drawn after which label map, in which style."""

# S picture size

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxface import labels, styles
from jaxface.errors import UserError
from jaxface.styles import Style

# In the place of a reference: the photo that the label map is of.
OWN = 'own'

_LABEL_MAP, _UNCHANGED = 'label map', 'unchanged'


class Face(NamedTuple):
  """A face that is given, at the network's size.

  Attributes:
    path: its file.
    label: int32 [S, S].
    image: uint8 [S, S, 3]; None where there is a label map alone.
    none: the style of an empty picture under its label map; None where the network knows no styles.
    own: its style; None without picture.
  """

  path: Path
  label: np.ndarray
  image: np.ndarray | None = None
  none: Style | None = None
  own: Style | None = None


class Drawing(NamedTuple):
  """A picture to be drawn: the layout's number, the number among draws after it, and a style or None."""

  layout: int
  draw: int
  style: Style | None


# Columns by their captions: pictures, drawings, and empty places.
Table = dict[str, list[np.ndarray | Drawing | None]]


@dataclasses.dataclass(frozen=True)
class Blend:
  """The style that faces are drawn in, composed of other faces' styles.

  Attributes:
    whole: whose style it is, a face or OWN; with two, it goes from the first to the second. With none, none.
    mixed: classes that go to the second face's style; None for all.
    parts: whose style the named parts have, whatever the rest has.
  """

  whole: Sequence[Face | str] = ()
  mixed: Sequence[int] | None = None
  parts: Mapping[str, Face] = dataclasses.field(default_factory=dict)

  def style(self, layout: Face, share: float = 0.0) -> Style | None:
    """For a layout, `share` of the way from the first face's style to the second's.

    What a face does not have keeps the style it would have without that face, in the end none.
    """
    if layout.none is None:
      return None
    style = layout.none
    if self.whole:
      style = styles.take(style, reference(self.whole[0], layout).own)
    if len(self.whole) > 1:
      style = styles.mix(style, styles.take(style, reference(self.whole[1], layout).own, self.mixed), share)
    for part, face in self.parts.items():
      style = styles.take(style, face.own, styles.part_classes(part))
    return style

  def complaints(self, layouts: Sequence[Face]) -> Iterator[str]:
    """What cannot be taken from the references, a line each."""
    present = np.any([styles.classes_in(layout.label) for layout in layouts], axis=0)
    everything = range(labels.NUM_CLASSES)
    for i, face in enumerate(self.whole):
      if isinstance(face, Face):
        yield from _complaint(face, present, everything if i == 0 or self.mixed is None else self.mixed)
    for part, face in self.parts.items():
      classes = styles.part_classes(part)
      if not present[list(classes)].any():
        others = ' or the others' if len(layouts) > 1 else ''
        yield f'no {part} in {layouts[0].path}{others}; --part {part} has no effect'
      yield from _complaint(face, present, classes)


def _complaint(face: Face, present: np.ndarray, classes: Sequence[int]) -> Iterator[str]:
  lacking = styles.lacking(present, face.own, classes)
  if lacking:
    names = ', '.join(styles.class_names(lacking))
    name, size = face.path.name, len(face.label)
    yield f'{face.path} has no {names} at {size} pixels; there the style stays what it is without {name}'


def reference(face: Face | str, layout: Face) -> Face:
  """The face that is meant; UserError where it is OWN and the layout has no picture."""
  if isinstance(face, Face):
    return face
  if layout.image is None:
    raise UserError(
      f'{layout.path} is a label map, so there is no style of its own; give a photo, or a style by --style'
    )
  return layout


def grid(layouts: Sequence[Face], blend: Blend, share: float, count: int) -> Table:
  """A row a layout: the label map, whose styles it gets, and several draws."""
  table = {_LABEL_MAP: [coloured(layout.label) for layout in layouts]}
  captions = ('style', 'second style') if len(blend.whole) > 1 else ('style',)
  for caption, face in [*zip(captions, blend.whole, strict=False), *blend.parts.items()]:
    table[caption] = [reference(face, layout).image for layout in layouts]
  drawn = [blend.style(layout, share) for layout in layouts]
  for draw in range(count):
    table[str(draw + 1)] = [Drawing(j, draw, style) for j, style in enumerate(drawn)]
  return table


def strip(layouts: Sequence[Face], blend: Blend, shares: Sequence[float], count: int) -> Table:
  """A row a draw: the first style's picture, the way from it to the second's with one noise all along, the second's."""
  rows = _rows(layouts, count)
  first, second = ([reference(face, layouts[j]).image for j, _ in rows] for face in blend.whole)
  along = {f'mix {share:g}': [blend.style(layout, share) for layout in layouts] for share in shares}
  return {
    _LABEL_MAP: [coloured(layouts[j].label) for j, _ in rows],
    'first style': first,
    **{caption: [Drawing(j, draw, drawn[j]) for j, draw in rows] for caption, drawn in along.items()},
    'second style': second,
  }


def parts(layouts: Sequence[Face], blend: Blend, count: int) -> Table:
  """A row a draw: in the first style, with each part in the second one's, and with all."""
  rows = _rows(layouts, count)
  first, second = blend.whole
  table = {
    _LABEL_MAP: [coloured(layouts[j].label) for j, _ in rows],
    'first style': [reference(first, layouts[j]).image for j, _ in rows],
    'second style': [reference(second, layouts[j]).image for j, _ in rows],
  }
  changed = [{_UNCHANGED: None, **_shared_parts(layout, reference(second, layout)), 'all': None} for layout in layouts]
  for caption in (_UNCHANGED, *styles.PARTITION, 'all'):
    if any(caption in each for each in changed):
      table[caption] = [
        Drawing(j, draw, _with(blend, layouts[j], changed[j][caption], caption)) if caption in changed[j] else None
        for j, draw in rows
      ]
  return table


def _with(blend: Blend, layout: Face, classes: Sequence[int] | None, caption: str) -> Style:
  share = 0.0 if caption == _UNCHANGED else 1.0
  return dataclasses.replace(blend, mixed=classes).style(layout, share)


def _shared_parts(layout: Face, other: Face) -> dict[str, tuple[int, ...]]:
  present = styles.classes_in(layout.label) & other.own.present
  classes = {part: styles.part_classes(part) for part in styles.PARTITION}
  return {part: each for part, each in classes.items() if present[list(each)].any()}


def swap(layouts: Sequence[Face], faces: Sequence[Face], count: int) -> Table:
  """Layouts down, the styles of faces across; a picture of each face above its column."""
  rows = _rows(layouts, count)
  table = {_LABEL_MAP: [None, *(coloured(layouts[j].label) for j, _ in rows)]}
  for face in faces:
    if face.path.stem in table:
      raise UserError(f'{face.path}: its column would be named as that of the label maps; rename it')
    drawn = [Blend((face,)).style(layout) for layout in layouts]
    table[face.path.stem] = [face.image, *(Drawing(j, draw, drawn[j]) for j, draw in rows)]
  return table


def reconstruction(photos: Sequence[Face], coded: Mapping[str, Sequence[np.ndarray]], count: int) -> Table:
  """Photos beside what is drawn after their label map, in their own style and in none; `coded` are columns to add."""
  rows = _rows(photos, count)
  own = [Blend((OWN,)).style(photo) for photo in photos]
  return {
    'input': [photos[j].image for j, _ in rows],
    _LABEL_MAP: [coloured(photos[j].label) for j, _ in rows],
    **{caption: [pictures[j] for j, _ in rows] for caption, pictures in coded.items()},
    'own style': [Drawing(j, draw, own[j]) for j, draw in rows],
    'mask only': [Drawing(j, draw, photos[j].none) for j, draw in rows],
  }


def coloured(label: np.ndarray) -> np.ndarray:
  """A label map [S, S] in the project's palette, uint8 [S, S, 3]."""
  return labels.PALETTE[label]


def _rows(layouts: Sequence[Face], count: int) -> list[tuple[int, int]]:
  return [(j, draw) for j in range(len(layouts)) for draw in range(count)]
