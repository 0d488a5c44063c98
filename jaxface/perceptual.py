"""Evaluation by networks that know pictures: LPIPS, FID, diversity and identity of whatever pictures a task makes."""

import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import input_pipeline, weights
from jaxface.errors import UserError
from jaxface.metrics import fid
from jaxface.parallel import JitEngine
from jaxface.state import PyTree, TrainState
from jaxface.tasks.task import Batch

# Metric -> the network that it measures with.
METRICS = {
  'lpips-alex': 'lpips-alex',
  'lpips-vgg': 'lpips-vgg',
  'lpips-squeeze': 'lpips-squeeze',
  'fid': 'inception',
  'diversity-alex': 'lpips-alex',
  'identity': 'resnet50_face',
}

_TOLD = {
  'lpips': 'v0.1',
  'fid': fid.PREPARATION,
  'diversity': 'LPIPS v0.1 of a picture and its neighbour in a batch, mean',
  'identity': 'cosine of face features, averaged over all positions',
}

Apply = Callable[..., jax.Array]


class Perceptual:
  """The networks of some of `METRICS`, loaded; `measure` uses them.

  Attributes:
    protocol: what the names leave open, and the networks by the hashes of their files.
  """

  def __init__(self, metrics: Sequence[str], *, allow_few: bool = False, weights_dir: Path | None = None):
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
      raise UserError(f'unknown metric {unknown[0]!r}; evaluation can add {", ".join(METRICS)}')
    self._metrics = tuple(metrics)
    needed = dict.fromkeys(METRICS[name] for name in metrics)
    self._networks = {name: weights.load(name, weights_dir) for name in needed}
    self._allow_few = allow_few
    self.protocol = {
      name: f'{_TOLD[name.partition("-")[0]]}; {self._networks[METRICS[name]]}' for name in self._metrics
    }

  def measure(
    self, engine: JitEngine, state: TrainState, dataset: input_pipeline.Dataset, *, batch_size: int
  ) -> dict[str, float]:
    """'protocol/metric' of all that the task's `compared` has; `state` as `for_evaluation` leaves it.

    FID is the distance between all real pictures and all pictures of a protocol.
    """
    if 'fid' in self._metrics and not self._allow_few:
      fid.check_count(len(dataset))
    variables = {name: jax.device_put(network.variables, engine.whole) for name, network in self._networks.items()}
    step = jax.jit(functools.partial(self._step, engine.task), out_shardings=engine.whole)
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, float] = defaultdict(float)
    statistics: dict[str, fid.FeatureStatistics] = {}
    process = (jax.process_index(), jax.process_count())
    for batch in input_pipeline.eval_batches(dataset, batch_size=batch_size, process=process):
      values, features, weight = jax.device_get(step(state, variables, engine.put(batch)))
      for name, of_rows in values.items():
        # A neighbour's difference counts where both rows are real.
        real = weight * np.roll(weight, 1) if 'diversity' in name else weight
        sums[name] += float(of_rows[real > 0].astype(np.float64).sum())
        counts[name] += float(real.sum())
      for name, of_rows in features.items():
        now = fid.FeatureStatistics.of(of_rows[weight > 0])
        statistics[name] = statistics[name].merge(now) if name in statistics else now
    measured = {name: total / counts[name] for name, total in sums.items() if counts[name]}
    real = statistics.pop('real', None)
    return measured | {f'{name}/fid': fid.frechet_distance(real, of) for name, of in statistics.items()}

  def _step(
    self, task, state: TrainState, variables: Mapping[str, PyTree], batch: Batch
  ) -> tuple[dict[str, jax.Array], dict[str, jax.Array], jax.Array]:
    """Values per row by 'protocol/metric', features for FID by protocol, and the rows' weights."""
    compared = task.compared(state, batch)
    if compared.real is None and not compared.pairs:
      told = ', '.join(self._metrics)
      raise UserError(f'this system makes no pictures that {told} could compare; leave out --metrics')
    values, features = {}, {}
    for metric in self._metrics:
      network = METRICS[metric]
      apply = functools.partial(self._networks[network].module.apply, variables[network])
      if metric == 'fid':
        pictures = {'real': compared.real, **compared.sets}
        features = _over({name: (picture,) for name, picture in pictures.items()}, _in_range(apply))
        continue
      if metric == 'identity':
        found = _over(compared.persons, _cosine(apply))
      elif metric.startswith('diversity'):
        found = _over({name: (p, jnp.roll(p, 1, axis=0)) for name, p in compared.sets.items()}, apply)
      else:
        found = _over(compared.pairs, apply)
      values |= {f'{protocol}/{metric}': of_rows for protocol, of_rows in found.items()}
    return values, features, batch['weight']


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
