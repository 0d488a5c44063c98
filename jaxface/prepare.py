"""`jaxface prepare`: raw pictures become a prepared dataset, ArrayRecord files in TFDS's layout.

A dataset is written beside its place and moved there when it is complete: whatever interrupts a run, nothing half-made
is ever found, and the next run starts cleanly. Only the label maps that a parser has made are kept for it.
"""

import argparse
import contextlib
import dataclasses
import errno
import functools
import importlib
import io
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging
from tqdm import tqdm

from jaxface import labels, pictures
from jaxface.errors import UserError, some
from jaxface.folders import lock

if TYPE_CHECKING:
  from jaxface.parsing import Parser

# TFDS and JAX are imported where they are needed: they take seconds, which `jaxface --help` need not wait for.

DATASETS = ('synthetic_faces', 'celeba_masks', 'celebamask_hq', 'face_folder', 'makeup_transfer')

# Those that may come without label maps.
PARSED_DATASETS = ('celeba_masks', 'face_folder', 'makeup_transfer')

# Those whose configs users name.
_NAMED_DATASETS = ('face_folder', 'makeup_transfer')

# Within the dataset's own folder, so that moving it into place is one rename.
_UNFINISHED = 'incomplete.prepare'
_REPLACED = 'replaced'
_PARSED = 'parsed.prepare'


@dataclasses.dataclass(frozen=True)
class Summary:
  """What was prepared; `str` of it is for people.

  Attributes:
    name: what `--config.data.name` takes, as 'face_folder/mine'.
    path: the version's folder, as `find_prepared` returns it.
    splits: pictures of each split.
    num_bytes: of all record files.
    picture_sizes: 'WxH' -> number of pictures, the most common ones.
    skipped: reason -> names of pictures left out.
    has_labels: whether every picture has a label map.
    parser: which parser made the label maps, None where none did.
    label_order_doubtful: whether most label maps look as if their classes stood in another order than was said.
    caveat: what the dataset is not good for, '' where there is nothing to say.
    already: whether it had been there before, and nothing was done.
  """

  name: str
  path: Path
  splits: dict[str, int]
  num_bytes: int
  picture_sizes: dict[str, int]
  skipped: dict[str, list[str]]
  has_labels: bool
  parser: str | None
  label_order_doubtful: bool
  caveat: str
  already: bool

  def __str__(self):
    splits = ', '.join(f'{split} {count:,}' for split, count in self.splits.items())
    sizes = some(f'{size} ({count:,})' for size, count in self.picture_sizes.items())
    lines = [
      f'{self.name}: {"already prepared with these options" if self.already else "prepared"}',
      f'  pictures    {splits}, {"with" if self.has_labels else "without"} label maps',
      f'  size        {self.num_bytes / 1e6:,.1f} MB' + (f'; width x height {sizes}' if sizes else ''),
    ]
    if self.parser:
      lines.append(f'  parsed by   {self.parser}')
    for reason, names in self.skipped.items():
      lines.append(f'  skipped     {len(names):,} {reason}: {some(names)}')
    if self.label_order_doubtful:
      lines.append('  warning     in most label maps hair or brows start below the nose: is --label-order right?')
    if self.caveat:
      lines.append(f'  note        {self.caveat}')
    return '\n'.join([*lines, f'  lies in     {self.path}', f'  use it by   --config.data.name={self.name}'])


def default_data_dir() -> Path:
  """TFDS's own: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
  return Path(os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()


def prepare(
  dataset: str,
  *,
  data_dir: str | os.PathLike | None = None,
  overwrite: bool = False,
  workers: int | None = None,
  parser: str | os.PathLike | None = None,
  **options,
) -> Summary:
  """Prepare a dataset, unless it is there already with the same options.

  Args:
    dataset: one of `DATASETS`.
    data_dir: folder of all prepared datasets; default `default_data_dir()`.
    overwrite: replace what is there, once the new one is complete.
    workers: threads that read pictures, or processes that render faces; default one a CPU core.
    parser: workdir of a face parser that makes the label maps, for `PARSED_DATASETS`. After an interruption the same
      call goes on with the label maps that are made.
    **options: of the dataset's `make_config`.

  UserError where an option or the source is wrong, the disk too small, or the dataset there with other options; OSError
  where the disk is full after all.
  """
  if dataset not in DATASETS:
    raise UserError(f'unknown dataset {dataset!r}; choose from {", ".join(DATASETS)}')
  if workers is not None and workers < 1:
    raise UserError(f'workers={workers}: must be at least 1; leave it out for one a CPU core')
  builder_module = importlib.import_module(f'jaxface_data.{dataset}.{dataset}_dataset_builder')
  config = builder_module.make_config(**options)
  parsing = {}
  if parser is not None:
    parser = _load_parser(parser, dataset, options)
    config = dataclasses.replace(config, parser=parser.identity)
    parsing = {'parser': parser, 'parser_batch': parser.batch_size}
  folder = _local(data_dir) / dataset / config.name
  with _only_writer(folder):
    unfinished = folder / _UNFINISHED
    _clear_leftovers(folder, unfinished)
    try:
      with _quiet_tfds():
        builder = builder_module.Builder(data_dir=unfinished, config=config, **parsing)
      final = folder / str(builder.version)
      made_from = _made_from(builder)
      if _is_prepared(final) and not overwrite:
        _check_same(final, made_from)
        return _summary(final, already=True)
      _check_space(builder, folder)
      with _full_disk_as_oserror(folder), _keep_parsed(builder, folder / _PARSED, parser):
        _build(builder, workers)
      made = Path(builder.data_dir)
      _write_metadata(made, _read_metadata(made) | made_from | ({'parser': parser.origin} if parser else {}))
      _publish(made, final, unfinished / _REPLACED)
      (folder / _PARSED).unlink(missing_ok=True)
    finally:
      _clear_leftovers(folder, unfinished)
  return _summary(final, already=False)


def find_prepared(data_dir: str | os.PathLike | None, name: str) -> Path:
  """The folder of the newest version of a prepared dataset, to be read by `tfds.builder_from_directory`.

  Args:
    data_dir: folder of all prepared datasets; None is `default_data_dir()`.
    name: dataset and config, as 'synthetic_faces/faces_144'.

  UserError where it is not there; it lists what is, and the command that makes it.
  """
  root = _local(data_dir)
  versions = _prepared_in(root)
  if name in versions:
    return versions[name]
  there = ', '.join(versions) or 'nothing'
  raise UserError(f'{name!r} is not prepared in {root} (there is: {there}); make it by `{_command(name, data_dir)}`')


def register(subparsers: 'argparse._SubParsersAction') -> None:
  """Add the command `prepare` to argparse's subparsers; each dataset sets `run`, a function of the parsed arguments."""
  command = subparsers.add_parser('prepare', help='make a dataset of pictures and label maps, ready for training')
  datasets = command.add_subparsers(dest='dataset', required=True, metavar='DATASET')

  common = argparse.ArgumentParser(add_help=False)
  common.add_argument('--data-dir', metavar='DIR', help='where prepared datasets lie; default $TFDS_DATA_DIR, else '
                      '~/tensorflow_datasets')  # fmt: skip
  common.add_argument('--overwrite', action='store_true', help='replace the dataset, once the new one is complete')
  common.add_argument('--workers', type=int, metavar='N', help='threads that read pictures, or '
                      'processes that render faces; default one a CPU core')  # fmt: skip

  def add(dataset: str, help: str, *options: str) -> argparse.ArgumentParser:
    parser = datasets.add_parser(dataset, help=help, description=help, parents=[common])
    parser.set_defaults(run=functools.partial(_run, dataset, options))
    return parser

  rendered = 'rendered faces with exact label maps; needs no download'
  parser = add('synthetic_faces', rendered, 'size', 'count', 'seed', 'makeup_pairs', 'aligned')
  parser.add_argument('--size', type=int, default=144, help='height and width, default %(default)s')
  parser.add_argument('--count', type=int, default=20_000, help='number of pictures, default %(default)s')
  parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
  parser.add_argument('--makeup-pairs', action='store_true', help='each face without and with makeup, and somebody '
                      'else who wears the same makeup')  # fmt: skip
  parser.add_argument('--aligned', action='store_true', help='eyes at fixed points, as in CelebA and CelebAMask-HQ')

  parser_help = 'workdir of a face parser (`jaxface train` or `jaxface convert bisenet`), which makes the label maps'

  aligned = 'CelebA, aligned, with label maps computed beforehand or made by a parser'
  parser = add('celeba_masks', aligned, 'source', 'labels', 'label_order', 'parser', 'count')
  parser.add_argument('--source', required=True, metavar='DIR_OR_ZIP', help='folder with img_align_celeba (or the zip '
                      'file) and list_eval_partition.txt, or a celeb_a dataset of TFDS')  # fmt: skip
  parser.add_argument('--labels', metavar='DIR', help='label maps 000001.png ...; without, only pictures are prepared')
  parser.add_argument('--label-order', choices=labels.ORDERS, default='bisenet', help='order of the classes in the '
                      'label maps, default %(default)s')  # fmt: skip
  parser.add_argument('--parser', metavar='WORKDIR', help=parser_help)
  parser.add_argument('--count', type=int, metavar='N', help='at most N pictures of each split')

  drawn = 'CelebAMask-HQ: the part masks drawn by hand, merged into label maps'
  parser = add('celebamask_hq', drawn, 'source', 'size', 'validation', 'count')
  parser.add_argument('--source', required=True, metavar='DIR', help='the unpacked folder CelebAMask-HQ')
  parser.add_argument('--size', type=int, default=512, help='height and width to store, default %(default)s')
  parser.add_argument('--validation', type=int, default=0, metavar='N', help='the last N of the 28,000 training '
                      'pictures become a validation split, default %(default)s')  # fmt: skip
  parser.add_argument('--count', type=int, metavar='N', help='at most N pictures of each split')

  any_folder = 'any folder of pictures, with or without label maps'
  parser = add('face_folder', any_folder, 'source', 'labels', 'label_order', 'parser', 'name', 'count', 'max_side')
  parser.add_argument('--source', required=True, metavar='DIR', help='pictures, searched with all sub-folders; those '
                      'named train, validation and test become the splits, else 8 of 10 are for training')  # fmt: skip
  parser.add_argument('--labels', metavar='DIR', help='label maps: a/b.png for the picture a/b.jpg')
  parser.add_argument('--label-order', choices=labels.ORDERS, default='celebamask_hq', help='order of the classes in '
                      'the label maps, default %(default)s')  # fmt: skip
  parser.add_argument('--parser', metavar='WORKDIR', help=parser_help)
  parser.add_argument('--name', help='the dataset will be face_folder/NAME; default the name of the folder')
  parser.add_argument('--count', type=int, metavar='N', help='at most N pictures of each split')
  parser.add_argument('--max-side', type=int, metavar='PIXELS', help='shrink pictures with a longer side')

  makeup = 'faces with makeup and faces without: Makeup Transfer, or two folders of yours'
  options = ('source', 'labels', 'label_order', 'parser', 'name', 'test_makeup', 'test_non_makeup', 'validation')
  parser = add('makeup_transfer', makeup, *options, 'count', 'max_side')
  parser.add_argument('--source', required=True, metavar='DIR', help='Makeup Transfer as downloaded (images/makeup, '
                      'images/non-makeup, segs/...), the folders of IPM-Net (trainA, trainB, trainA_mask, ...), or a '
                      'folder with makeup/ and non-makeup/')  # fmt: skip
  parser.add_argument('--labels', metavar='DIR', help='label maps: makeup/a.png for the picture makeup/a.jpg; default '
                      'segs/ or labels/ in the source, or else its masks')  # fmt: skip
  parser.add_argument('--label-order', choices=labels.ORDERS, help='order of the classes in the label maps, default '
                      'makeup_transfer for segs/, else celebamask_hq')  # fmt: skip
  parser.add_argument('--parser', metavar='WORKDIR', help=parser_help)
  parser.add_argument('--name', help='the dataset will be makeup_transfer/NAME; default mt or ipmnet for those two, '
                      'else the name of the folder')  # fmt: skip
  for kind, held_out in (('makeup', 250), ('non-makeup', 100)):
    parser.add_argument(f'--test-{kind}', type=int, metavar='N', help=f'{kind} pictures to hold out where the source '
                        f'has no test folder, default {held_out} of Makeup Transfer, a tenth of your own')  # fmt: skip
  parser.add_argument('--validation', type=int, default=0, metavar='N', help='N training pictures of each kind become '
                      'a validation split, default %(default)s')  # fmt: skip
  parser.add_argument('--count', type=int, metavar='N', help='at most N pictures of each split')
  parser.add_argument('--max-side', type=int, metavar='PIXELS', help='shrink pictures with a longer side')


def _run(dataset: str, options: tuple[str, ...], args: argparse.Namespace) -> int:
  options = {option: getattr(args, option) for option in options}
  print(prepare(dataset, data_dir=args.data_dir, overwrite=args.overwrite, workers=args.workers, **options))
  return 0


def _load_parser(workdir: str | os.PathLike, dataset: str, options: dict) -> 'Parser':
  if dataset not in PARSED_DATASETS:
    raise UserError(f'{dataset} has label maps of its own; --parser is for {", ".join(PARSED_DATASETS)}')
  if options.get('labels') is not None:
    raise UserError(f'--labels {options["labels"]} and --parser {workdir}: label maps come from one of them; choose')
  from jaxface.parsing import load_parser

  return load_parser(Path(workdir))


@contextlib.contextmanager
def _keep_parsed(builder, path: Path, parser: 'Parser | None') -> Iterator[None]:
  """Lets the builder go on with the label maps in file `path`, and keep there what it makes."""
  if parser is None:
    yield
    return
  from jaxface_data.label_cache import LabelCache

  with contextlib.closing(LabelCache(path, made_by=parser.identity)) as builder.parsed:
    yield


@contextlib.contextmanager
def _full_disk_as_oserror(folder: Path) -> Iterator[None]:
  """ArrayRecord and SQLite have errors of their own for what is an OSError elsewhere."""
  try:
    yield
  except (RuntimeError, sqlite3.OperationalError) as error:
    if not re.search('No space left|Disk quota exceeded|disk is full', str(error)):
      raise
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _local(data_dir: str | os.PathLike | None) -> Path:
  data_dir = default_data_dir() if data_dir is None else data_dir
  # A path has made one stroke of two.
  if re.match(r'[a-z][a-z0-9]+:/', os.fspath(data_dir)):
    raise UserError(f'data_dir={os.fspath(data_dir)!r}: not a local folder; mount it, or prepare on a disk and copy')
  return Path(data_dir).expanduser().absolute()


@contextlib.contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
  """Hold the dataset's folder against a second `prepare`; the system frees it when a process dies."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
  except OSError as error:
    raise UserError(f'cannot write into {folder}: {error.strerror}; choose another --data-dir') from error
  try:
    if not lock(handle):
      raise UserError(f'{folder}: another `jaxface prepare` is writing this dataset; wait for it')
    yield
  finally:
    os.close(handle)
    # A failed run leaves no empty folders behind.
    with contextlib.suppress(OSError):
      folder.rmdir()
      folder.parent.rmdir()


def _clear_leftovers(folder: Path, unfinished: Path) -> None:
  # Stopped while replacing a dataset, between the two renames: the old one is still whole.
  for old in unfinished.glob(f'{_REPLACED}/*'):
    if not (folder / old.name).exists():
      old.rename(folder / old.name)
  if unfinished.exists():
    shutil.rmtree(unfinished)


def _publish(made: Path, final: Path, replaced: Path) -> None:
  if final.exists():
    replaced.mkdir()
    final.rename(replaced / final.name)
  made.rename(final)


def _made_from(builder) -> dict:
  """What decides a dataset's content, in JSON's types: the config's own fields, and a digest of the source's files."""
  import tensorflow_datasets as tfds

  common = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
  config = builder.builder_config
  options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
  options = {key: value for key, value in options.items() if key not in common}
  made_from = {'options': options, 'source_digest': builder.listing.digest() if _has_source(builder) else None}
  return json.loads(json.dumps(made_from))


def _has_source(builder) -> bool:
  from jaxface_data import base

  return isinstance(builder, base.FacesBuilder)


def _check_same(final: Path, made_from: dict) -> None:
  recorded = _read_metadata(final)
  was, now = recorded.get('options', {}), made_from['options']
  changed = [f'{key} was {was.get(key)!r}, now {now[key]!r}' for key in now if was.get(key) != now[key]]
  if not changed and recorded.get('source_digest') != made_from['source_digest']:
    changed = ['the files of the source have changed since']
  if changed:
    other = 'another --name' if final.parent.parent.name in _NAMED_DATASETS else 'another --data-dir'
    raise UserError(f'{final} was prepared otherwise ({"; ".join(changed)}); replace it by --overwrite, or use {other}')


def _check_space(builder, folder: Path) -> None:
  config = builder.builder_config
  if _has_source(builder):
    needed = builder.least_bytes()
  else:
    # A rendered picture takes more than half a byte a pixel as PNG.
    needed = (3 if config.makeup_pairs else 1) * config.count * config.size**2 // 2
  free = shutil.disk_usage(folder).free
  if needed > free:
    raise UserError(
      f'{folder}: needs at least {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; choose another --data-dir'
    )


def _build(builder, workers: int | None) -> None:
  """Write the dataset; a builder with the attribute `progress` has our bar, any other one TFDS's."""
  import tensorflow_datasets as tfds

  own_bar = hasattr(builder, 'progress')
  total = builder.listing.num_items() if _has_source(builder) else builder.builder_config.count
  name = f'{builder.name}/{builder.builder_config.name}'
  with tqdm(total=total, unit=' pictures', desc=name, leave=False, disable=not own_bar) as bar, _quiet_tfds():
    builder.workers = workers or builder.workers
    if own_bar:
      builder.progress = bar.update
      tfds.display_progress_bar(False)
    try:
      builder.download_and_prepare(file_format=tfds.core.FileFormat.ARRAY_RECORD)
    finally:
      tfds.display_progress_bar(True)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    # It prints, in bold, that sizes are unknown.
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    logging.set_verbosity(verbosity)


def _summary(final: Path, already: bool) -> Summary:
  import tensorflow_datasets as tfds

  info = tfds.builder_from_directory(final).info
  metadata = _read_metadata(final)
  return Summary(
    name=f'{info.name}/{info.config_name}',
    path=final,
    splits={name: split.num_examples for name, split in info.splits.items()},
    num_bytes=sum(path.stat().st_size for path in final.glob('*.array_record*')),
    picture_sizes=metadata.get('picture_sizes', {}),
    skipped=metadata.get('skipped', {}),
    has_labels='label' in info.features,
    parser=metadata.get('options', {}).get('parser'),
    label_order_doubtful=metadata.get('label_order_doubtful', False),
    caveat=metadata.get('caveat', ''),
    already=already,
  )


def _is_prepared(version: Path) -> bool:
  # TFDS writes it last.
  return (version / 'dataset_info.json').is_file()


def _read_metadata(version: Path) -> dict:
  path = version / 'metadata.json'
  return json.loads(path.read_text()) if path.is_file() else {}


def _write_metadata(version: Path, metadata: dict) -> None:
  (version / 'metadata.json').write_text(json.dumps(metadata))


def _prepared_in(root: Path) -> dict[str, Path]:
  found = {}
  versions = [info.parent for info in root.glob('*/*/[0-9]*.[0-9]*.[0-9]*/dataset_info.json')]
  for version in sorted(versions, key=pictures.natural_key):
    found['/'.join(version.parts[-3:-1])] = version
  return found


def _command(name: str, data_dir: str | os.PathLike | None) -> str:
  dataset, _, config = name.partition('/')
  size = re.fullmatch(r'aligned_(\d+).*', config)
  rendered = re.fullmatch(r'(faces|makeup)(_aligned)?_(\d+)', config)
  flags = ''
  if rendered:
    flags = ' --makeup-pairs' * (rendered[1] == 'makeup') + ' --aligned' * bool(rendered[2])
  arguments = {
    'synthetic_faces': f' --size {rendered[3]}{flags}' if rendered else '',
    'celeba_masks': ' --source DIR_OR_ZIP --labels DIR',
    'celebamask_hq': f' --source DIR --size {size[1]}' if size else ' --source DIR',
    'face_folder': f' --source DIR --name {config or "NAME"}',
    'makeup_transfer': f' --source DIR --name {config or "NAME"}',
  }
  if dataset not in arguments:
    return f'jaxface prepare {{{",".join(arguments)}}}'
  where = '' if data_dir is None else f' --data-dir {os.fspath(data_dir)}'
  return f'jaxface prepare {dataset}{arguments[dataset]}{where}'
