"""Evaluation: exact means over a split, whatever its length and the number of devices; tables and comparisons."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from jaxface import figures, input_pipeline
from jaxface.errors import UserError
from jaxface.fields import REFERENCE
from jaxface.folders import check_writable, folder, written_locally
from jaxface.parallel import Engine, check_batch_size
from jaxface.perceptual import Perceptual
from jaxface.processes import check_same, giving_up_together, process_and_count, speaks
from jaxface.published import PUBLISHED
from jaxface.runs import Run, load_run, open_split
from jaxface.state import TrainState, for_evaluation
from jaxface.workdir import read_config, write_atomically

Metrics = dict[str, float]
_COMPARED_EXAMPLES = 8
_RESULTS = 'results.json'

# Runs by name, and what each is measured on.
Opened = Mapping[str, tuple[Run, input_pipeline.Dataset]]


def evaluate_state(
  engine: Engine,
  current: TrainState,
  dataset: input_pipeline.Dataset,
  *,
  batch_size: int,
  limit: int = 0,
  stop: Callable[[], bool] = lambda: False,
) -> Metrics | None:
  """The task's metrics over every example of `dataset` (over the first `limit` batches where given).

  The last batch is filled up and the filling is not counted. Sums are exact: float32 within a batch, float64 over all.
  None where `stop`, which is asked before every batch, says so.
  """
  light = for_evaluation(current)
  sums: dict[str, np.ndarray] = {}
  for batch in input_pipeline.eval_batches(dataset, batch_size=batch_size, process=process_and_count(), limit=limit):
    if stop():
      return None
    host = engine.metrics_on_host(engine.eval_step(light, engine.put(batch)))
    for name, value in host.items():
      sums[name] = sums.get(name, 0) + np.asarray(value, np.float64)
  count = sums.pop('count')
  return engine.task.summary({name: total / count for name, total in sums.items()})


def _mean_and_spread(found: Sequence[Metrics]) -> Metrics:
  """Means over several measurements, and, where there are several, their standard deviations as 'protocol (sd)'."""
  means = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
  if len(found) == 1:
    return means
  spread = {name: float(np.std([one[name] for one in found], ddof=1)) for name in found[0]}
  return means | {'{} (sd)/{}'.format(*name.rsplit('/', 1)): value for name, value in spread.items() if '/' in name}


def table(results: Mapping[str, Metrics]) -> str:
  """A text table: a row for each run and protocol ('protocol/metric' names), then the metrics without protocol."""
  rows: list[tuple[str, str, Metrics]] = []
  for run, metrics in results.items():
    protocols: dict[str, Metrics] = {}
    for name, value in metrics.items():
      protocol, _, metric = name.rpartition('/')
      protocols.setdefault(protocol, {})[metric] = value
    rows += [(run, protocol or '-', values) for protocol, values in protocols.items()]
  blocks = []
  # Protocols that share their metrics share a block, so that like stands under like.
  for columns in dict.fromkeys(tuple(values) for _, _, values in rows):
    members = [row for row in rows if tuple(row[2]) == columns]
    left = max(len(run) for run, _, _ in members)
    middle = max(len('protocol'), *(len(protocol) for _, protocol, _ in members))
    widths = {column: max(10, len(column) + 2) for column in columns}
    lines = [f'{"run":<{left}}  {"protocol":<{middle}}' + ''.join(f'{c:>{width}}' for c, width in widths.items())]
    for run, protocol, values in members:
      numbers = ''.join(f'{values[c]:>{width}.4f}' for c, width in widths.items())
      lines.append(f'{run:<{left}}  {protocol:<{middle}}' + numbers)
    blocks.append('\n'.join(lines))
  return '\n\n'.join(blocks)


def compare(runs: Opened) -> np.ndarray:
  """The papers' comparison figure, uint8 [H, W, 3]: a row for each of some examples, what is given, then each run's.

  Each run sees its own dataset. All processes of a run draw it together.
  """
  columns: dict[str, np.ndarray] = {}
  first = next(iter(runs.values()))[1].fingerprint
  for run, dataset in runs.values():
    # Of other data, what is given stands beside each run's own pictures.
    own = '' if dataset.fingerprint == first else f' ({run.name})'
    rows = -(-_COMPARED_EXAMPLES // run.engine.device_count) * run.engine.device_count
    batch = next(input_pipeline.eval_batches(dataset, batch_size=rows, process=process_and_count(), limit=1))
    shown = run.engine.render(run.state, run.engine.put(batch))
    real = min(rows, len(dataset))
    task = run.engine.task
    for name in task.given:
      columns.setdefault(name + own, shown[name][:real])
    columns[run.name] = next(shown[name] for name in task.comparison if name in shown)[:real]
    if 'true' in shown:
      # The last column, whatever run comes next.
      columns['true' + own] = columns.pop('true' + own, shown['true'][:real])
  side = max(pictures.shape[1] for pictures in columns.values())
  enlarged = {name: _enlarged(pictures, side) for name, pictures in columns.items()}
  return figures.titled_columns(enlarged, max_rows=_COMPARED_EXAMPLES)


def _enlarged(pictures: np.ndarray, side: int) -> np.ndarray:
  """Square pictures [N, H, H, C] at [N, side, side, C]."""
  if pictures.shape[1] == side:
    return pictures
  return np.asarray(jax.image.resize(pictures, (len(pictures), side, side, pictures.shape[-1]), 'linear'))


def joint_protocol(runs: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
  """What the figures of all runs leave open, by what it is; where runs differ, each one's by 'what (run)'."""
  told: dict[str, str] = {}
  for what in dict.fromkeys(what for protocol in runs.values() for what in protocol):
    texts = {run: protocol[what] for run, protocol in runs.items() if what in protocol}
    one = len(texts) == len(runs) and len(set(map(str, texts.values()))) == 1
    told |= {what: next(iter(texts.values()))} if one else {f'{what} ({run})': text for run, text in texts.items()}
  return told


def _open(run: Run, split: str, draw: int | None) -> input_pipeline.Dataset:
  with giving_up_together():
    dataset = open_split(run.config, run.engine, split, draw=draw)
  check_same('dataset', {split: dataset.fingerprint})
  return dataset


def _open_all(runs: Sequence[Run], split: str, draws: int) -> Opened:
  """Every run with its first dataset; UserError for what cannot be measured."""
  seen = {}
  for run in runs:
    check_batch_size(run.config.batch_size, run.engine.device_count)
    if draws and not any(field.startswith(REFERENCE) for field in run.engine.task.batch_fields):
      raise UserError(f'{run.name} takes no references, of which there could be several draws; leave out --draws')
    seen[run.name] = run, _open(run, split, 0 if draws else None)
  return seen


def evaluate_runs(
  workdirs: Sequence[Path],
  *,
  split: str = 'test',
  checkpoint: str = 'best',
  data: str | None = None,
  data_dir: Path | None = None,
  batch_size: int | None = None,
  out: Path | None = None,
  metrics: Sequence[str] = (),
  draws: int = 0,
  allow_few: bool = False,
  weights_dir: Path | None = None,
  parser: Path | None = None,
) -> dict[str, Metrics]:
  """Measures runs on one split; prints a table and writes results.json and comparison.png into `out`.

  With several processes each reads its share; process 0 prints and writes.

  `metrics` names what to add, see `jaxface.perceptual.METRICS`; most need networks of the user's download, 'miou' the
  workdir of a face `parser`. With `draws` every picture is given so many references, drawn at random, and the figures
  are the means over the draws; the table then has their standard deviations, too.
  """
  if draws < 0:
    raise UserError(f'draws={draws}: give how many random references for each picture, or 0 for those of the data')
  perceptual = Perceptual(metrics, allow_few=allow_few, weights_dir=weights_dir, parser=parser)
  with giving_up_together():
    for workdir in workdirs:
      read_config(workdir)
  runs = [load_run(workdir, checkpoint) for workdir in workdirs]
  if len({run.name for run in runs}) < len(runs):
    raise UserError('two workdirs have the same name; a table could not tell them apart')
  for run in runs:
    if data is not None:
      run.config.data.name = data
    if data_dir is not None:
      run.config.data.data_dir = str(data_dir)
    if batch_size is not None:
      run.config.batch_size = batch_size
  # What can be wrong is found before anything is measured.
  seen = _open_all(runs, split, draws)
  for _, dataset in seen.values():
    perceptual.check_count(dataset)
  out = folder(out or folder(workdirs[0]) / 'evaluation')
  with giving_up_together():
    if speaks():
      check_writable(out / _RESULTS)
  results: dict[str, Metrics] = {}
  for run, dataset in seen.values():
    found = []
    for draw in range(draws) if draws else (None,):
      if draw:
        dataset = _open(run, split, draw)
      found.append(evaluate_state(run.engine, run.state, dataset, batch_size=run.config.batch_size))
      if metrics:
        added = perceptual.measure(run.engine, run.state, dataset, batch_size=run.config.batch_size)
        # What a system measures by itself it measures in its own way, which its protocol says.
        found[-1] |= {name: value for name, value in added.items() if name not in found[-1]}
    results[run.name] = _mean_and_spread(found)
  protocols = {
    name: {'dataset': dataset.fingerprint, 'examples': len(dataset)} | perceptual.protocol | run.engine.task.protocol
    for name, (run, dataset) in seen.items()
  }
  protocol = {
    **({'references': f'{draws} draws; mean and standard deviation over them'} if draws else {}),
    'checkpoints': {run.name: run.step for run in runs},
    **joint_protocol(protocols),
  }
  published = {run.config.task: PUBLISHED[run.config.task] for run in runs if run.config.task in PUBLISHED}
  if speaks():
    print('\n'.join(f'{name}: {value}' for name, value in protocol.items()))
    print('\n' + table(results))
    for told in published.values():
      print(f'\npublished: {told}')
    report = {'protocol': protocol, 'results': results, 'published': published}
    write_atomically(out / _RESULTS, json.dumps(report, indent=2))
  comparison = compare(seen)
  if speaks():
    with written_locally(out / 'comparison.png') as file:
      figures.save_png(file, comparison)
    print(f'\nwritten: {out / _RESULTS}, {out / "comparison.png"}')
  return results
