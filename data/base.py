"""What the builders of real data share: the features, the checks of pictures and label maps, an account of the skipped.

A builder lists its `Item`s; the rest (decode and check in threads, count what is skipped and why, write shards in the
source's order) is here. The files on disk follow TFDS's own layout, so `tfds.builder_from_directory` reads them.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxface import labels, pictures
from jaxface.errors import UserError

# Pictures, uint8 [H, W, 3] RGB of any sizes -> a label map for each, uint8 [H, W], values 0..18 in the project's order.
Parser = Callable[[list[np.ndarray]], list[np.ndarray]]

# Large enough for sequential disk reads, small enough for the memory: TFDS holds the examples of one shard.
_SHARD_BYTES = 128 * 2**20
_PARSER_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture of a source, not yet read. `id` is its name within the source, unique in the dataset."""

  id: str
  read: Callable[[], bytes]
  num_bytes: int
  label: Path | None = None


@dataclasses.dataclass
class Listing:
  """What a source holds: the items of each split, in the order to be written, and the names skipped for each reason."""

  splits: dict[str, list[Item]]
  skipped: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def digest(self) -> str:
    """Changes when a file is added, removed, renamed, or gets another size; nothing is read."""
    digest = hashlib.sha256()
    for split, items in self.splits.items():
      for item in items:
        label = (item.label.name, item.label.stat().st_size) if item.label else None
        digest.update(repr((split, item.id, item.num_bytes, label)).encode())
    return digest.hexdigest()

  def num_items(self) -> int:
    """Pictures that will be read."""
    return sum(map(len, self.splits.values()))


@dataclasses.dataclass
class _Picture:
  """An item on its way: read, checked, encoded; `skipped` is the reason where it cannot be used."""

  item: Item
  image: np.ndarray | None = None
  image_bytes: bytes = b''
  label_bytes: bytes = b''
  hair_above_nose: bool | None = None
  skipped: str = ''


# TFDS's GeneratorBasedBuilder gathers a split of more than 1 GB (CelebA has more) in temporary files which it opens
# with TensorFlow. ShardBasedBuilder writes each shard straight from its examples and needs none; it does not shuffle.
class FacesBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Base of the builders: `listing` says what there is, `has_labels` whether label maps are stored.

  Args:
    parser: makes the label maps where the config names no folder of them.
    workers: threads that read and check pictures; default one a CPU core.
    progress: called with 1 after each picture.

  After `download_and_prepare(file_format='array_record')` the dataset's metadata holds `skipped` (reason -> ids),
  `picture_sizes` ('WxH' -> number, the ten most common), and `label_order_doubtful`: whether in most label maps the
  hair starts below the nose, as it does when the classes are read in another order than they were written in.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    *,
    parser: Parser | None = None,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **kwargs,
  ):
    # TFDS asks for `_info` during construction.
    self._parser = parser
    self.workers = workers or os.cpu_count() or 1
    self.progress = progress
    self._sizes = collections.Counter()
    self._hair_above_nose = collections.Counter()
    super().__init__(**kwargs)

  @functools.cached_property
  def listing(self) -> Listing:
    """The items of the source; UserError where the source is not what the config says. Reads no picture."""
    raise NotImplementedError

  @property
  def label_order(self) -> str:
    """Order of the classes in the source's label maps, a name of `jaxface.labels.ORDERS`."""
    return self.builder_config.label_order

  @property
  def max_side(self) -> int | None:
    """Longer pictures are shrunk to this many pixels on their long side; None keeps every size."""
    return None

  @property
  def has_labels(self) -> bool:
    """Whether every example has a label map."""
    return self.builder_config.labels is not None or self._parser is not None

  def least_bytes(self) -> int:
    """Bytes the dataset will take at the very least: those of the pictures that may be stored unchanged."""
    if self.max_side is not None:
      return 0
    kept = ('.jpg', '.jpeg', '.png')
    return sum(i.num_bytes for items in self.listing.splits.values() for i in items if i.id.lower().endswith(kept))

  def _info(self) -> tfds.core.DatasetInfo:
    features = {'id': tfds.features.Text(), 'image': tfds.features.Image(shape=(None, None, 3))}
    if self.has_labels:
      features['label'] = tfds.features.Image(shape=(None, None, 1), encoding_format='png')
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features), metadata=tfds.core.MetadataDict()
    )

  def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable[[], Iterator]]]:
    del dl_manager
    self._skipped = {reason: list(names) for reason, names in self.listing.skipped.items()}
    return {
      split: [functools.partial(self._examples, shard) for shard in _shards(items)]
      for split, items in self.listing.splits.items()
    }

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    splits = list(self.info.splits.values())
    if not any(split.num_examples for split in splits):
      raise UserError(f'{self.builder_config.source}: not one usable picture; {_told(self._skipped)}')
    for split in splits:
      if not split.num_examples:
        for path in split.filepaths:
          path.unlink()
    self.info.set_splits(tfds.core.SplitDict([split for split in splits if split.num_examples]))
    self.info.metadata.update(
      skipped=self._skipped,
      picture_sizes={f'{w}x{h}': n for (w, h), n in self._sizes.most_common(10)},
      label_order_doubtful=self._hair_above_nose[False] > self._hair_above_nose[True],
    )

  def _examples(self, items: list[Item]) -> Iterator[tuple[str, dict]]:
    with concurrent.futures.ThreadPoolExecutor(self.workers) as executor:
      loaded = _ordered_map(self._load, items, executor, self.workers)
      for picture in self._parsed(loaded) if self.has_labels and not self.builder_config.labels else loaded:
        self.progress(1)
        if picture.skipped:
          self._skipped.setdefault(picture.skipped, []).append(picture.item.id)
          continue
        height, width = picture.image.shape[:2]
        self._sizes[width, height] += 1
        self._hair_above_nose[picture.hair_above_nose] += 1
        example = {'id': picture.item.id, 'image': picture.image_bytes}
        yield picture.item.id, example | ({'label': picture.label_bytes} if self.has_labels else {})

  def _load(self, item: Item) -> _Picture:
    try:
      data = item.read()
      image = pictures.decode_picture(data, item.id)
      label = checked_label(item.label, self.label_order, image.shape[:2]) if item.label else None
      keep = pictures.is_plain(data)
    except pictures.PictureError as error:
      return _Picture(item, skipped=error.reason)
    above = None if label is None else hair_above_nose(label)
    shrunk = shrink(image, self.max_side)
    if shrunk is not image:
      image, keep = shrunk, False
      label = None if label is None else resize_nearest(label, image.shape[:2])
    label_bytes = b'' if label is None else pictures.encode_png(label)
    return _Picture(item, image, data if keep else pictures.encode_png(image), label_bytes, above)

  def _parsed(self, loaded: Iterator[_Picture]) -> Iterator[_Picture]:
    while chunk := list(itertools.islice(loaded, _PARSER_BATCH)):
      usable = [picture for picture in chunk if not picture.skipped]
      label_maps = self._parser([picture.image for picture in usable]) if usable else []
      for picture, label in zip(usable, label_maps, strict=True):
        assert label.shape == picture.image.shape[:2], (picture.item.id, label.shape)
        assert label.dtype == np.uint8, label.dtype
        assert label.max() < labels.NUM_CLASSES, (picture.item.id, label.max())
        picture.label_bytes = pictures.encode_png(label)
      yield from chunk


def find_label_maps(folder: Path) -> list[Path]:
  """All PNGs in a folder and below, in natural order; UserError where there are none."""
  found = [path for path in pictures.find_pictures(folder) if path.suffix.lower() == '.png']
  if not found:
    raise UserError(f'labels={str(folder)!r}: no PNGs in this folder; a label map is a PNG of class numbers')
  return found


def checked_label(path: Path, order: str, size: tuple[int, int]) -> np.ndarray:
  """Read a label map for a picture of `size` (height, width): uint8 [height, width] in the project's order.

  One of another size but the same aspect ratio is resized to the picture's (nearest pixel). PictureError where the
  aspect ratio or a value is wrong.
  """
  label = pictures.read_label_map(path)
  if label.max() >= labels.NUM_CLASSES:
    raise pictures.PictureError(path, f'label values outside 0..{labels.NUM_CLASSES - 1}', f'found {label.max()}')
  label = labels.lookup_table(order)[label]
  (height, width), (label_height, label_width) = size, label.shape
  # Equal but for the rounding of a side to whole pixels.
  if abs(label_width * height - label_height * width) > max(height, width, label_height, label_width):
    detail = f'the picture is {width}x{height}, its label map {label_width}x{label_height}'
    raise pictures.PictureError(path, 'size mismatch', detail)
  return resize_nearest(label, size)


def hair_above_nose(label: np.ndarray) -> bool | None:
  """Whether the topmost hair of a label map, uint8 [H, W], lies above the topmost nose; None where either is absent."""
  hair, nose = ((label == labels.index(name)).any(axis=1) for name in ('hair', 'nose'))
  return bool(hair.argmax() < nose.argmax()) if hair.any() and nose.any() else None


def resize_nearest(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resize uint8 [H, W] to `size` (height, width) by the nearest pixel, half-pixel centres."""
  if label.shape == tuple(size):
    return label
  return cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)


def shrink(image: np.ndarray, max_side: int | None) -> np.ndarray:
  """Shrink uint8 [H, W, 3] by area averaging until its long side is `max_side`; smaller ones come back as they are."""
  height, width = image.shape[:2]
  if max_side is None or max(height, width) <= max_side:
    return image
  scale = max_side / max(height, width)
  return cv2.resize(image, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA)


def check_folder(path: str | os.PathLike, what: str) -> Path:
  """The folder as an absolute path; UserError where it is none. `what` names the option."""
  path = Path(path).expanduser()
  if not path.is_dir():
    raise UserError(f'{what}={str(path)!r}: {"not a folder" if path.exists() else "no such folder"}')
  return path.resolve()


def check_order(order: str) -> str:
  """`order`, a name of `jaxface.labels.ORDERS`; UserError otherwise."""
  labels.lookup_table(order)
  return order


def check_positive(value: int | None, what: str) -> int | None:
  """`value`, None or at least 1; UserError otherwise. `what` names the option."""
  if value is not None and value < 1:
    raise UserError(f'{what}={value}: must be at least 1; leave it out for no limit')
  return value


def _shards(items: list[Item]) -> list[list[Item]]:
  count = min(max(1, len(items)), -(-sum(item.num_bytes for item in items) // _SHARD_BYTES) or 1)
  edges = [len(items) * i // count for i in range(count + 1)]
  return [items[start:stop] for start, stop in itertools.pairwise(edges)]


def _ordered_map(function: Callable, items: Iterable, executor, workers: int) -> Iterator:
  """`map` in threads, in order, a few items ahead: executor.map would hold the results of the whole dataset."""
  items, pending = iter(items), collections.deque()
  for item in items:
    pending.append(executor.submit(function, item))
    if len(pending) > 2 * workers:
      yield pending.popleft().result()
  while pending:
    yield pending.popleft().result()


def _told(skipped: dict[str, list[str]]) -> str:
  if not skipped:
    return 'the source is empty'
  return '; '.join(f'{reason}: {len(names)}, e.g. {names[0]}' for reason, names in skipped.items())
