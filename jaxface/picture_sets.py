"""Sets of pictures or label maps to be measured: a folder, or a split of a prepared dataset; read in threads."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from jaxface import labels, photos, pictures
from jaxface.errors import UserError, some
from jaxface.pictures import PictureError
from jaxface.threads import ordered_map


@dataclasses.dataclass(frozen=True)
class PictureSet:
  """Pictures, uint8 [H, W, 3] RGB, or label maps, uint8 [H, W], not yet read.

  Attributes:
    name: for people.
    keys: a name for each, without suffix, which members of two sets are paired by.
    read: gives the one of an index; PictureError where it cannot be used.
  """

  name: str
  keys: tuple[str, ...]
  read: Callable[[int], np.ndarray]

  def __len__(self):
    return len(self.keys)


def open_pictures(where: str | os.PathLike, *, data_dir: str | os.PathLike | None = None) -> PictureSet:
  """Pictures of a folder, with all below it, or of a prepared dataset: NAME:SPLIT, or NAME for its split test."""
  if Path(where).is_dir():
    return _folder(Path(where), pictures.read_picture)
  return _prepared(os.fspath(where), 'image', data_dir)


def open_label_maps(
  where: str | os.PathLike, *, order: str = 'celebamask_hq', data_dir: str | os.PathLike | None = None
) -> PictureSet:
  """Label maps likewise, in the project's order; `order` is that of a folder's PNGs, and values beyond it an error."""
  labels.lookup_table(order)
  if Path(where).is_dir():
    return _folder(Path(where), functools.partial(photos.read_label_map, order=order))
  return _prepared(os.fspath(where), 'label', data_dir)


def _folder(folder: Path, read: Callable[[Path], np.ndarray]) -> PictureSet:
  paths = pictures.find_pictures(folder)
  keys = tuple(os.fspath(path.relative_to(folder).with_suffix('')) for path in paths)
  _check_unique(keys, folder)
  return PictureSet(os.fspath(folder), keys, lambda i: read(paths[i]))


def _prepared(name: str, feature: str, data_dir: str | os.PathLike | None) -> PictureSet:
  # TFDS takes a second to import, which folders need not wait for.
  import tensorflow_datasets as tfds

  from jaxface.prepare import find_prepared
  from jaxface.records import open_records

  if name.startswith(('.', '/', '~')):
    raise UserError(f'{name}: no such folder')
  name, _, split = name.partition(':')
  split = split or 'test'
  try:
    builder = tfds.builder_from_directory(find_prepared(data_dir, name))
  except UserError as error:
    raise UserError(f'{name}: no such folder, and as a dataset: {error}') from error
  if split not in builder.info.splits or feature not in builder.info.features:
    there = f'splits {", ".join(builder.info.splits)}, features {", ".join(builder.info.features)}'
    raise UserError(f'dataset {name} has no {feature} in split {split!r}; it has {there}')

  ids = [record['id'].decode() for record in open_records(builder, split, ['id'])]
  keys = tuple(os.path.splitext(key)[0] if key.lower().endswith(pictures.SUFFIXES) else key for key in ids)
  _check_unique(keys, f'dataset {name}:{split}')
  records = open_records(builder, split, [feature])

  def read(i: int) -> np.ndarray:
    value = records[i][feature]
    return value[..., 0] if feature == 'label' else value

  return PictureSet(f'{builder.info.full_name}:{split}', keys, read)


def _check_unique(keys: Iterable[str], where: str | os.PathLike) -> None:
  twice = pictures.repeated(keys)
  if twice:
    raise UserError(f'{where}: more than one picture is called {some(twice)}; names must differ by more than suffix')


def paired(a: PictureSet, b: PictureSet) -> list[tuple[int, int]]:
  """Indices of what has the same key in both sets. UserError, with names, where something has no partner."""
  index = {key: i for i, key in enumerate(b.keys)}
  alone = [(s.name, key) for s, other in ((a, b), (b, a)) for key in sorted(set(s.keys) - set(other.keys))]
  if alone:
    listed = '; '.join(
      f'only in {s.name}: {some([key for name, key in alone if name == s.name])}'
      for s in (a, b)
      if any(name == s.name for name, _ in alone)
    )
    raise UserError(
      f'{len(alone)} have no partner of the same name ({listed}); these metrics compare pairs, which fid and kid do not'
    )
  return [(i, index[key]) for i, key in enumerate(a.keys)]


@dataclasses.dataclass
class Skipped:
  """What could not be used, reason -> names; filled while a set is read."""

  names: dict[str, list[str]] = dataclasses.field(default_factory=dict)

  def add(self, reason: str, name: str) -> None:
    """One more, unless it was noted before."""
    names = self.names.setdefault(reason, [])
    if name not in names:
      names.append(name)

  def __len__(self):
    return sum(map(len, self.names.values()))

  def __str__(self):
    return '; '.join(f'{len(names)} {reason}: {some(names)}' for reason, names in self.names.items())


def read_each(read: Callable[[int], object], keys: Sequence[str], skipped: Skipped) -> Iterator[object]:
  """`read(i)` for every index of `keys`, in order, by threads that run ahead; whatever is a PictureError is skipped."""

  def attempt(i: int) -> object:
    try:
      return read(i)
    except PictureError as error:
      return error

  workers = os.cpu_count() or 1
  with ThreadPoolExecutor(workers) as executor:
    for i, result in enumerate(ordered_map(attempt, range(len(keys)), executor, ahead=4 * workers)):
      if isinstance(result, PictureError):
        skipped.add(result.reason, keys[i])
      else:
        yield result


def batches_by_shape(
  items: Iterable[tuple[np.ndarray, ...]], batch_size: int
) -> Iterator[list[tuple[np.ndarray, ...]]]:
  """Lists of up to `batch_size` items whose arrays have the same shapes; few items of many shapes wait in memory."""
  waiting: dict[tuple, list[tuple[np.ndarray, ...]]] = {}
  for item in items:
    shape = tuple(array.shape for array in item)
    waiting.setdefault(shape, []).append(item)
    if len(waiting[shape]) == batch_size:
      yield waiting.pop(shape)
    elif sum(map(len, waiting.values())) >= 4 * batch_size:
      yield waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
  yield from waiting.values()
