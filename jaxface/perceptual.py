"""Evaluation by networks that know pictures: LPIPS and FID of whatever pictures a task makes, protocol by protocol."""

import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import input_pipeline, weights
from jaxface.errors import UserError
from jaxface.metrics import fid
from jaxface.parallel import JitEngine
from jaxface.state import TrainState

METRICS = ('lpips-alex', 'lpips-vgg', 'lpips-squeeze', 'fid')


class Perceptual:
  """The networks of some of `METRICS`, loaded; `measure` uses them.

  Attributes:
    protocol: what the names leave open, and the networks by the hashes of their files.
  """

  def __init__(self, metrics: Sequence[str], *, allow_few: bool = False, weights_dir: Path | None = None):
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
      raise UserError(f'unknown metric {unknown[0]!r}; evaluation can add {", ".join(METRICS)}')
    names = {metric: 'inception' if metric == 'fid' else metric for metric in metrics}
    self._networks = {metric: weights.load(name, weights_dir) for metric, name in names.items()}
    self._allow_few = allow_few
    self.protocol = {
      metric: ('299x299 bilinear without antialiasing; ' if metric == 'fid' else 'v0.1; ') + str(network)
      for metric, network in self._networks.items()
    }

  def measure(
    self, engine: JitEngine, state: TrainState, dataset: input_pipeline.Dataset, *, batch_size: int
  ) -> dict[str, float]:
    """'protocol/metric' of every protocol in the task's `pairs`; `state` as `for_evaluation` leaves it.

    FID is the distance between all originals and all pictures of a protocol.
    """
    if 'fid' in self._networks and len(dataset) < fid.LEAST_PICTURES and not self._allow_few:
      raise UserError(
        f'FID of {len(dataset):,} pictures says more about their number than about them; '
        f'take {fid.LEAST_PICTURES:,} or more, or say --allow-few'
      )
    variables = {metric: jax.device_put(network.variables, engine.whole) for metric, network in self._networks.items()}
    step = jax.jit(functools.partial(self._step, engine.task), out_shardings=engine.whole)
    sums: dict[str, float] = {}
    statistics: dict[str, fid.FeatureStatistics] = {}
    process = (jax.process_index(), jax.process_count())
    for batch in input_pipeline.eval_batches(dataset, batch_size=batch_size, process=process):
      distances, features, weight = jax.device_get(step(state, variables, engine.put(batch)))
      real = weight > 0
      for name, values in distances.items():
        sums[name] = sums.get(name, 0.0) + float(values[real].astype(np.float64).sum())
      for name, values in features.items():
        statistics[name] = (
          statistics[name].update(values[real]) if name in statistics else fid.FeatureStatistics.of(values[real])
        )
    measured = {name: total / len(dataset) for name, total in sums.items()}
    original = statistics.pop('original', None)
    return measured | {f'{name}/fid': fid.frechet_distance(original, of) for name, of in statistics.items()}

  def _step(self, task, state, variables, batch):
    pairs = task.pairs(state, batch)
    if not pairs:
      raise UserError(
        f'this system makes no pictures that {", ".join(self._networks)} could compare; leave out --metrics'
      )
    distances = {
      f'{protocol}/{metric}': network.module.apply(variables[metric], *pair)
      for protocol, pair in pairs.items()
      for metric, network in self._networks.items()
      if metric != 'fid'
    }
    features = {}
    if 'fid' in self._networks:
      pictures = {'original': next(iter(pairs.values()))[0], **{name: picture for name, (_, picture) in pairs.items()}}
      inception = self._networks['fid'].module
      features = {name: inception.apply(variables['fid'], jnp.clip(p, 0, 1)) for name, p in pictures.items()}
    return distances, features, batch['weight']
