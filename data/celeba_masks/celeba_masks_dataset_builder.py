"""CelebA's aligned pictures with face-parsing label maps computed beforehand, as the dataset `celeba_masks/aligned`.

Reads what users have: the unpacked folder, the zip file, or a `celeb_a` dataset prepared by TFDS.
"""

import dataclasses
import functools
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core import hashing

from jaxface import pictures
from jaxface.errors import UserError, some
from jaxface_data import base

T = TypeVar('T')

PARTITION = 'list_eval_partition'
_ALIGNED = 'img_align_celeba'
_SUFFIX = '.jpg'
_SPLITS = {'0': 'train', '1': 'validation', '2': 'test'}

# CelebA's official partition is by number, one range a split: 162,770, 19,867 and 19,962 pictures.
OFFICIAL_RANGES = {'train': (1, 162_770), 'validation': (162_771, 182_637), 'test': (182_638, 202_599)}


@dataclasses.dataclass(eq=False, kw_only=True)
class CelebaMasksConfig(tfds.core.BuilderConfig):
  """Where the pictures are and how to read them; see `make_config`. `parser` tells which one makes the label maps."""

  source: str
  labels: str | None
  label_order: str
  count: int | None
  parser: str | None = None


def make_config(
  *,
  source: str | os.PathLike,
  labels: str | os.PathLike | None = None,
  label_order: str = 'bisenet',
  count: int | None = None,
) -> CelebaMasksConfig:
  """The config `aligned`; UserError where an option is wrong.

  Args:
    source: a folder with img_align_celeba/, there or deeper, or img_align_celeba.zip (or the pictures themselves) and
      list_eval_partition.txt (or .csv); or the zip file, with the partition beside it or inside; or the folder of a
      `celeb_a` dataset that TFDS prepared as ArrayRecord.
    labels: folder of label maps, 000001.png and so on, each once.
    label_order: order of the classes in them, a name of `jaxface.labels.ORDERS`.
    count: at most so many pictures of each split, the first ones.
  """
  source = Path(source).expanduser()
  if not source.exists():
    raise UserError(f'source={str(source)!r}: no such folder or zip file')
  return CelebaMasksConfig(
    name='aligned',
    source=str(source.resolve()),
    labels=None if labels is None else str(base.check_folder(labels, 'labels')),
    label_order=base.check_order(label_order),
    count=base.check_positive(count, 'count'),
  )


class Builder(base.FacesBuilder):
  """TFDS builder of `celeba_masks/aligned`; takes the config of `make_config`."""

  @functools.cached_property
  def listing(self) -> base.Listing:
    """The pictures in the official partition.

    UserError where the source is not CelebA, where two pictures or two label maps have one name, or where not one
    picture has a label map.
    """
    config = self.builder_config
    splits, skipped = _source_items(Path(config.source))
    if config.labels is not None:
      splits = _with_labels(splits, skipped, Path(config.labels))
    splits = {split: items[: config.count] for split, items in splits.items() if items}
    return base.Listing(splits, skipped)


def _source_items(source: Path) -> tuple[dict[str, list[base.Item]], dict[str, list[str]]]:
  prepared = _prepared_by_tfds(source)
  if prepared:
    return _tfds_items(prepared), {}
  partition, items = _zip_source(source) if source.is_file() else _folder_source(source)
  splits = {split: [] for split in _SPLITS.values()}
  skipped = {}
  for name in sorted(partition.keys() | items.keys()):
    if name not in items:
      skipped.setdefault('in the partition, but not in the source', []).append(name)
    elif name not in partition:
      skipped.setdefault('not in the partition', []).append(name)
    else:
      splits[partition[name]].append(items[name])
  if not any(splits.values()):
    example = f'pictures such as {min(items)}, partition such as {min(partition)}' if items and partition else 'none'
    raise UserError(f'source={str(source)!r}: no picture of the partition in it; {example}')
  return splits, skipped


def _with_labels(
  splits: dict[str, list[base.Item]], skipped: dict[str, list[str]], folder: Path
) -> dict[str, list[base.Item]]:
  label_maps = _by_name([(path.stem, path) for path in base.find_label_maps(folder)], folder)
  splits = {
    split: [_with_label(item, label_maps.get(Path(item.id).stem)) for item in items] for split, items in splits.items()
  }
  missing = [item.id for items in splits.values() for item in items if not item.label]
  if len(missing) == sum(map(len, splits.values())):
    raise UserError(
      f'labels={str(folder)!r}: no label map has the number of a picture: the picture {missing[0]} would need '
      f'{Path(missing[0]).stem}.png; there is {next(iter(label_maps.values())).name}'
    )
  if missing:
    skipped['no label map'] = missing
  return {split: [item for item in items if item.label] for split, items in splits.items()}


def _with_label(item: base.Item, path: Path | None) -> base.Item:
  return dataclasses.replace(item, label=(path,)) if path else item


def _folder_source(source: Path) -> tuple[dict[str, str], dict[str, base.Item]]:
  partition_file = _partition_near(source)
  folder = source / _ALIGNED
  packed = source / f'{_ALIGNED}.zip'
  if not folder.is_dir() and packed.is_file():
    return _zip_source(packed)
  if partition_file is None:
    raise _no_partition(source)
  folder = folder if folder.is_dir() else source
  items = [
    (path.relative_to(folder), base.file_item(path.name, path))
    for path in pictures.find_pictures(folder)
    if path.suffix == _SUFFIX
  ]
  return _read_partition(pictures.read_bytes(partition_file), partition_file), _aligned(items, source)


def _zip_source(source: Path) -> tuple[dict[str, str], dict[str, base.Item]]:
  try:
    # Open until the process ends: the items read from it, in several threads at once, which zipfile allows.
    archive = zipfile.ZipFile(source)
  except zipfile.BadZipFile as error:
    raise UserError(f'source={str(source)!r}: not a zip file, or an incomplete one; download it again') from error
  inside = [info for info in archive.infolist() if Path(info.filename).stem == PARTITION]
  partition_file = _partition_near(source.parent)
  if inside:
    partition = _read_partition(_read_member(archive, inside[0]), inside[0].filename)
  elif partition_file:
    partition = _read_partition(pictures.read_bytes(partition_file), partition_file)
  else:
    raise _no_partition(source)
  items = [
    (path, base.Item(path.name, functools.partial(_read_member, archive, info), info.file_size))
    for path, info in ((Path(info.filename), info) for info in archive.infolist())
    if path.suffix == _SUFFIX and not path.name.startswith('.')
  ]
  return partition, _aligned(items, source)


def _aligned(items: Sequence[tuple[Path, base.Item]], source: Path) -> dict[str, base.Item]:
  """By name, of (path within the source, item); where there is a folder img_align_celeba, only what is in it.

  The pictures in the wild, which CelebA has beside it, have the same names.
  """
  aligned = [(path, item) for path, item in items if _ALIGNED in path.parts]
  return _by_name([(item.id, item) for _, item in aligned or items], source)


def _by_name(found: Sequence[tuple[str, T]], where: Path) -> dict[str, T]:
  """A dict of (name, what has it); UserError where two have one."""
  twice = pictures.repeated(name for name, _ in found)
  if twice:
    raise UserError(f'{where}: more than one file is called {some(twice)}; leave one of each in it')
  return dict(found)


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
  try:
    return archive.read(info)
  except (zipfile.BadZipFile, EOFError, zlib.error) as error:
    raise pictures.PictureError(info.filename, 'damaged in the zip file', str(error)) from error
  except (NotImplementedError, RuntimeError) as error:  # Packed by a method that Python lacks, or encrypted.
    raise UserError(f'{archive.filename}: cannot be unpacked here ({error}); unpack it, and give the folder') from error


def _partition_near(folder: Path) -> Path | None:
  # The original distribution keeps it in Eval/, a common repackaging as a table of comma-separated values.
  places = [folder / part / (PARTITION + suffix) for part in ('', 'Eval', '..') for suffix in ('.txt', '.csv')]
  return next((place for place in places if place.is_file()), None)


def _no_partition(source: Path) -> UserError:
  return UserError(
    f'source={str(source)!r}: {PARTITION}.txt is missing; put it beside the pictures or the zip file '
    '(it comes with CelebA, in its folder Eval)'
  )


def _read_partition(data: bytes, name: str | os.PathLike) -> dict[str, str]:
  # All that counts is ASCII; editors add a byte order mark, and spreadsheets quotes.
  text = data.decode('utf-8-sig', errors='replace').replace('"', '')
  lines = [re.split(r'[,\s]+', line.strip()) for line in text.splitlines()]
  # The comma-separated form has a header.
  partition = {line[0]: _SPLITS[line[1]] for line in lines if len(line) == 2 and line[1] in _SPLITS}
  if not partition:
    raise UserError(f'{name}: no line of the partition is understood; they go as "000001.jpg 0", or with a comma')
  return partition


def _prepared_by_tfds(source: Path) -> Path | None:
  if not source.is_dir():
    return None
  version = '[0-9]*.[0-9]*.[0-9]*'
  found = [source, *source.glob(version), *source.glob(f'celeb_a/{version}')]
  found = [folder for folder in found if (folder / 'dataset_info.json').is_file()]
  return max(found, key=pictures.natural_key, default=None)


def _tfds_items(folder: Path) -> dict[str, list[base.Item]]:
  builder = tfds.builder_from_directory(folder)
  if builder.name != 'celeb_a':  # Another one's records, as those of our own datasets, stand in another order.
    raise UserError(f'source={str(folder)!r}: the dataset {builder.name}; give the celeb_a of TFDS, or the pictures')
  if builder.info.file_format != tfds.core.FileFormat.ARRAY_RECORD:
    raise UserError(
      f'source={str(folder)!r}: prepared as {builder.info.file_format.value}, which only TensorFlow reads; give the '
      'folder or zip file of the pictures instead, or prepare celeb_a with file_format="array_record"'
    )
  splits = {}
  for split, (first, last) in OFFICIAL_RANGES.items():
    names = [f'{number:06d}.jpg' for number in range(first, last + 1)]
    info = builder.info.splits.get(split)
    if info is None or info.num_examples != len(names):
      number = info.num_examples if info else 0
      raise UserError(f'source={str(folder)!r}: split {split} has {number} pictures, CelebA has {len(names)}')
    records = builder.as_data_source(split, decoders={'image': tfds.decode.SkipDecoding()})
    # The records do not tell their names, but TFDS writes them in the order of the names' hashes, salted by the split.
    hasher = hashing.Hasher(split)
    names.sort(key=hasher.hash_key)
    size = info.num_bytes // len(names)
    items = [base.Item(name, functools.partial(_read_record, records, i), size) for i, name in enumerate(names)]
    splits[split] = sorted(items, key=lambda item: item.id)
  return splits


def _read_record(records, i: int) -> bytes:
  return records[i]['image']
