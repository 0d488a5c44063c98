"""`jaxface makeup`: the makeup of reference photos put on target photos, at full size or in figures to look at."""

import argparse
import collections
import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tqdm import tqdm

from jaxface import labels, photos, pictures
from jaxface.errors import UserError
from jaxface.folders import check_writable
from jaxface.photos import Photos
from jaxface.threads import chunks

if TYPE_CHECKING:
  import jax

  from jaxface.face_region import Canvas, Face, Square
  from jaxface.runs import Run
  from jaxface.state import TrainState
  from jaxface.tasks.makeup import MakeupTask

# JAX is imported inside the functions: `jaxface --help` need not wait for it.

PASTES = ('detail', 'network')

# Transfers that are computed at once.
_BATCH = 8


class _Portrait(NamedTuple):
  image: np.ndarray
  label: np.ndarray
  face: 'Face'


def _portraits(source: Photos) -> Iterator[_Portrait]:
  from jaxface.face_region import find_face

  return (_Portrait(photo.image, photo.label, find_face(photo.label, photo.path)) for photo in source)


def makeup(
  workdirs: Sequence[Path],
  targets: Sequence[Path],
  references: Sequence[Path],
  out: Path,
  *,
  levels: Sequence[float] = (1.0,),
  target_labels: Path | None = None,
  reference_labels: Path | None = None,
  label_order: str = 'celebamask_hq',
  parser: Path | None = None,
  paste: str = 'detail',
  checkpoint: str = 'best',
) -> list[Path]:
  """Puts the makeup of references on targets, and returns the files it has written.

  If `out` is a picture, of one target, one reference, one level and one run the result is the target at its own size.
  Of several it is a figure of the faces at the network's size: with one level and run, targets down and references
  across; with several levels or runs, a row a pair of target and reference. If `out` is a folder it gets a picture at
  full size for each pair and level: TARGET__REFERENCE.png, or TARGET__REFERENCE__LEVEL.png where there are several; in
  folders named for the runs, where there are several.

  Args:
    workdirs: runs of task 'ipmnet' or 'beautygan'.
    targets: photos of one face each, or folders of such, that get the makeup.
    references: the same, whose makeup it is.
    out: a .png or .jpg, or a folder.
    levels: of the makeup, in [0, 1]: 0 is the target's own, 1 the reference's.
    target_labels: folder of label maps named as the photos, NAME.png; of a single photo also the file.
    reference_labels: likewise.
    label_order: order of the classes in these label maps, a name of `jaxface.labels.ORDERS`.
    parser: workdir of a face parser, for photos without label maps.
    paste: 'detail' adds to the photo by how much the network's picture changes from level 0; 'network' puts in the
      network's picture itself, as the papers show it.
    checkpoint: of the runs: 'best', 'latest' or a step.

  Outside the softened border of the face (see `face_region.make_canvas`) photos keep every bit.
  """
  levels = list(dict.fromkeys(levels))
  _check(workdirs, levels, label_order, paste)
  one_picture = pictures.is_one_picture(out)
  found = {'target': photos.find(targets, out), 'reference': photos.find(references, out)}
  if not one_picture:
    for side, paths in found.items():
      photos.check_names(paths, f'--{side}s that are written to a folder are named by their photos')
  given = {'target': target_labels, 'reference': reference_labels}
  maps = {side: photos.find_label_maps(found[side], given[side], f'--{side}-labels') for side in found}
  without = [side for side in found if not maps[side]]
  if without and parser is None:
    options = ' and '.join(f'--{side}-labels DIR' for side in without)
    raise UserError(f'where are the faces? Give label maps by {options}, or a trained face parser by --parser WORKDIR')

  runs = {name: _load(workdir, checkpoint) for name, workdir in _run_names(workdirs).items()}
  network = None
  if without:
    from jaxface.parsing import load_parser

    network = load_parser(parser)
  sources = [Photos(found[side], maps[side], label_order, network) for side in found]
  check_writable(out, of_files=not one_picture)
  count = len(runs) * len(levels) * len(found['target']) * len(found['reference'])
  if not one_picture:
    written = _to_folder(runs, *sources, out, levels, paste)
  elif count == 1:
    (run,) = runs.values()
    ((_, code),) = _codes(run, sources[1])
    ((_, picture),) = _transfers(run, sources[0], [code], levels, paste, full_size=True)
    pictures.write_picture(out, picture)
    written = [out]
  else:
    pictures.write_picture(out, _figure(runs, *sources, levels, paste))
    written = [out]
  print(f'wrote {count:,} {"transfers" if count > 1 else "transfer"}: {out}')
  return written


def _check(workdirs: Sequence[Path], levels: Sequence[float], label_order: str, paste: str) -> None:
  if not levels:
    raise UserError('no level of the makeup; give one or several in 0..1')
  for level in levels:
    if not 0 <= level <= 1:
      raise UserError(
        f'level {level:g}: must be in 0..1; 0 is the target itself, 1 has all the makeup of the reference'
      )
  if len(workdirs) > 1 and len(levels) > 1:
    raise UserError(f'{len(workdirs)} runs at {len(levels)} levels; give several runs or several levels, not both')
  if paste not in PASTES:
    raise UserError(f'unknown paste {paste!r}; choose from {", ".join(PASTES)}')
  labels.lookup_table(label_order)


def _run_names(workdirs: Sequence[Path]) -> dict[str, Path]:
  """The runs by the names of their folders; by the whole path where these are the same."""
  count = collections.Counter(workdir.resolve().name for workdir in workdirs)
  names = {}
  for workdir in workdirs:
    name = workdir.resolve().name
    names[name if count[name] == 1 and name not in ('target', 'reference') else os.fspath(workdir)] = workdir
  if len(names) < len(workdirs):
    raise UserError(f'--workdir names a run twice: {" ".join(map(os.fspath, workdirs))}')
  return names


def _load(workdir: Path, checkpoint: str) -> 'Run':
  from jaxface.runs import load_run
  from jaxface.tasks.makeup import MakeupTask

  run = load_run(workdir, checkpoint)
  if not isinstance(run.engine.task, MakeupTask):
    raise UserError(
      f"{workdir} is a run of task {run.config.task!r}; makeup is transferred by one of 'ipmnet' or 'beautygan': train "
      'it by `jaxface train --config experiments/ipmnet.py:code`'
    )
  return run


def _code(task: 'MakeupTask', state: 'TrainState', image: 'jax.Array', label: 'jax.Array') -> 'jax.Array':
  return task.code(state, task.faces(image, label, made_up=True))


def _wear(
  task: 'MakeupTask', state: 'TrainState', image: 'jax.Array', label: 'jax.Array', code: 'jax.Array', level: 'jax.Array'
) -> 'jax.Array':
  from jaxface.augment import to_unit

  return to_unit(task.wear(state, task.faces(image, label, made_up=False), code, level))


class _View(NamedTuple):
  """The square of a photo that a task cuts the network's from: uint8 [S, S, 3], int32 and bool [S, S]."""

  image: np.ndarray
  label: np.ndarray
  repainted: np.ndarray
  square: 'Square'


def _view(photo: _Portrait, task: 'MakeupTask') -> _View:
  from jaxface.face_region import square_around

  size = task.image_size
  square = square_around(photo.face.region, size, task.framing.crop_size)
  # `map_batches` would take a label map of uint8 for a picture.
  label = square.label(photo.label, size).astype(np.int32)
  return _View(square.picture(photo.image, size), label, square.label(photo.face.repainted, size), square)


def _middle(plane: np.ndarray, task: 'MakeupTask') -> np.ndarray:
  """What the network sees of a field of a view: [C, C, ...]."""
  size, crop = task.image_size, task.framing.crop_size
  margin = (size - crop) // 2
  return plane[margin : margin + crop, margin : margin + crop]


def _canvas(photo: _Portrait, view: _View, task: 'MakeupTask', full_size: bool) -> 'Canvas':
  from jaxface.face_region import Square, make_canvas

  size, crop = task.image_size, task.framing.crop_size
  if full_size:
    return make_canvas(photo.image, photo.face.repainted, view.square.middle(crop, size))
  return make_canvas(_middle(view.image, task), _middle(view.repainted, task), Square(0, 0, crop))


def _codes(run: 'Run', references: Photos) -> list[tuple[np.ndarray, np.ndarray]]:
  """Of every reference what the network sees, uint8 [C, C, 3], and what is to be known of it."""
  from jaxface.device_map import map_batches

  task, seen = run.engine.task, []

  def items() -> Iterator[tuple[np.ndarray, ...]]:
    for photo in _portraits(references):
      view = _view(photo, task)
      seen.append(_middle(view.image, task))
      yield view.image, view.label

  batches = map_batches(functools.partial(_code, task), run.state, chunks(items(), _BATCH), _BATCH)
  codes = list(itertools.chain.from_iterable(batches))
  return list(zip(seen, codes, strict=True))


def _transfers(
  run: 'Run',
  targets: Photos,
  codes: Sequence[np.ndarray],
  levels: Sequence[float],
  paste: str,
  *,
  full_size: bool,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Targets as they are and made up, uint8: target by target, of each code by code, of each level by level.

  Whole photos where `full_size`, else what the network sees of them, [C, C, 3].
  """
  from jaxface.device_map import map_batches

  task, canvases = run.engine.task, collections.deque()

  def items() -> Iterator[tuple[np.ndarray, ...]]:
    for photo in _portraits(targets):
      view = _view(photo, task)
      canvases.append(_canvas(photo, view, task, full_size))
      # At level 0 all codes are the same, and one for each target is enough.
      yield view.image, view.label, codes[0], np.float32(0)
      for code, level in itertools.product(codes, levels):
        if level > 0:
          yield view.image, view.label, code, np.float32(level)

  batches = map_batches(functools.partial(_wear, task), run.state, chunks(items(), _BATCH), _BATCH)
  worn = itertools.chain.from_iterable(batches)
  for own in worn:
    canvas = canvases.popleft()
    for _, level in itertools.product(codes, levels):
      result = next(worn) if level > 0 else own
      yield canvas.photo, canvas.paste(result, own if paste == 'detail' else None)


def _to_folder(
  runs: Mapping[str, 'Run'], targets: Photos, references: Photos, out: Path, levels: Sequence[float], paste: str
) -> list[Path]:
  written = []
  for name, run in runs.items():
    folder = out / name if len(runs) > 1 else out
    codes = [code for _, code in _codes(run, references)]
    transfers = _transfers(run, targets, codes, levels, paste, full_size=True)
    total = len(targets.paths) * len(codes) * len(levels)
    each = itertools.product(targets.paths, references.paths, levels)
    with tqdm(total=total, unit=' pictures', desc='makeup', leave=False, disable=None) as bar:
      for (target, reference, level), (_, picture) in zip(each, transfers, strict=True):
        at_level = f'__{level:g}' if len(levels) > 1 else ''
        path = folder / f'{target.stem}__{reference.stem}{at_level}.png'
        pictures.write_picture(path, picture)
        written.append(path)
        bar.update(1)
  return written


def _figure(
  runs: Mapping[str, 'Run'], targets: Photos, references: Photos, levels: Sequence[float], paste: str
) -> np.ndarray:
  """Faces at the network's size, the largest of several networks', uint8 [H, W, 3]."""
  from jaxface import figures

  size = max(run.engine.task.framing.crop_size for run in runs.values())
  worn = {}
  for name, run in runs.items():
    made_up, codes = zip(*_codes(run, references), strict=True)
    bases, cells = zip(*_transfers(run, targets, codes, levels, paste, full_size=False), strict=True)
    worn[name] = [_resized(cell, size) for cell in cells]
    # All runs are shown the same squares; those of the largest pictures are drawn.
    if run.engine.task.framing.crop_size == size:
      firsts, lasts = bases[:: len(codes) * len(levels)], made_up
  if len(runs) == 1 and len(levels) == 1:
    (cells,) = worn.values()
    rows = [[first, *row] for first, row in zip(firsts, chunks(cells, len(lasts)), strict=True)]
    return figures.tile([[None, *lasts], *rows])
  if len(levels) > 1:
    (cells,) = worn.values()
    worn = {f'level {level:g}': cells[i :: len(levels)] for i, level in enumerate(levels)}
  first, last = zip(*itertools.product(firsts, lasts), strict=True)
  columns = {'target': first, **worn, 'reference': last}
  if len(runs) > 1:
    columns = {'target': first, 'reference': last, **worn}
  return figures.titled_columns({name: np.stack(column) for name, column in columns.items()}, max_rows=len(first))


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
  import cv2

  return picture if len(picture) == size else cv2.resize(picture, (size, size), interpolation=cv2.INTER_LINEAR)


def register(subparsers: 'argparse._SubParsersAction') -> None:
  """Add the command `makeup` to argparse's subparsers; it sets `run`, a function of the parsed arguments."""
  text = "put the makeup of reference photos on target photos, at a level from 0 (the target's own) to 1"
  command = subparsers.add_parser('makeup', help=text, description=text)
  command.add_argument('--workdir', type=Path, nargs='+', required=True, help='folder of a `jaxface train` run of '
                       'IPM-Net or BeautyGAN; several are compared in a figure')  # fmt: skip
  command.add_argument('--checkpoint', default='best', help="'best' (by validation), 'latest' or a step; default best")
  command.add_argument('--target', type=Path, nargs='+', required=True, metavar='PHOTO', help='photos of one face '
                       'each, or folders of such, that get the makeup')  # fmt: skip
  command.add_argument('--reference', type=Path, nargs='+', required=True, metavar='PHOTO', help='the same, whose '
                       'makeup it is')  # fmt: skip
  strength = command.add_mutually_exclusive_group()
  strength.add_argument('--level', type=float, default=1.0, help='of the makeup, 0 to 1; default 1')
  strength.add_argument('--levels', metavar='L,L,...', help='several, such as 0,0.25,0.5,0.75,1')
  for side in ('target', 'reference'):
    command.add_argument(f'--{side}-labels', type=Path, metavar='DIR', help=f'label maps of the {side}s, NAME.png for '
                         'NAME.jpg')  # fmt: skip
  command.add_argument('--label-order', choices=labels.ORDERS, default='celebamask_hq', help='order of the classes in '
                       'these label maps; default celebamask_hq')  # fmt: skip
  command.add_argument('--parser', type=Path, metavar='WORKDIR', help='face parser that finds the faces of photos '
                       'without label maps')  # fmt: skip
  command.add_argument('--paste', choices=PASTES, default='detail', help="'detail': the photo plus what the makeup "
                       "changes; 'network': the network's own picture; default detail")  # fmt: skip
  command.add_argument('--out', type=Path, required=True, help='a .png or .jpg: the target made up, or a figure of '
                       'several; or a folder that gets every target made up, at full size')  # fmt: skip
  command.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
  makeup(
    args.workdir,
    args.target,
    args.reference,
    args.out,
    levels=[args.level] if args.levels is None else _parse_levels(args.levels),
    target_labels=args.target_labels,
    reference_labels=args.reference_labels,
    label_order=args.label_order,
    parser=args.parser,
    paste=args.paste,
    checkpoint=args.checkpoint,
  )


def _parse_levels(text: str) -> list[float]:
  try:
    return [float(part) for part in text.split(',')]
  except ValueError:
    raise UserError(f'--levels {text}: give numbers in 0..1, such as 0,0.25,0.5,0.75,1') from None
