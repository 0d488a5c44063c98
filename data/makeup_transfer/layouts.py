"""How folders of faces with and without makeup are laid out: Makeup Transfer's, IPM-Net's, a user's own."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from jaxface.errors import UserError

KINDS = ('makeup', 'non_makeup')

# Folder names, in lower case and without '-', '_' and blanks.
_KIND_FOLDERS = {
  'makeup': 'makeup', 'nonmakeup': 'non_makeup', 'nomakeup': 'non_makeup', 'withoutmakeup': 'non_makeup',
  'plain': 'non_makeup',
}  # fmt: skip
_STAGE_FOLDERS = {'train': 'train', 'validation': 'validation', 'val': 'validation', 'test': 'test'}
_LABEL_FOLDERS = ('segs', 'labels')

# IPM-Net: A is with makeup, and its masks have one of these behind the pictures' folder name.
_SIDES = {'A': 'makeup', 'B': 'non_makeup'}
_MASKS = ('_mask', '_face', '_feature')

_LEGAL = 'images/makeup and images/non-makeup (Makeup Transfer), trainA and trainB (IPM-Net), or makeup and non-makeup'


@dataclasses.dataclass(frozen=True)
class Group:
  """A folder of pictures.

  Attributes:
    kind: one of `KINDS`.
    stage: 'train', 'validation' or 'test'; None where the source has no split.
    folder: where the pictures are.
    masks: where their masks are, None where there are none.
  """

  kind: str
  stage: str | None
  folder: Path
  masks: Path | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """The folders of a source.

  Attributes:
    name: 'mt', 'ipmnet' or 'folders'.
    root: the folder they lie in.
    base: the folder that pictures are named within; their label maps have the same names within `labels`.
    labels: folder of label maps found in the source, None where there is none.
    groups: the folders of pictures.
  """

  name: str
  root: Path
  base: Path
  labels: Path | None
  groups: tuple[Group, ...]

  def missing(self) -> str:
    """What stands alone, and which kind it lacks; '' where every stage has both kinds."""
    for stage in dict.fromkeys(group.stage for group in self.groups):
      folders = {group.kind: group.folder for group in self.groups if group.stage == stage}
      for kind, told in zip(KINDS, ('with', 'without'), strict=True):
        if kind not in folders:
          (there,) = folders.values()
          return f'{there.relative_to(self.root).as_posix()} is there, but no pictures {told} makeup beside it'
    return ''


def find_layout(source: Path) -> Layout:
  """The layout of a folder, or of the one folder in it that has any; UserError where there is none or half of one."""
  found = list(_layouts(source))
  whole = [layout for layout in found if not layout.missing()][:1]
  if not whole:
    children = [child for child in _folders(source) if child.name not in _LABEL_FOLDERS]
    inside = [layout for child in children for layout in _layouts(child)]
    whole = [layout for layout in inside if not layout.missing()]
    found += inside
  if len({layout.root for layout in whole}) > 1:
    there = ' and '.join(layout.root.name for layout in whole)
    raise UserError(f'source={str(source)!r}: more than one set of pictures in it; choose from {there}')
  if not whole:
    why = found[0].missing() if found else 'no pictures with and without makeup in it'
    raise UserError(f'source={str(source)!r}: {why}; expected are {_LEGAL}')
  return whole[0]


def _layouts(root: Path) -> Iterator[Layout]:
  for name, base, find in (('mt', root / 'images', _by_kind), ('ipmnet', root, _sided), ('folders', root, _staged)):
    groups = tuple(find(base))
    if groups:
      labels = None if name == 'ipmnet' else _first_folder(root / folder for folder in _LABEL_FOLDERS)
      yield Layout(name, root, base, labels, groups)


def _by_kind(folder: Path, stage: str | None = None) -> Iterator[Group]:
  for child in _folders(folder):
    kind = _KIND_FOLDERS.get(re.sub('[-_ ]', '', child.name.lower()))
    if kind:
      yield Group(kind, stage, child)


def _staged(root: Path) -> Iterator[Group]:
  direct = list(_by_kind(root))
  yield from direct
  if not direct:
    for child in _folders(root):
      if child.name.lower() in _STAGE_FOLDERS:
        yield from _by_kind(child, _STAGE_FOLDERS[child.name.lower()])


def _sided(root: Path) -> Iterator[Group]:
  for folder in (root, *(child for child in _folders(root) if child.name in _STAGE_FOLDERS)):
    for child in _folders(folder):
      match = re.fullmatch(r'(train|val|test)([AB])', child.name)
      if match:
        masks = _first_folder(child.with_name(child.name + suffix) for suffix in _MASKS)
        yield Group(_SIDES[match[2]], _STAGE_FOLDERS[match[1]], child, masks)


def _folders(folder: Path) -> list[Path]:
  return sorted(child for child in folder.iterdir() if child.is_dir()) if folder.is_dir() else []


def _first_folder(folders: Iterator[Path]) -> Path | None:
  return next((folder for folder in folders if folder.is_dir()), None)
