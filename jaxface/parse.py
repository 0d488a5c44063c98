"""`jaxface parse`: pictures become label maps, overlays to look at, and face masks."""

import argparse
import collections
import dataclasses
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from jaxface import labels, pictures
from jaxface.errors import UserError, some
from jaxface.threads import chunks, ordered_map

if TYPE_CHECKING:
  from jaxface.parsing import Parser

# Folders below the one that is written to.
LABELS, OVERLAYS, MASKS = 'labels', 'overlays', 'masks'

# Batches on their way through the parser: one on the devices, one before it, one behind it.
_PARSER_CALLS = 3


@dataclasses.dataclass(frozen=True)
class Summary:
  """What was parsed; `str` of it is for people.

  Attributes:
    out: the folder written to.
    parser: which parser it was.
    parsed: pictures that have a label map now.
    skipped: reason -> pictures left out.
    renamed: pictures whose output bears a longer name, because several would have had the same.
  """

  out: Path
  parser: str
  parsed: int
  skipped: dict[str, list[str]]
  renamed: list[str]

  def __str__(self):
    lines = [f'parsed {self.parsed:,} pictures into {self.out}', f'  by          {self.parser}']
    for reason, names in self.skipped.items():
      lines.append(f'  skipped     {len(names):,} {reason}: {some(names)}')
    if self.renamed:
      lines.append(f'  renamed     {len(self.renamed):,} with the name of another picture: {some(self.renamed)}')
    return '\n'.join(lines)


@dataclasses.dataclass
class _Picture:
  """A picture on its way: read, parsed, written; `skipped` is the reason where it cannot be used."""

  path: Path
  name: PurePath
  image: np.ndarray | None = None
  shrunk: np.ndarray | None = None
  size: tuple[int, int] = (0, 0)
  label: np.ndarray | None = None
  skipped: str = ''


def parse(
  parser: 'Path | Parser',
  images: Sequence[Path],
  out: Path,
  *,
  overlay: bool = False,
  mask: bool = False,
  checkpoint: str = 'best',
  workers: int | None = None,
  quiet: bool = False,
) -> Summary:
  """Writes a label map for every picture, of its size: `out`/labels/a/b.png for a/b.jpg in a folder of pictures.

  A label map is an indexed PNG: values 0..18 in CelebAMask-HQ's order, with the palette of `jaxface.labels`. The folder
  `out`/labels is what `jaxface prepare face_folder --labels` takes. A file is there whole or not at all.

  Args:
    parser: workdir of a face parser, or one that is loaded.
    images: pictures, or folders that are searched with all below them (but for `out`, if it lies in one).
    out: folder to write to; what was there under the same name is replaced.
    overlay: also write `out`/overlays/a/b.jpg, the picture with its label map laid over it.
    mask: also write `out`/masks/a/b.png: 255 where the picture shows a face as `jaxface.labels.FACE` has it, hair and
      hat included, else 0.
    checkpoint: of the parser: 'best', 'latest' or a step.
    workers: threads that read and write; default one a CPU core.
    quiet: no progress bar.

  Pictures that cannot be read are left out and counted. UserError where not one can be.
  """
  if workers is not None and workers < 1:
    raise UserError(f'workers={workers}: must be at least 1; leave it out for one a CPU core')
  workers = workers or os.cpu_count() or 1
  found = _find(images, out)
  names = output_names(found)
  if isinstance(parser, Path):
    from jaxface.parsing import load_parser

    network = load_parser(parser, checkpoint)
  else:
    network = parser

  def read(path: Path) -> _Picture:
    picture = _Picture(path, names[path])
    try:
      image = pictures.read_picture(path)
    except pictures.PictureError as error:
      picture.skipped = error.reason
      return picture
    picture.shrunk, picture.size = network.shrunk(image), image.shape[:2]
    # A picture may have 100 MB.
    picture.image = image if overlay else None
    return picture

  def parse_batch(batch: list[_Picture]) -> list[_Picture]:
    usable = [picture for picture in batch if not picture.skipped]
    label_maps = network.parse_shrunk([p.shrunk for p in usable], [p.size for p in usable])
    for picture, label in zip(usable, label_maps, strict=True):
      picture.label, picture.shrunk = label, None
    return batch

  def write(picture: _Picture) -> _Picture:
    if not picture.skipped:
      pictures.write_picture(_output(out / LABELS, picture.name, '.png'), picture.label, palette=labels.PALETTE)
      if overlay:
        pictures.write_picture(_output(out / OVERLAYS, picture.name, '.jpg'), overlaid(picture.image, picture.label))
      if mask:
        pictures.write_picture(_output(out / MASKS, picture.name, '.png'), labels.FACE[picture.label] * np.uint8(255))
    return picture

  skipped = {}
  with ThreadPoolExecutor(workers) as executor, ThreadPoolExecutor(_PARSER_CALLS) as parsers:
    loaded = ordered_map(read, found, executor, ahead=2 * workers)
    batches = ordered_map(parse_batch, chunks(loaded, network.batch_size), parsers, ahead=_PARSER_CALLS - 1)
    each = (picture for batch in batches for picture in batch)
    with tqdm(total=len(found), unit=' pictures', desc='parse', leave=False, disable=quiet) as bar:
      for picture in ordered_map(write, each, executor, ahead=2 * workers):
        bar.update(1)
        if picture.skipped:
          skipped.setdefault(picture.skipped, []).append(str(picture.path))
  parsed = len(found) - sum(map(len, skipped.values()))
  if not parsed:
    reasons = '; '.join(f'{reason}: {len(paths)}, e.g. {paths[0]}' for reason, paths in skipped.items())
    raise UserError(f'not one of {len(found)} pictures can be read; {reasons}')
  renamed = [str(path) for path, name in found.items() if names[path] != name.with_suffix('')]
  return Summary(out, f'{network.identity} ({network.name})', parsed, skipped, renamed)


def _find(images: Sequence[Path], out: Path) -> dict[Path, PurePath]:
  """Pictures in natural order -> their path within the folder they were found in."""
  found = {}
  for path in map(Path, images):
    inside = [p for p in pictures.find_pictures(path) if not p.absolute().is_relative_to(out.absolute())]
    if not inside:
      raise UserError(f'{path}: no pictures in it but those in --out {out}')
    for picture in inside:
      found.setdefault(picture, picture.relative_to(path) if path.is_dir() else PurePath(picture.name))
  return found


def output_names(found: Mapping[Path, PurePath]) -> dict[Path, PurePath]:
  """Names of outputs, without suffix, each another also where case does not count.

  a/b for a/b.jpg; pictures that would share a name keep their suffix (a/b.jpg beside a/b.png), and those that still
  would, found in several folders, get a number too (a/b.jpg.2).
  """
  short = {path: name.with_suffix('') for path, name in found.items()}
  shared = collections.Counter(map(_folded, short.values()))
  names, taken = {}, {key for key, count in shared.items() if count == 1}
  for path, name in found.items():
    chosen, number = short[path], 1
    if shared[_folded(chosen)] > 1:
      chosen = name
      while _folded(chosen) in taken:
        number += 1
        chosen = name.with_name(f'{name.name}.{number}')
      taken.add(_folded(chosen))
    names[path] = chosen
  return names


def _folded(name: PurePath) -> str:
  return name.as_posix().casefold()


def _output(folder: Path, name: PurePath, suffix: str) -> Path:
  path = folder / name
  return path.with_name(path.name + suffix)


def overlaid(image: np.ndarray, label: np.ndarray) -> np.ndarray:
  """A picture, uint8 [h, w, 3], half covered by the colours of its label map; the background stays as it is."""
  mixed = cv2.addWeighted(image, 0.5, labels.PALETTE[label], 0.5, 0)
  return np.where((label == 0)[..., None], image, mixed)


def register(subparsers: 'argparse._SubParsersAction') -> None:
  """Add the command `parse` to argparse's subparsers; it sets `run`, a function of the parsed arguments."""
  text = 'make face label maps of pictures of any size'
  command = subparsers.add_parser('parse', help=text, description=text)
  command.add_argument('--parser', type=Path, required=True, metavar='WORKDIR', help='folder of a face parser, of '
                       '`jaxface train` or `jaxface convert bisenet`')  # fmt: skip
  command.add_argument('--checkpoint', default='best', help="'best' (by validation), 'latest' or a step; default best")
  command.add_argument('--images', type=Path, nargs='+', required=True, help='pictures or folders')
  command.add_argument('--out', type=Path, required=True, metavar='DIR', help='gets labels/, and overlays/ and masks/ '
                       'where they are asked for')  # fmt: skip
  command.add_argument('--overlay', action='store_true', help='also the label map laid over the picture')
  command.add_argument('--mask', action='store_true', help='also the face region, hair and hat included, as 0 and 255')
  command.add_argument('--workers', type=int, metavar='N', help='threads that read and write; default one a CPU core')
  command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
  options = {name: getattr(args, name) for name in ('overlay', 'mask', 'checkpoint', 'workers')}
  print(parse(args.parser, args.images, args.out, **options))
  return 0
