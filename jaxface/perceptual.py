"""Evaluation of whatever pictures a task makes: LPIPS, FID, KID, diversity and identity by networks that know pictures,
SSIM and the like without one, whether a face parser finds in a picture the label map that was asked for, and the time
it takes to make one."""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import input_pipeline, labels, weights
from jaxface.errors import UserError
from jaxface.meshes import on_host
from jaxface.metrics import fid, kid, paired, segmentation
from jaxface.parallel import JitEngine
from jaxface.parsing import Parser, load_parser
from jaxface.processes import process_and_count
from jaxface.state import PyTree, TrainState
from jaxface.tasks.task import Batch, Compared
from jaxface.timing import time_repeatedly

_SSIM_WINDOW = 11
_BY_EYE = paired.measures(_SSIM_WINDOW)

# Metric -> the network that it measures with; None: with none, or with the user's own face parser.
METRICS = {
  'lpips-alex': 'lpips-alex',
  'lpips-vgg': 'lpips-vgg',
  'lpips-squeeze': 'lpips-squeeze',
  'fid': 'inception',
  'kid': 'inception',
  'diversity-alex': 'lpips-alex',
  'identity': 'resnet50_face',
  'miou': None,
  'seconds': None,
  **dict.fromkeys(_BY_EYE),
}

_TOLD = {
  **paired.told(_SSIM_WINDOW),
  'lpips': 'v0.1',
  'fid': fid.PREPARATION,
  'kid': f'{kid.SUBSETS} subsets of up to {kid.SUBSET_SIZE:,} pictures; {fid.PREPARATION}',
  'diversity': 'LPIPS v0.1 of two pictures made of the same input, or else of a picture and the one before; mean',
  'identity': 'cosine of face features, averaged over all positions',
  'miou': 'label map found in the 8-bit picture against the one asked for, over all pixels of the set',
  'seconds': 'to make one picture, in batches as evaluated, by all devices; compiling not counted',
}

Apply = Callable[..., jax.Array]
# Name -> values [B], and 1 where a row counts, else 0.
_Weighted = dict[str, tuple[jax.Array, jax.Array]]
# By protocol: values (by protocol/metric), features for FID and KID, label maps and 8-bit pictures for mIoU.
# And which rows are real.
_Found = tuple[_Weighted, dict[str, jax.Array], dict[str, tuple[jax.Array, jax.Array]], jax.Array]


class Perceptual:
  """The networks of some of `METRICS`, loaded; `measure` uses them.

  Attributes:
    protocol: what the names leave open, and the networks by the hashes of their files.
  """

  def __init__(
    self,
    metrics: Sequence[str],
    *,
    allow_few: bool = False,
    weights_dir: Path | None = None,
    parser: Path | None = None,
  ):
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
      raise UserError(f'unknown metric {unknown[0]!r}; evaluation can add {", ".join(METRICS)}')
    self._metrics = tuple(metrics)
    needed = dict.fromkeys(METRICS[name] for name in metrics if METRICS[name] is not None)
    self._networks = {name: weights.load(name, weights_dir) for name in needed}
    self._parser = _parser_for(metrics, parser)
    self._allow_few = allow_few
    by = {name: self._networks[METRICS[name]] for name in metrics if METRICS[name] is not None}
    if self._parser is not None:
      by['miou'] = self._parser.identity
    self.protocol = {
      name: _TOLD[name.partition('-')[0]] + (f'; {by[name]}' if name in by else '') for name in self._metrics
    }

  def check_count(self, dataset: input_pipeline.Dataset) -> None:
    """Raises UserError where a dataset has too few pictures for FID."""
    if 'fid' in self._metrics and not self._allow_few:
      fid.check_count(len(dataset))

  def measure(
    self, engine: JitEngine, state: TrainState, dataset: input_pipeline.Dataset, *, batch_size: int
  ) -> dict[str, float]:
    """'protocol/metric' of all that the task's `compared` has; `state` as `for_evaluation` leaves it.

    FID and KID are distances between all real pictures and all pictures of a protocol.
    """
    self.check_count(dataset)
    variables = {name: jax.device_put(network.variables, engine.whole) for name, network in self._networks.items()}
    step = _compiled(self._step, engine)
    before: _Weighted | None = None
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    statistics: dict[str, fid.FeatureStatistics] = {}
    kept: dict[str, list[np.ndarray]] = defaultdict(list)
    agreement: dict[str, np.ndarray] = {}
    for batch in input_pipeline.eval_batches(dataset, batch_size=batch_size, process=process_and_count()):
      given = engine.put(batch)
      before = self._nothing_before(engine, state, given) if before is None else before
      found, before = step(state, variables, given, before)
      values, features, asked, weight = on_host(found)
      for name, (of_rows, counted) in values.items():
        sums[name] += float(of_rows[counted > 0].astype(np.float64).sum())
        counts[name] += float(counted.sum())
      for name, of_rows in features.items():
        of_rows = of_rows[weight > 0]
        if 'fid' in self._metrics:
          now = fid.FeatureStatistics.of(of_rows)
          statistics[name] = statistics[name].merge(now) if name in statistics else now
        if 'kid' in self._metrics:
          kept[name].append(of_rows)
      for name, (label, picture) in asked.items():
        found = np.stack(self._parser(list(picture[weight > 0])))
        now = segmentation.count_pairs(label[weight > 0], found, labels.NUM_CLASSES)
        agreement[name] = agreement.get(name, 0) + now
    measured = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    real = statistics.pop('real', None)
    measured |= {f'{name}/fid': fid.frechet_distance(real, of) for name, of in statistics.items()}
    whole = {name: np.concatenate(features) for name, features in kept.items()}
    real = whole.pop('real', None)
    measured |= {f'{name}/kid': kid.kid(real, of).mean for name, of in whole.items()}
    if 'seconds' in self._metrics:
      measured |= _seconds(engine, state, batch)
    for name, confusion in agreement.items():
      figures = segmentation.scores_of(confusion)
      measured |= {f'{name}/{metric}': figures[metric] for metric in ('miou', 'accuracy')}
    return measured

  def _nothing_before(self, engine: JitEngine, state: TrainState, batch: Batch) -> _Weighted:
    """For diversity, what stands before the first picture of each of the task's `sets`: one that does not count."""
    if not any(metric.startswith('diversity') for metric in self._metrics):
      return {}
    sets = jax.eval_shape(functools.partial(_compared, engine), state, batch).sets
    nothing = {name: (jnp.zeros((1, *p.shape[1:]), p.dtype), jnp.zeros(1)) for name, p in sets.items()}
    return jax.device_put(nothing, engine.whole)

  def _step(
    self, engine: JitEngine, state: TrainState, variables: Mapping[str, PyTree], batch: Batch, before: _Weighted
  ) -> tuple[_Found, _Weighted]:
    """What a batch adds, and its last pictures; `before` are those of the batch before, with whether they count."""
    compared, weight = _compared(engine, state, batch), batch['weight']
    of_pairs = {name: weight * compared.has.get(name, 1) for name in compared.pairs}
    if compared.real is None and not compared.pairs:
      told = ', '.join(self._metrics)
      raise UserError(f'this system makes no pictures that {told} could compare; leave out --metrics')
    values, features, asked = {}, {}, {}
    for metric in self._metrics:
      if metric == 'seconds':
        continue
      if metric == 'miou':
        if not compared.asked:
          raise UserError('this system makes no pictures after label maps; leave out the metric miou')
        levels = lambda picture: jnp.round(255 * jnp.clip(picture, 0, 1)).astype(jnp.uint8)
        asked = {name: (label, levels(picture)) for name, (label, picture) in compared.asked.items()}
        continue
      if metric in _BY_EYE:
        values |= {f'{name}/{metric}': (_BY_EYE[metric](*p), of_pairs[name]) for name, p in compared.pairs.items()}
        continue
      network = METRICS[metric]
      apply = functools.partial(self._networks[network].module.apply, variables[network])
      if network == 'inception':
        if not features:  # FID and KID are of the same.
          pictures = {'real': compared.real, **compared.sets}
          features = _over({name: (picture,) for name, picture in pictures.items()}, _in_range(apply))
        continue
      counted = {}
      if metric == 'identity':
        found = _over(compared.persons, _cosine(apply))
      elif metric.startswith('diversity') and not compared.repeats:
        behind = functools.partial(_behind, batch['row'])
        found = _over({name: (p, behind(before[name][0], p)) for name, p in compared.sets.items()}, apply)
        # A difference counts where both pictures do.
        counted = {name: weight * behind(before[name][1], weight) for name in found}
      elif metric.startswith('diversity'):
        found = _over(compared.repeats, apply)
      else:
        found = _over(compared.pairs, apply)
        counted = of_pairs
      values |= {f'{name}/{metric}': (of_rows, counted.get(name, weight)) for name, of_rows in found.items()}
    last = jnp.argmax(batch['row'])[None]
    return (values, features, asked, weight), {name: (compared.sets[name][last], weight[last]) for name in before}


def _behind(row: jax.Array, first: jax.Array, values: jax.Array) -> jax.Array:
  """For each row [B, ...] the one before it in the dataset, for row 0 `first` [1, ...].

  By `row` [B], each one's number: those of several processes lie device by device.
  """
  before = values[jnp.argsort(row)[row - 1]]
  return jnp.where((row == 0).reshape((-1,) + (1,) * (values.ndim - 1)), first, before)


def _parser_for(metrics: Sequence[str], workdir: Path | None) -> Parser | None:
  if 'miou' not in metrics:
    return None
  if workdir is None:
    raise UserError('the metric miou needs a trained face parser: --parser WORKDIR')
  return load_parser(workdir)


def _compared(engine: JitEngine, state: TrainState, batch: Batch) -> Compared:
  with engine.known_mesh():
    return engine.task.compared(state, batch)


def _seconds(engine: JitEngine, state: TrainState, batch: Batch) -> dict[str, float]:
  """'protocol/seconds' that a made picture takes in a batch like this one, in which all protocols are made together."""
  make = _compiled(_sets, engine)
  given = engine.put(batch)
  made = {name: len(pictures) for name, pictures in jax.eval_shape(make, state, given).items()}
  # By their own clocks several processes would make different numbers of calls, and wait for each other: the least.
  seconds = 1.0 if jax.process_count() == 1 else 0.0
  each = time_repeatedly(lambda: make(state, given), seconds=seconds)[0] / max(sum(made.values()), 1)
  return {f'{name}/seconds': each for name in made}


def _sets(engine: JitEngine, state: TrainState, batch: Batch) -> dict[str, jax.Array]:
  return _compared(engine, state, batch).sets


# One run's two programs, which every further draw of references runs again.
@functools.lru_cache(maxsize=2)
def _compiled(function: Callable[..., Any], engine: JitEngine) -> Callable[..., Any]:
  """`function` of the engine and of what the devices hold, for whole results on all of them."""
  return jax.jit(functools.partial(function, engine), out_shardings=engine.whole)


def _over(pictures: Mapping[str, tuple[jax.Array, ...]], measure: Apply) -> dict[str, jax.Array]:
  """`measure` of each entry, one after the other: the network is in the program once, and in memory for one entry."""
  if not pictures:
    return {}
  stacked = [jnp.stack(group) for group in zip(*pictures.values(), strict=True)]
  found = jax.lax.map(lambda group: measure(*group), tuple(stacked))
  return dict(zip(pictures, found, strict=True))


def _in_range(apply: Apply) -> Apply:
  return lambda image: apply(jnp.clip(image, 0, 1))


def _cosine(apply: Apply) -> Apply:
  def similarity(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = apply(2 * a - 1), apply(2 * b - 1)
    return (a * b).sum(-1) / jnp.maximum(jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1), 1e-12)

  return similarity
