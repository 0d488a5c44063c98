"""CelebAMask-HQ as it is downloaded, its part masks merged, as the dataset `celebamask_hq/aligned_<size>`."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxface import labels, pictures
from jaxface.errors import UserError
from jaxface_data import base

PICTURES = 'CelebA-HQ-img'
PARTS = 'CelebAMask-HQ-mask-anno'

# SCA-DM: pictures below are for training, the other 2,000 for test.
FIRST_TEST = 28_000
# The pictures' own.
_LARGEST = 1024


@dataclasses.dataclass(eq=False, kw_only=True)
class CelebAMaskHQConfig(tfds.core.BuilderConfig):
  """Where the pictures are and how to store them; see `make_config`."""

  source: str
  size: int
  validation: int
  count: int | None


def make_config(
  *, source: str | os.PathLike, size: int = 512, validation: int = 0, count: int | None = None
) -> CelebAMaskHQConfig:
  """The config `aligned_<size>`; UserError where an option is wrong.

  Args:
    source: the unpacked folder CelebAMask-HQ, with CelebA-HQ-img/ and CelebAMask-HQ-mask-anno/, or the folder it is in.
    size: height and width to store, 1024 at most; smaller pictures stay as they are.
    validation: number of pictures of a validation split, the last ones of the 28,000 for training; 0 makes none.
    count: at most so many pictures of each split, the first ones.
  """
  if not 16 <= size <= _LARGEST:
    raise UserError(f'size={size}: choose 16 to {_LARGEST} pixels; the pictures have {_LARGEST}')
  if not 0 <= validation < FIRST_TEST:
    raise UserError(f'validation={validation}: choose 0 to {FIRST_TEST - 1} of the {FIRST_TEST} pictures for training')
  return CelebAMaskHQConfig(
    name=f'aligned_{size}',
    source=str(_root(base.check_folder(source, 'source'))),
    size=size,
    validation=validation,
    count=base.check_positive(count, 'count'),
  )


class Builder(base.FacesBuilder):
  """TFDS builder of `celebamask_hq/aligned_<size>`; takes a config of `make_config`."""

  has_labels = True

  @property
  def max_side(self) -> int:
    """The config's size: all pictures are squares."""
    return self.builder_config.size

  def least_bytes(self) -> int:
    """A photograph takes more than half a byte a pixel as PNG; one that is not shrunk stays the JPEG it is."""
    shrunk = self.max_side**2 // 2
    return sum(min(item.num_bytes, shrunk) for items in self.listing.splits.values() for item in items)

  @functools.cached_property
  def listing(self) -> base.Listing:
    """The pictures by number, each with the files of its parts; UserError where there are none."""
    config = self.builder_config
    source = Path(config.source)
    images = {int(path.stem): path for path in (source / PICTURES).glob('*.jpg') if path.stem.isdecimal()}
    skipped = {}
    parts = _find_parts(source / PARTS, skipped)
    if not images.keys() & parts.keys():
      raise UserError(f'source={config.source!r}: no picture has a part mask; {_examples(images, parts)}')
    splits = {'train': [], 'validation': [], 'test': []}
    first_validation = FIRST_TEST - config.validation
    for number in sorted(images.keys() | parts.keys()):
      split = 'test' if number >= FIRST_TEST else 'validation' if number >= first_validation else 'train'
      if number not in parts:
        skipped.setdefault('no part masks', []).append(images[number].name)
      elif number not in images:
        skipped.setdefault('part masks without a picture', []).append(f'{number:05d}')
      elif config.count is None or len(splits[split]) < config.count:
        splits[split].append(base.file_item(images[number].name, images[number], parts[number]))
    return base.Listing({split: items for split, items in splits.items() if items}, skipped)

  def read_label(self, item: base.Item, size: tuple[int, int]) -> np.ndarray:
    """Merges the masks of a picture's parts; PictureError where one cannot be read or their sizes differ."""
    return base.fitted_label(merge_parts({_part(path): path for path in item.label}), size, item.label[0])


def merge_parts(paths: Mapping[str, Path]) -> np.ndarray:
  """The label map, uint8 [H, W], of part masks {class name: picture that is not black where the part is}.

  Where parts overlap, the one that comes later in `labels.CLASSES` counts.
  """
  merged = None
  for index, name in enumerate(labels.CLASSES):
    if name in paths:
      # They are greyscale or RGB, black and white either way.
      inside = pictures.read_picture(paths[name])[..., 0] > 0
      if merged is None:
        merged = np.zeros(inside.shape, np.uint8)
      if inside.shape != merged.shape:
        raise pictures.PictureError(paths[name], 'part masks of different sizes')
      merged[inside] = index
  assert merged is not None, paths
  return merged


def _root(folder: Path) -> Path:
  for root in (folder, folder / 'CelebAMask-HQ'):
    if (root / PICTURES).is_dir() and (root / PARTS).is_dir():
      return root
  missing = ' and '.join(f'{name}/' for name in (PICTURES, PARTS) if not (folder / name).is_dir())
  raise UserError(f'source={str(folder)!r}: no {missing} in it; give the unpacked folder CelebAMask-HQ')


def _part(path: Path) -> str:
  return path.stem.partition('_')[2]


def _find_parts(folder: Path, skipped: dict[str, list[str]]) -> dict[int, tuple[Path, ...]]:
  parts = {}
  # In folders 0 to 14, of 2,000 pictures each.
  for path in sorted(folder.glob('*/*.png')):
    number = re.match(r'(\d+)_', path.name)
    if number and _part(path) in labels.CLASSES[1:]:
      parts.setdefault(int(number[1]), []).append(path)
    else:
      skipped.setdefault('not the mask of a known part', []).append(path.name)
  return {number: tuple(paths) for number, paths in parts.items()}


def _examples(images: Mapping[int, Path], parts: Mapping[int, tuple[Path, ...]]) -> str:
  image = images[min(images)].name if images else 'none'
  part = f'{parts[min(parts)][0].parent.name}/{parts[min(parts)][0].name}' if parts else 'none'
  return f'pictures: {image}, part masks: {part}; they go as 0.jpg with 0/00000_skin.png'
