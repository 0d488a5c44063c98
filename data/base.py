"""What the builders of real data share: the features, the checks of pictures and label maps, an account of the skipped.

A builder lists its `Item`s; the rest (decode and check in threads, parse what has no label map, count what is skipped
and why, write shards in the source's order) is here. The files on disk follow TFDS's own layout, so
`tfds.builder_from_directory` reads them.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds

from jaxface import labels, photos, pictures
from jaxface.errors import UserError
from jaxface.threads import chunks, ordered_map
from jaxface_data.label_cache import LabelCache

# Pictures, uint8 [H, W, 3] RGB of any sizes -> a label map for each, uint8 [H, W], values 0..18 in the project's order.
Parser = Callable[[list[np.ndarray]], list[np.ndarray]]

# Large enough for sequential disk reads, small enough for the memory: TFDS holds the examples of one shard.
_SHARD_BYTES = 128 * 2**20
# Batches on their way through the parser: one on the device, one before it, one behind it.
_PARSER_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Item:
  """One picture of a source, not yet read.

  Attributes:
    id: its name within the source, unique in the dataset.
    read: gives the file's bytes.
    num_bytes: how many they are, at least about.
    label: the files that its label map is made of; none where it has none.
  """

  id: str
  read: Callable[[], bytes]
  num_bytes: int
  label: tuple[Path, ...] = ()


def file_item(id: str, path: Path, label: tuple[Path, ...] = ()) -> Item:
  """The item of a picture's file. One that is not there, as behind a dangling link, is read and skipped with others."""
  return Item(id, functools.partial(pictures.read_bytes, path), _num_bytes(path), label)


def _num_bytes(path: Path) -> int:
  try:
    return path.stat().st_size
  except OSError:
    return 0


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
        label = [(path.name, _num_bytes(path)) for path in item.label]
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
  upright: bool | None = None
  skipped: str = ''


# TFDS's GeneratorBasedBuilder gathers a split of more than 1 GB (CelebA has more) in temporary files which it opens
# with TensorFlow. ShardBasedBuilder writes each shard straight from its examples and needs none; it does not shuffle.
class FacesBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """Base of the builders: `listing` says what there is, `has_labels` whether label maps are stored.

  Args:
    parser: makes the label maps of pictures as they are stored, where the source has none. Called in several threads.
    parser_batch: pictures that it is given at once.
    workers: threads that read and check pictures; default one a CPU core.
    progress: called with 1 after each picture.

  The attribute `parsed` may be given a cache of label maps: what is in it is not parsed again.

  After `download_and_prepare(file_format='array_record')` the dataset's metadata holds `skipped` (reason -> ids),
  `picture_sizes` ('WxH' -> number, the ten most common), `caveat`, and `label_order_doubtful`: whether in most label
  maps the hair or the brows start below the nose, as they do when the classes are read in another order than they were
  written in.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    *,
    parser: Parser | None = None,
    parser_batch: int = 16,
    workers: int | None = None,
    progress: Callable[[int], object] = lambda n: None,
    **kwargs,
  ):
    # TFDS asks for `_info` during construction.
    self._parser = parser
    self._parser_batch = parser_batch
    self.workers = workers or os.cpu_count() or 1
    self.progress = progress
    self.parsed: LabelCache | None = None
    self._sizes = collections.Counter()
    self._upright = collections.Counter()
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

  @property
  def caveat(self) -> str:
    """What the dataset is not good for, a line for those who prepare it; '' where there is nothing to say."""
    return ''

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
    self._skipped = {reason: list(map(_told, names)) for reason, names in self.listing.skipped.items()}
    return {
      split: [functools.partial(self._examples, shard) for shard in _shards(items)]
      for split, items in self.listing.splits.items()
    }

  def _download_and_prepare(self, dl_manager, download_config=None) -> None:
    super()._download_and_prepare(dl_manager, download_config)
    splits = list(self.info.splits.values())
    if not any(split.num_examples for split in splits):
      raise UserError(f'{self.builder_config.source}: not one usable picture; {reasons(self._skipped)}')
    for split in splits:
      if not split.num_examples:
        for path in split.filepaths:
          path.unlink()
    self.info.set_splits(tfds.core.SplitDict([split for split in splits if split.num_examples]))
    self.info.metadata.update(
      skipped=self._skipped,
      picture_sizes={f'{w}x{h}': n for (w, h), n in self._sizes.most_common(10)},
      label_order_doubtful=self._upright[False] > self._upright[True],
      caveat=self.caveat,
    )

  def _examples(self, items: list[Item]) -> Iterator[tuple[str, dict]]:
    with concurrent.futures.ThreadPoolExecutor(self.workers) as executor:
      loaded = ordered_map(self._load, items, executor, ahead=2 * self.workers)
      for picture in self._with_parsed_labels(loaded, executor) if self._parser else loaded:
        self.progress(1)
        if picture.skipped:
          self._skipped.setdefault(picture.skipped, []).append(_told(picture.item.id))
          continue
        height, width = picture.image.shape[:2]
        self._sizes[width, height] += 1
        self._upright[picture.upright] += 1
        example = {'id': picture.item.id, 'image': picture.image_bytes}
        yield picture.item.id, example | ({'label': picture.label_bytes} if self.has_labels else {})

  def read_label(self, item: Item, size: tuple[int, int]) -> np.ndarray:
    """The label map of a picture of `size` (height, width), uint8 [height, width] in the project's order.

    PictureError where it cannot be used.
    """
    (path,) = item.label
    return checked_label(path, self.label_order, size)

  def _load(self, item: Item) -> _Picture:
    if _told(item.id) != item.id:  # Records hold UTF-8 alone.
      return _Picture(item, skipped='a name that is not UTF-8')
    try:
      data = item.read()
      image = pictures.decode_picture(data, item.id)
      label = self.read_label(item, image.shape[:2]) if item.label else None
      keep = pictures.is_plain(data)
    except pictures.PictureError as error:
      return _Picture(item, skipped=error.reason)
    upright = None if label is None else is_upright(label)
    shrunk = shrink(image, self.max_side)
    if shrunk is not image:
      image, keep = shrunk, False
      label = None if label is None else resize_nearest(label, image.shape[:2])
    label_bytes = b'' if label is None else pictures.encode_png(label)
    return _Picture(item, image, data if keep else pictures.encode_png(image), label_bytes, upright)

  def _with_parsed_labels(
    self, loaded: Iterator[_Picture], encoders: concurrent.futures.Executor
  ) -> Iterator[_Picture]:
    with concurrent.futures.ThreadPoolExecutor(_PARSER_CALLS) as executor:
      parse = functools.partial(self._parse, encoders=encoders)
      batches = map(self._with_kept_labels, chunks(loaded, self._parser_batch))
      for batch, parsed in ordered_map(parse, batches, executor, ahead=_PARSER_CALLS - 1):
        if self.parsed is not None:
          self.parsed.put((_cache_key(picture), picture.label_bytes) for picture in parsed)
        yield from batch

  def _with_kept_labels(self, batch: list[_Picture]) -> list[_Picture]:
    if self.parsed is not None:
      for picture in batch:
        picture.label_bytes = self.parsed.get(_cache_key(picture)) or b''
    return batch

  def _parse(
    self, batch: list[_Picture], encoders: concurrent.futures.Executor
  ) -> tuple[list[_Picture], list[_Picture]]:
    """Gives each usable picture of a batch its label map; returns the batch, and those that were parsed for it."""
    asked = [picture for picture in batch if not picture.skipped and not picture.label_bytes]
    label_maps = self._parser([picture.image for picture in asked]) if asked else []
    for picture, label in zip(asked, label_maps, strict=True):
      assert label.shape == picture.image.shape[:2], (picture.item.id, label.shape)
      assert label.dtype == np.uint8, label.dtype
      assert label.max() < labels.NUM_CLASSES, (picture.item.id, label.max())
    for picture, png in zip(asked, encoders.map(pictures.encode_png, label_maps), strict=True):
      picture.label_bytes = png
    return batch, asked


def _told(name: str) -> str:
  """A file's name as it can be printed and stored: bytes of it that are not UTF-8 become escapes."""
  return os.fsencode(name).decode(errors='backslashreplace')


def _cache_key(picture: _Picture) -> str:
  return hashlib.sha256(picture.image_bytes).hexdigest()


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
  return fitted_label(photos.read_label_map(path, order), size, path)


def fitted_label(label: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
  """A label map, uint8 [H, W], at the `size` (height, width) of its picture, by the nearest pixel.

  PictureError, which names `path`, where the aspect ratios differ.
  """
  (height, width), (label_height, label_width) = size, label.shape
  # Equal but for the rounding of a side to whole pixels.
  if abs(label_width * height - label_height * width) > max(height, width, label_height, label_width):
    detail = f'the picture is {width}x{height}, its label map {label_width}x{label_height}'
    raise pictures.PictureError(path, 'size mismatch', detail)
  return resize_nearest(label, size)


def is_upright(label: np.ndarray) -> bool | None:
  """Whether hair and brows of a label map, uint8 [H, W], begin above the nose.

  None where there is no nose, or neither hair nor brows.
  """
  rows = {name: (label == labels.index(name)).any(axis=1) for name in ('hair', 'l_brow', 'r_brow', 'nose')}
  above = [rows['hair'], rows['l_brow'] | rows['r_brow']]
  tops = [part.argmax() for part in above if part.any()]
  return bool(max(tops) < rows['nose'].argmax()) if tops and rows['nose'].any() else None


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


def reasons(skipped: dict[str, list[str]]) -> str:
  """A line on why pictures were skipped: how many for each reason, and one of them."""
  if not skipped:
    return 'the source is empty'
  return '; '.join(f'{reason}: {len(names)}, e.g. {names[0]}' for reason, names in skipped.items())
