"""Photos that a command is given, and where their label maps come from: files beside them, or a face parser."""

import collections
import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxface import labels, pictures
from jaxface.errors import UserError, some
from jaxface.threads import chunks

if TYPE_CHECKING:
  from jaxface.parsing import Parser

# TFDS and JAX are imported inside the functions: `jaxface --help` need not wait for them.


class Photo(NamedTuple):
  """A photo, uint8 [H, W, 3], and its label map, uint8 [H, W] in the project's order."""

  path: Path
  image: np.ndarray
  label: np.ndarray


@dataclasses.dataclass(frozen=True)
class Photos:
  """Photos not yet read; iterating over them reads them, and parses those that have no label map.

  Attributes:
    paths: of the photos.
    label_maps: the file of each photo's label map. Those without one are left to the parser.
    order: of the classes in these files, a name of `jaxface.labels.ORDERS`.
    parser: None where every photo has a label map.
  """

  paths: Sequence[Path]
  label_maps: Mapping[Path, Path]
  order: str
  parser: 'Parser | None' = None

  def __iter__(self) -> Iterator[Photo]:
    """In the order of `paths`; PictureError for one that cannot be used."""
    from jaxface_data import base

    doubted = _Doubt(self.order)
    parses = any(path not in self.label_maps for path in self.paths)
    for paths in chunks(self.paths, self.parser.batch_size if parses else 1):
      images = [pictures.read_picture(path) for path in paths]
      unknown = [image for path, image in zip(paths, images, strict=True) if path not in self.label_maps]
      parsed = iter(self.parser(unknown) if unknown else ())
      for path, image in zip(paths, images, strict=True):
        if path not in self.label_maps:
          yield Photo(path, image, next(parsed))
          continue
        label = base.checked_label(self.label_maps[path], self.order, image.shape[:2])
        doubted(label, self.label_maps[path])
        yield Photo(path, image, label)


class _Doubt:
  """Warns of a label map that seems to have been written in another order, once: of the first such."""

  def __init__(self, order: str):
    self._order = order
    self._asked = False

  def __call__(self, label: np.ndarray, path: Path) -> None:
    from jaxface_data import base

    if not self._asked and base.is_upright(label) is False:
      logging.getLogger(__name__).warning(
        '%s: hair or brows start below the nose; is --label-order %s right?', path, self._order
      )
    self._asked = True


def read_label_map(path: Path, order: str) -> np.ndarray:
  """A label map whose classes are in `order`: uint8 [H, W] in the project's order.

  PictureError where it is no single-channel PNG, or has values that are no classes.
  """
  label, table = pictures.read_label_map(path), labels.lookup_table(order)
  if label.max() >= len(table):
    unknown = some(map(str, np.unique(label[label >= len(table)])))
    detail = (
      f'found {unknown}; is --label-order {order} right, of {", ".join(labels.ORDERS)}? '
      'A label map has class numbers, not colours or grey levels'
    )
    raise pictures.PictureError(path, f'label values outside 0..{len(table) - 1}', detail)
  return table[label]


def read_label_maps(paths: Iterable[Path], order: str) -> Iterator[np.ndarray]:
  """`read_label_map` of each; warns where the first seems to be in another order."""
  doubted = _Doubt(order)
  for path in paths:
    label = read_label_map(path, order)
    doubted(label, path)
    yield label


def is_label_map(path: Path) -> bool:
  """Whether a file is a PNG of one channel, as label maps are; any other picture is a photo."""
  head = pictures.read_bytes(path)[:26]
  # Byte 25 of a PNG is its colour type: 0 grey, 3 palette.
  return head[:8] == b'\x89PNG\r\n\x1a\n' and len(head) == 26 and head[25] in (0, 3)


def find(paths: Sequence[Path], out: Path) -> list[Path]:
  """`find_each`, but every picture once, where it was named first."""
  return list(dict.fromkeys(find_each(paths, out)))


def find_each(paths: Sequence[Path], out: Path) -> list[Path]:
  """Pictures in the order in which they were named, folders in natural order; what lies in `out` was made by us.

  UserError for a path that has no others, or that `pictures.find_pictures` refuses.
  """
  found = []
  for path in paths:
    inside = [p for p in pictures.find_pictures(path) if not p.absolute().is_relative_to(out.absolute())]
    if not inside:
      raise UserError(f'{path}: no pictures in it but those in --out {out}')
    found += inside
  return found


def check_names(paths: Sequence[Path], why: str) -> None:
  """UserError, which says `why`, where two files have one name but for their suffixes."""
  by_name = collections.defaultdict(list)
  for path in paths:
    by_name[path.stem.casefold()].append(path)
  for same in by_name.values():
    if len(same) > 1:
      raise UserError(f'{same[0]} and {same[1]} have one name; {why}: rename one of them')


def find_label_maps(
  paths: Sequence[Path], given: Path | None, option: str, *, some_missing: bool = False
) -> dict[Path, Path]:
  """The label map of each photo, by its name; none where `given` is None.

  Args:
    paths: of the photos.
    given: a folder of label maps; of a single photo also the file.
    option: what it was given by, for the message.
    some_missing: photos may be without; otherwise that is a UserError.
  """
  if given is None or not paths:
    return {}
  if given.is_file() and len(paths) == 1:
    return {paths[0]: given}
  check_names(paths, 'label maps are found by the names of their photos')
  maps = [path for path in pictures.find_pictures(given) if path.suffix.lower() == '.png']
  check_names(maps, 'label maps are found by their names')
  by_name = {path.stem: path for path in maps}
  missing = [path for path in paths if path.stem not in by_name]
  if missing and not some_missing:
    more = f' (and for {len(missing) - 1} more)' if len(missing) > 1 else ''
    raise UserError(f'{missing[0]}: no label map {missing[0].stem}.png in {option} {given}{more}')
  return {path: by_name[path.stem] for path in paths if path.stem in by_name}
