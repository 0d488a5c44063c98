"""Faces with makeup and without, as the dataset `makeup_transfer/NAME`: MT, IPM-Net's folders, or one's own two."""

import dataclasses
import functools
import hashlib
import os
import re
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from jaxface import labels as classes
from jaxface import pictures
from jaxface.errors import UserError
from jaxface_data import base

from .layouts import KINDS, Layout, find_layout

# Li et al. 2018, BeautyGAN: held out of Makeup Transfer.
_HELD_OUT = {'makeup': 250, 'non_makeup': 100}
_STAGES = ('train', 'validation', 'test')
_BACKGROUND, _SKIN = (np.uint8(classes.index(name)) for name in ('background', 'skin'))

_MASKS_ONLY = (
  'label maps are made of masks: skin and background, no brows, nose, lips and eyes; textures are without the gain of '
  'the features, and BeautyGAN cannot be trained; give --parser for whole label maps'
)


@dataclasses.dataclass(eq=False, kw_only=True)
class MakeupTransferConfig(tfds.core.BuilderConfig):
  """Where the pictures are and how to read them; see `make_config`. `parser` tells which one makes the label maps."""

  source: str
  labels: str | None
  label_order: str
  test_makeup: int | None
  test_non_makeup: int | None
  validation: int
  count: int | None
  max_side: int | None
  parser: str | None = None


def make_config(
  *,
  source: str | os.PathLike,
  labels: str | os.PathLike | None = None,
  label_order: str | None = None,
  name: str | None = None,
  test_makeup: int | None = None,
  test_non_makeup: int | None = None,
  validation: int = 0,
  count: int | None = None,
  max_side: int | None = None,
) -> MakeupTransferConfig:
  """The config of a folder of faces with and without makeup; UserError where an option is wrong.

  Args:
    source: Makeup Transfer as downloaded (images/ and segs/, each with makeup/ and non-makeup/); or the folders of
      IPM-Net (trainA, trainB, testA, testB, A with makeup, each beside its masks as trainA_mask, directly or under
      train/ and test/); or a folder with makeup/ and non-makeup/, directly or under train/, validation/ and test/. Or
      the folder that one of these is in.
    labels: folder of label maps: PNGs with the pictures' paths, as makeup/a.png for makeup/a.jpg; default segs/ or
      labels/ in the source. Without any, IPM-Net's masks are taken, 0 for skin and 255 for background: features are not
      told apart, so that textures have no gain there, and BeautyGAN, which matches them, cannot be trained.
    label_order: order of the classes in the label maps, a name of `jaxface.labels.ORDERS`; default 'makeup_transfer'
      for a folder segs/, else 'celebamask_hq'.
    name: of the dataset: it will be `makeup_transfer/NAME`; default mt or ipmnet for those two, else the folder's name.
    test_makeup: pictures with makeup to hold out where the source has no test folder, those whose names' hashes are the
      smallest; default 250 of Makeup Transfer, else one of ten.
    test_non_makeup: the same without makeup; default 100 of Makeup Transfer, else one of ten.
    validation: so many pictures of each kind are taken from training, by the same hash; 0 makes no validation split.
    count: at most so many pictures of each split, the first ones.
    max_side: longer pictures are shrunk to this many pixels on their long side, and stored as PNG.
  """
  folder = base.check_folder(source, 'source')
  layout = find_layout(folder)
  if name is None:
    name = re.sub(r'[^A-Za-z0-9_-]+', '_', folder.name) if layout.name == 'folders' else layout.name
  if not re.fullmatch(r'[A-Za-z0-9_-]+', name):
    raise UserError(f'name={name!r}: only letters, digits, "_" and "-" are legal')
  for option, number in (('test_makeup', test_makeup), ('test_non_makeup', test_non_makeup)):
    if number is not None and number < 0:
      raise UserError(f'{option}={number}: must be at least 0; leave it out for the default')
    if number is not None and layout.groups[0].stage is not None:
      raise UserError(f'{option}={number}: {folder} has its own split; leave it out')
  if validation < 0:
    raise UserError(f'validation={validation}: must be at least 0')
  if labels is not None:
    labels = base.check_folder(labels, 'labels')
  if label_order is None:
    label_folder = labels or layout.labels
    in_segs = label_folder is not None and label_folder.name == 'segs'
    label_order = 'makeup_transfer' if in_segs else 'celebamask_hq'
  return MakeupTransferConfig(
    name=name,
    source=str(folder),
    labels=None if labels is None else str(labels),
    label_order=base.check_order(label_order),
    test_makeup=test_makeup,
    test_non_makeup=test_non_makeup,
    validation=validation,
    count=base.check_positive(count, 'count'),
    max_side=base.check_positive(max_side, 'max_side'),
  )


class Builder(base.FacesBuilder):
  """TFDS builder of `makeup_transfer/NAME`; takes a config of `make_config`.

  With a parser, the label maps and masks of the source are not read.
  """

  has_labels = True

  @property
  def max_side(self) -> int | None:
    """The config's."""
    return self.builder_config.max_side

  @property
  def caveat(self) -> str:
    """That masks are no label maps, where they had to do."""
    return _MASKS_ONLY if self._masked else ''

  @functools.cached_property
  def listing(self) -> base.Listing:
    """The pictures of both kinds; UserError where those of one are too few, or not one has a label map."""
    config, root = self.builder_config, self._layout.base
    label_maps = {} if self._parser else self._masks() if self._masked else self._label_maps()
    what = 'mask' if self._masked else 'label map'
    splits = {f'{stage}_{kind}': [] for stage in _STAGES for kind in KINDS}
    skipped = {}
    used = set()
    for kind in KINDS:
      stages = self._stages(kind)
      names = [path.relative_to(root).with_suffix('') for paths in stages.values() for path in paths]
      if label_maps and label_maps.keys().isdisjoint(names):
        there = next(iter(label_maps.values()))
        raise UserError(f'no {what} has the name of a {kind} picture, such as {names[0].as_posix()}; there is {there}')
      used.update(names)
      for stage, paths in stages.items():
        for path in paths:
          name = path.relative_to(root)
          label = label_maps.get(name.with_suffix(''))
          if label_maps and label is None:
            skipped.setdefault(f'no {what}', []).append(name.as_posix())
            continue
          splits[f'{stage}_{kind}'].append(base.file_item(name.as_posix(), path, (label,) if label else ()))
    lonely = [name.as_posix() for name in label_maps if name not in used]
    if lonely:
      skipped[f'{what} without a picture'] = lonely
    return base.Listing({split: items[: config.count] for split, items in splits.items() if items}, skipped)

  def read_label(self, item: base.Item, size: tuple[int, int]) -> np.ndarray:
    """The label map of a picture, or what its mask tells; PictureError where it cannot be used or has no skin."""
    (path,) = item.label
    if self._masked:
      face = pictures.read_picture(path)[..., 0] < 128
      label = base.fitted_label(np.where(face, _SKIN, _BACKGROUND), size, path)
      if (label == _SKIN).all():
        raise pictures.PictureError(path, 'a mask that is all face')
    else:
      label = super().read_label(item, size)
    if not (label == _SKIN).any():
      raise pictures.PictureError(path, 'a mask or label map without a face')
    return label

  @functools.cached_property
  def _layout(self) -> Layout:
    return find_layout(Path(self.builder_config.source))

  @property
  def _label_folder(self) -> Path | None:
    folder = self.builder_config.labels
    return self._layout.labels if folder is None else Path(folder)

  @property
  def _masked(self) -> bool:
    return self._parser is None and self._label_folder is None

  def _label_maps(self) -> dict[Path, Path]:
    folder = self._label_folder
    return {path.relative_to(folder).with_suffix(''): path for path in base.find_label_maps(folder)}

  def _masks(self) -> dict[Path, Path]:
    found = {}
    for group in self._layout.groups:
      if group.masks is None:
        raise UserError(
          f'{group.folder}: no label maps of these pictures; give --labels, or a parser that makes them: --parser'
        )
      where = group.folder.relative_to(self._layout.base)
      for path in pictures.find_pictures(group.masks):
        found[(where / path.relative_to(group.masks)).with_suffix('')] = path
    return found

  def _stages(self, kind: str) -> dict[str, list[Path]]:
    """The pictures of a kind by stage, whatever of them can be used: what is missing moves no other one."""
    stages = {}
    for group in self._layout.groups:
      if group.kind == kind:
        stages.setdefault(group.stage, []).extend(pictures.find_pictures(group.folder))
    if None in stages:
      paths = stages.pop(None)
      stages['train'], stages['test'] = _by_hash(paths, self._num_test(kind, len(paths)), f'test_{kind}', kind)
    validation = self.builder_config.validation
    if validation:
      paths = stages.get('train', [])
      stages['train'], taken = _by_hash(paths, validation, 'validation', kind)
      stages['validation'] = stages.get('validation', []) + taken
    return stages

  def _num_test(self, kind: str, total: int) -> int:
    chosen = getattr(self.builder_config, f'test_{kind}')
    if chosen is not None:
      return chosen
    return _HELD_OUT[kind] if self._layout.name == 'mt' else min(-(-total // 10), total - 1)

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    for stage in _STAGES:
      listed, made = (
        [kind for kind in KINDS if f'{stage}_{kind}' in splits] for splits in (self.listing.splits, self.info.splits)
      )
      if len(listed) == 2 and len(made) == 1:
        (kind,) = set(KINDS) - set(made)
        skipped = self.info.metadata['skipped']
        raise UserError(
          f'{self.builder_config.source}: not one usable picture in {stage}_{kind}; {base.reasons(skipped)}'
        )


def _by_hash(paths: list[Path], count: int, option: str, kind: str) -> tuple[list[Path], list[Path]]:
  """(the rest, the `count` whose names have the smallest hashes), both in order; UserError where nothing would rest."""
  if count and count >= len(paths):
    raise UserError(f'{option}={count}: of the {len(paths)} {kind} pictures one at least must stay for training')
  smallest = set(sorted(paths, key=lambda path: hashlib.sha256(path.stem.encode()).digest())[:count])
  return [path for path in paths if path not in smallest], [path for path in paths if path in smallest]
