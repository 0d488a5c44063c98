"""`jaxface score`: how close one set of pictures, or of label maps, is to another; every number with its protocol.

FID and KID compare sets. The other metrics compare pictures of the same name in both sets: means over all pairs.
"""

import argparse
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from tqdm import tqdm

from jaxface import labels
from jaxface.area import to_square
from jaxface.errors import UserError
from jaxface.folders import check_writable
from jaxface.picture_sets import (
  PictureSet,
  Skipped,
  batches_by_shape,
  open_label_maps,
  open_pictures,
  paired,
  read_each,
)
from jaxface.pictures import PictureError

if TYPE_CHECKING:
  from jaxface.metrics.lpips import Lpips
  from jaxface.models.inception import InceptionFeatures
  from jaxface.weights import Network

# JAX is imported inside the functions: `jaxface --help` need not wait for it.

SET_METRICS = ('fid', 'kid')
_LPIPS = {'lpips': 'lpips-alex', 'lpips-alex': 'lpips-alex', 'lpips-vgg': 'lpips-vgg', 'lpips-squeeze': 'lpips-squeeze'}
PAIR_METRICS = (*_LPIPS, 'ssim', 'ms_ssim', 'vif', 'psnr', 'rmse', 'l1')
METRICS = (*SET_METRICS, *PAIR_METRICS)


@dataclasses.dataclass(frozen=True)
class Score:
  """Numbers and what they mean; `str` of it is for people.

  Attributes:
    protocol: what holds for all numbers: the sets, how many pictures, how they were resized.
    results: metric -> number.
    details: metric -> what its name leaves open; the networks by the hashes of their files.
    skipped: what was left out, and why.
  """

  protocol: dict[str, str]
  results: dict[str, float]
  details: dict[str, str]
  skipped: dict[str, list[str]]

  def __str__(self):
    width = max(map(len, (*self.protocol, *self.results)))
    lines = [f'{name:<{width}}  {value}' for name, value in self.protocol.items()]
    lines += [f'{"skipped":<{width}}  {Skipped(self.skipped)}'] if self.skipped else []
    for name, value in self.results.items():
      detail = self.details.get(name)
      lines.append(f'{name:<{width}}  {value:.6g}' + (f'  ({detail})' if detail else ''))
    return '\n'.join(lines)

  def to_json(self) -> str:
    """All of it."""
    return json.dumps(dataclasses.asdict(self), indent=2) + '\n'


def score(
  real: str | os.PathLike,
  fake: str | os.PathLike,
  *,
  metrics: Sequence[str] = ('fid',),
  resize: int | None = None,
  ssim_window: int = 11,
  allow_few: bool = False,
  batch_size: int = 64,
  weights_dir: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
  save_statistics: str | os.PathLike | None = None,
) -> Score:
  """Measures `fake` against `real` by `metrics`, some of `METRICS`.

  Args:
    real: a folder of pictures, a prepared dataset (NAME or NAME:SPLIT), or, for FID alone, statistics (.npz).
    fake: likewise.
    metrics: 'lpips' is LPIPS by AlexNet.
    resize: height and width that all pictures are resized to first, by area where they shrink; None leaves them.
    ssim_window: side of the Gaussian window of SSIM and MS-SSIM.
    allow_few: measure FID even of fewer pictures than it means something for.
    batch_size: pictures on all devices together.
    weights_dir: see `jaxface.weights`.
    data_dir: where prepared datasets lie.
    save_statistics: write the statistics of `real`, for `real` another time.

  UserError for unknown metrics, sets that cannot be read or paired, missing weights, too few pictures, and statistics
  that could not be written.
  """
  metrics = tuple(dict.fromkeys(metrics))
  unknown = [name for name in metrics if name not in METRICS]
  if unknown or not metrics:
    raise UserError(f'unknown metric {", ".join(unknown) or "(none)"}; choose from {", ".join(METRICS)}')
  if batch_size < 1 or (resize is not None and resize < 1):
    raise UserError(f'batch_size={batch_size}, resize={resize}: must be at least 1')
  if save_statistics is not None and Path(save_statistics).suffix != '.npz':
    raise UserError(f'--save-statistics {os.fspath(save_statistics)}: must be an .npz')
  of_sets = [name for name in metrics if name in SET_METRICS]
  of_pairs = tuple(name for name in metrics if name in PAIR_METRICS)
  sides = []
  for where in (real, fake):
    if os.fspath(where).endswith('.npz'):
      if metrics != ('fid',):
        raise UserError(f'{where}: statistics serve FID alone; for {", ".join(metrics)} name the pictures')
      sides.append(Path(where))
    else:
      sides.append(_resized(open_pictures(where, data_dir=data_dir), resize))
  if save_statistics is not None:
    if isinstance(sides[0], Path):
      raise UserError(f'--save-statistics is of the real pictures, and {sides[0]} has theirs already; leave it out')
    check_writable(Path(save_statistics), '--save-statistics')
  found = Score(
    protocol={
      'real': os.fspath(real),
      'fake': os.fspath(fake),
      'pictures': 'at their own size' if resize is None else f'{resize}x{resize}, shrunk by area or grown bilinearly',
    },
    results={},
    details={},
    skipped={},
  )
  if of_sets or save_statistics:
    _score_sets(found, sides, of_sets, allow_few, batch_size, weights_dir, save_statistics)
  if of_pairs:
    _score_pairs(found, sides, of_pairs, ssim_window, batch_size, weights_dir)
  return dataclasses.replace(found, results={name: found.results[name] for name in metrics})


def score_labels(
  truth: str | os.PathLike,
  prediction: str | os.PathLike,
  *,
  orders: tuple[str, str] = ('celebamask_hq', 'celebamask_hq'),
  unite_sides: bool = False,
  data_dir: str | os.PathLike | None = None,
) -> Score:
  """Agreement of label maps of the same name: mIoU, pixel accuracy, F1, and the IoU of each class.

  Pixels of all pictures count together. Means are over the classes that occur in either set. Folders of PNGs, whose
  classes are in the orders `orders` (names of `jaxface.labels.ORDERS`), or prepared datasets. With `unite_sides` left
  and right eyes are one class, and so brows and ears: many parsers' label maps do not tell them apart.
  """
  from jaxface.metrics import segmentation

  a, b = (
    open_label_maps(where, order=order, data_dir=data_dir)
    for where, order in zip((truth, prediction), orders, strict=True)
  )
  skipped = Skipped()
  confusion = np.zeros((labels.NUM_CLASSES, labels.NUM_CLASSES), np.int64)
  count = 0
  for x, y in _read_pairs(a, b, skipped):
    if unite_sides:
      x, y = labels.UNITED[x], labels.UNITED[y]
    confusion += segmentation.count_pairs(x, y, labels.NUM_CLASSES)
    count += 1
  _check_any(count, skipped)
  figures = segmentation.scores_of(confusion)
  there = [c for c in range(labels.NUM_CLASSES) if np.isfinite(figures['iou'][c])]
  results = {name: figures[name] for name in ('miou', 'mean_f1', 'accuracy')}
  sided = {c for c in there if unite_sides and labels.MIRROR[c] != c}
  results |= {f'iou/{labels.CLASSES[c][2 if c in sided else 0 :]}': float(figures['iou'][c]) for c in there}
  protocol = {
    'truth': f'{a.name} ({orders[0]} order)',
    'prediction': f'{b.name} ({orders[1]} order)',
    'label maps': f'{count:,} pairs' + ', left and right united' * unite_sides,
  }
  possible = len(set(labels.UNITED)) if unite_sides else labels.NUM_CLASSES
  details = {'miou': f'mean over {len(there)} classes of {possible}; the others are in no label map'}
  return Score(protocol, results, details, skipped.names)


def register(subparsers: 'argparse._SubParsersAction') -> None:
  """Adds the command `score` to argparse's subparsers."""
  text = 'measure pictures or label maps against others: FID, LPIPS, SSIM ..., mIoU'
  command = subparsers.add_parser('score', help=text, description=text)
  command.set_defaults(run=_run)
  kinds = 'a folder, or a prepared dataset as NAME or NAME:SPLIT'
  command.add_argument('real', metavar='REAL', help=f'{kinds}; for fid also statistics (.npz)')
  command.add_argument('fake', metavar='FAKE', help='likewise')
  command.add_argument('--metrics', default='fid', help=f'comma-separated, of {", ".join(METRICS)}; default fid')
  command.add_argument('--labels', action='store_true', help='REAL and FAKE are label maps: mIoU, accuracy, F1')
  command.add_argument('--label-order', nargs='+', choices=labels.ORDERS, default=['celebamask_hq'], metavar='ORDER',
                       help=f'order of classes, one for both or two: {", ".join(labels.ORDERS)}; default '
                       'celebamask_hq')  # fmt: skip
  command.add_argument('--unite-sides', action='store_true', help='left and right eyes, brows and ears as one class')
  command.add_argument(
    '--resize',
    type=int,
    metavar='N',
    help='resize all pictures to NxN first; pictures of many sizes take long to compile for',
  )
  command.add_argument('--ssim-window', type=int, default=11, metavar='N', help='of ssim and ms_ssim, default 11')
  command.add_argument('--allow-few', action='store_true', help='FID of few pictures, knowing that it means little')
  command.add_argument('--batch-size', type=int, default=64, help='default %(default)s')
  command.add_argument('--weights-dir', type=Path, metavar='DIR', help='where `jaxface convert` has put the networks; '
                       'default $JAXFACE_WEIGHTS, else ~/.cache/jaxface/weights')  # fmt: skip
  command.add_argument('--data-dir', type=Path, metavar='DIR', help='where prepared datasets lie')
  command.add_argument(
    '--save-statistics', type=Path, metavar='FILE.npz', help="keep REAL's statistics for another FID"
  )
  command.add_argument('--out', type=Path, metavar='FILE.json', help='write the result')


def _run(args: argparse.Namespace) -> int:
  from jaxface.workdir import write_atomically

  if args.out:
    check_writable(args.out)
  if args.labels:
    orders = tuple(args.label_order * 2)[:2] if len(args.label_order) == 1 else tuple(args.label_order)
    if len(orders) != 2:
      raise UserError(f'--label-order {" ".join(orders)}: one for both sets, or one for each')
    result = score_labels(args.real, args.fake, orders=orders, unite_sides=args.unite_sides, data_dir=args.data_dir)
  else:
    result = score(
      args.real,
      args.fake,
      metrics=args.metrics.split(','),
      resize=args.resize,
      ssim_window=args.ssim_window,
      allow_few=args.allow_few,
      batch_size=args.batch_size,
      weights_dir=args.weights_dir,
      data_dir=args.data_dir,
      save_statistics=args.save_statistics,
    )
  print(result)
  if args.out:
    write_atomically(args.out, result.to_json())
    print(f'written: {args.out}')
  return 0


def _score_sets(found, sides, metrics, allow_few, batch_size, weights_dir, save_statistics) -> None:
  """Adds FID and KID."""
  from jaxface import weights
  from jaxface.metrics import fid, kid

  check_count = fid.check_count if 'fid' in metrics and not allow_few else lambda count, of: None
  for side in sides:
    if isinstance(side, PictureSet):
      check_count(len(side), side.name)
  drawn = any(isinstance(side, PictureSet) for side in sides)
  network = weights.load('inception', weights_dir) if drawn else None
  features, statistics = [], []
  for role, side in zip(('real', 'fake'), sides, strict=True):
    if isinstance(side, Path):
      statistics.append(fid.FeatureStatistics.load(side))
      count = statistics[-1].count
      if count is not None:
        check_count(count, str(side))
      found.protocol[role] = f'{side}: statistics of {"unknown many" if count is None else f"{count:,}"} pictures'
      continue
    skipped = Skipped(found.skipped)
    features.append(_features(network, side, batch_size, skipped))
    found.protocol[role] = f'{side.name}: {len(features[-1]):,} pictures'
    check_count(len(features[-1]), side.name)
    statistics.append(fid.FeatureStatistics.of(features[-1]))
    if role == 'real' and save_statistics:
      statistics[-1].save(save_statistics)
  if 'fid' in metrics:
    found.results['fid'] = fid.frechet_distance(*statistics)
    found.details['fid'] = f'{fid.PREPARATION}; {network}' if network else 'of features as the statistics have them'
  if 'kid' in metrics:
    outcome = kid.kid(*features)
    found.results['kid'] = outcome.mean
    subsets = f'{kid.SUBSETS} subsets of {outcome.subset_size}, standard deviation {outcome.std:.2g}'
    found.details['kid'] = f'{subsets}; {fid.PREPARATION}; {network}'


def _score_pairs(found, sides, metrics, ssim_window, batch_size, weights_dir) -> None:
  """Adds the metrics of pairs."""
  from jaxface import weights
  from jaxface.device_map import map_batches
  from jaxface.metrics import paired

  networks = {name: weights.load(_LPIPS[name], weights_dir) for name in metrics if name in _LPIPS}
  details = paired.told(ssim_window)
  details |= {name: f'v0.1, {network.module.net}; {network}' for name, network in networks.items()}
  measure = _pair_measure(tuple((name, network.module) for name, network in networks.items()), metrics, ssim_window)
  variables = {name: network.variables for name, network in networks.items()}
  skipped = Skipped(found.skipped)
  values: dict[str, list[np.ndarray]] = {name: [] for name in metrics}
  batches = batches_by_shape(_read_pairs(*sides, skipped), batch_size)
  try:
    for measured in map_batches(measure, variables, batches, batch_size):
      for name in metrics:
        values[name].append(measured[name].astype(np.float64))
  except UserError as error:
    raise UserError(f'{error} (see --resize and --ssim-window)') from error
  count = sum(map(len, values[metrics[0]]))
  _check_any(count, skipped)
  found.protocol['pairs'] = f'{count:,}'
  for name in metrics:
    found.results[name] = float(np.concatenate(values[name]).mean())
    found.details[name] = details[name]


@functools.cache
def _pair_measure(networks: tuple[tuple[str, 'Lpips'], ...], metrics: tuple[str, ...], ssim_window: int) -> Callable:
  """(variables, floats [B, H, W, 3] in [0, 1], likewise) -> {metric: float32 [B]}."""
  from jaxface.metrics import paired

  plain = paired.measures(ssim_window)

  def measure(variables, a, b):
    by_network = {name: module.apply(variables[name], a, b) for name, module in networks}
    return by_network | {name: plain[name](a, b) for name in metrics if name in plain}

  return measure


def _features(network: 'Network', side: PictureSet, batch_size: int, skipped: Skipped) -> np.ndarray:
  """float32 [N, 2048] of all pictures that can be read."""
  from jaxface.device_map import map_batches
  from jaxface.models.inception import SIDE

  def read(i: int) -> tuple[np.ndarray]:
    # What Inception does to its input, done here, in float32: pictures of many sizes then need one program.
    picture = side.read(i).astype(np.float32)
    return (cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR) / np.float32(255),)

  pictures = tqdm(read_each(read, side.keys, skipped), total=len(side), desc=side.name, leave=False, disable=None)
  batches = batches_by_shape(pictures, batch_size)
  found = list(map_batches(_apply(network.module), network.variables, batches, batch_size))
  _check_any(len(found), skipped)
  return np.concatenate(found)


@functools.cache
def _apply(module: 'InceptionFeatures') -> Callable:
  # `module.apply` is another object whenever it is asked for, and would be compiled anew.
  return module.apply


def _read_pairs(a: PictureSet, b: PictureSet, skipped: Skipped) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  pairs = paired(a, b)

  def read(n: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = a.read(pairs[n][0]), b.read(pairs[n][1])
    if x.shape != y.shape:
      sizes = ' and '.join(f'{z.shape[1]}x{z.shape[0]}' for z in (x, y))
      raise PictureError(a.keys[pairs[n][0]], 'sizes that differ', sizes)
    return x, y

  return iter(tqdm(read_each(read, a.keys, skipped), total=len(a), desc='pairs', leave=False, disable=None))


def _resized(pictures: PictureSet, side: int | None) -> PictureSet:
  if side is None:
    return pictures
  return dataclasses.replace(pictures, read=lambda i: to_square(pictures.read(i), side))


def _check_any(count: int, skipped: Skipped) -> None:
  if not count:
    raise UserError(f'nothing to measure is left: {skipped}')
