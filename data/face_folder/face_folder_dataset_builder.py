"""Any folder of pictures, with or without label maps, as a dataset `face_folder/NAME`."""

import dataclasses
import functools
import os
import re
from pathlib import Path

import tensorflow_datasets as tfds

from jaxface import pictures
from jaxface.errors import UserError
from jaxface_data import base

# Sub-folders that are taken for splits.
_SPLIT_FOLDERS = {'train': 'train', 'validation': 'validation', 'val': 'validation', 'test': 'test'}


@dataclasses.dataclass(eq=False, kw_only=True)
class FaceFolderConfig(tfds.core.BuilderConfig):
  """Where the pictures are and how to read them; see `make_config`. `parser` tells which one makes the label maps."""

  source: str
  labels: str | None
  label_order: str
  count: int | None
  max_side: int | None
  parser: str | None = None


def make_config(
  *,
  source: str | os.PathLike,
  labels: str | os.PathLike | None = None,
  label_order: str = 'celebamask_hq',
  name: str | None = None,
  count: int | None = None,
  max_side: int | None = None,
) -> FaceFolderConfig:
  """The config of a folder of pictures; UserError where an option is wrong.

  Args:
    source: folder of pictures, searched with all below it. Its sub-folders train, validation (or val) and test become
      the splits, if it has any of them; otherwise of every ten pictures in natural order the ninth goes to validation,
      the tenth to test, and eight to train.
    labels: folder of label maps: PNGs with the pictures' paths, as a/b.png for a/b.jpg. It may be the source itself: a
      PNG beside a picture of another suffix is its label map there, and any other one a picture without.
    label_order: order of the classes in them, a name of `jaxface.labels.ORDERS`.
    name: of the dataset: it will be `face_folder/NAME`; default the folder's name.
    count: at most so many pictures of each split, the first ones.
    max_side: longer pictures are shrunk to this many pixels on their long side, and stored as PNG.
  """
  folder = base.check_folder(source, 'source')
  name = re.sub(r'[^A-Za-z0-9_-]+', '_', folder.name) if name is None else name
  if not re.fullmatch(r'[A-Za-z0-9_-]+', name):
    raise UserError(f'name={name!r}: only letters, digits, "_" and "-" are legal')
  return FaceFolderConfig(
    name=name,
    source=str(folder),
    labels=None if labels is None else str(base.check_folder(labels, 'labels')),
    label_order=base.check_order(label_order),
    count=base.check_positive(count, 'count'),
    max_side=base.check_positive(max_side, 'max_side'),
  )


class Builder(base.FacesBuilder):
  """TFDS builder of `face_folder/NAME`; takes a config of `make_config`."""

  @property
  def max_side(self) -> int | None:
    """The config's."""
    return self.builder_config.max_side

  @functools.cached_property
  def listing(self) -> base.Listing:
    """The pictures of the folder; UserError where there are none, or not one has a label map."""
    config = self.builder_config
    source = Path(config.source)
    found = pictures.find_pictures(source)
    label_maps = {}
    if config.labels is not None:
      folder = Path(config.labels)
      label_maps = {path.relative_to(folder).with_suffix(''): path for path in base.find_label_maps(folder)}
      if folder == source:
        found, label_maps = _apart(found, label_maps, config)
      elif folder.is_relative_to(source):
        found = [path for path in found if not path.is_relative_to(folder)]
    names = [path.relative_to(source) for path in found]
    if label_maps and not any(name.with_suffix('') in label_maps for name in names):
      _raise_unpaired(names, label_maps, config)

    skipped = {}
    splits = {'train': [], 'validation': [], 'test': []}
    split_of = _by_folder if any(name.parts[0] in _SPLIT_FOLDERS for name in names if len(name.parts) > 1) else _by_tens
    for position, name in enumerate(names):
      split = split_of(position, name)
      label = label_maps.get(name.with_suffix(''))
      if split is None:
        skipped.setdefault('outside the folders train, validation and test', []).append(name.as_posix())
      elif config.count is not None and len(splits[split]) == config.count:
        continue
      elif label is None and config.labels is not None:
        skipped.setdefault('no label map', []).append(name.as_posix())
      else:
        splits[split].append(base.file_item(name.as_posix(), source / name, (label,) if label else ()))
    return base.Listing({split: items for split, items in splits.items() if items}, skipped)


def _apart(
  found: list[Path], label_maps: dict[Path, Path], config: FaceFolderConfig
) -> tuple[list[Path], dict[Path, Path]]:
  """The pictures, and the label maps among them, where both lie side by side in the source."""
  source = Path(config.source)
  paired = {path.relative_to(source).with_suffix('') for path in found if path.suffix.lower() != '.png'}
  label_maps = {name: path for name, path in label_maps.items() if name in paired}
  if not label_maps:
    raise UserError(
      f'labels={config.labels!r}: no label maps beside the pictures, a PNG by a picture of another suffix; leave '
      '--labels out, or name another folder'
    )
  taken = set(label_maps.values())
  return [path for path in found if path not in taken], label_maps


def _by_folder(position: int, name: Path) -> str | None:
  del position
  return _SPLIT_FOLDERS.get(name.parts[0]) if len(name.parts) > 1 else None


def _by_tens(position: int, name: Path) -> str:
  del name
  return {8: 'validation', 9: 'test'}.get(position % 10, 'train')


def _raise_unpaired(names: list[Path], label_maps: dict[Path, Path], config: FaceFolderConfig):
  if not names:
    raise UserError(f'source={config.source!r}: no pictures beside the label maps in labels={config.labels!r}')
  raise UserError(
    f'labels={config.labels!r}: no label map has the path of a picture: the picture {names[0].as_posix()} would need '
    f'{names[0].with_suffix(".png").as_posix()}; there is {next(iter(label_maps.values())).name}'
  )
