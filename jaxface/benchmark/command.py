"""`jaxface benchmark`: throughput, measured part by part; traces; the rates beside those of an earlier run.

Every row says what is timed. Compilation is left out and given by itself; the clock stops when the results are there.
"""

import copy
import dataclasses
import functools
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxface.benchmark import in_use
from jaxface.benchmark.compare import LAYOUT, check_slow_down, compare, read_report
from jaxface.benchmark.diffusion import Subject, denoise_rows, draw_rows
from jaxface.benchmark.meter import Meter, Row
from jaxface.benchmark.operations import conv_row, ssim_row
from jaxface.benchmark.training import evaluate_row, loader_row, make_engine, train_row
from jaxface.errors import UserError, check_at_least
from jaxface.folders import check_writable
from jaxface.input_pipeline import Dataset
from jaxface.runs import open_split
from jaxface.speed import for_speed, never_trained
from jaxface.workdir import environment, write_atomically

_DIFFUSIONS = ('scadm', 'sdm')
_MAKEUP = ('ipmnet', 'beautygan')
# Parts, and the tasks that have them; () for all.
PARTS = {
  'ssim': (),
  'conv': (),
  'loader': (),
  'train': (),
  'evaluate': (),
  'resident': (),
  'pmap': (),
  'reconstruct': ('vae', 'autoencoder'),
  'sample': ('vae',),
  'parse': ('parsing',),
  'transfer': _MAKEUP,
  'denoise': _DIFFUSIONS,
  'draw': _DIFFUSIONS,
}
# Measured without being asked for only with the task that lives on them.
_OPERATIONS = {'ssim': 'vae', 'conv': 'vae'}
_NEED_DATA = ('loader', 'resident')
_USES = {
  ('vae', 'reconstruct'): in_use.vae_reconstruct,
  ('vae', 'sample'): in_use.vae_sample,
  ('autoencoder', 'reconstruct'): in_use.autoencoder_reconstruct,
  ('parsing', 'parse'): in_use.network_parse,
  **{(task, 'transfer'): in_use.makeup_transfer for task in _MAKEUP},
}
# Pictures at once on a device: how long one takes, and how many a second.
_BATCHES = (1, 8)

# What makes rows of one kind, to be called with a meter.
Measure = Callable[[Meter], Iterable[Row]]


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is measured: some parts of one system on all devices here."""

  config: ConfigDict
  parts: Sequence[str]
  dataset: Dataset | None

  def __iter__(self) -> Iterator[tuple[str, Measure]]:
    """Each kind of row by the part it belongs to; one may fail alone."""
    one = lambda make: lambda meter: [make(meter)]
    if 'ssim' in self.parts:
      yield 'ssim', one(ssim_row)
    if 'conv' in self.parts:
      yield 'conv', one(conv_row)
    if 'loader' in self.parts:
      yield 'loader', one(lambda meter: loader_row(meter, self.config, self.dataset))
    # A CPU has no bfloat16 units; there its rows would only measure conversions.
    for dtype in [self.config.model.dtype] if jax.default_backend() == 'cpu' else ['float32', 'bfloat16']:
      config = copy.deepcopy(self.config)
      config.model.dtype = dtype
      for part, make in self._steps(config):
        yield part, one(make)
      yield from self._uses(config)

  def _steps(self, config: ConfigDict) -> Iterator[tuple[str, Callable[[Meter], Row]]]:
    devices = self._spread_over(config)
    train = lambda devices, **ways: lambda meter: train_row(meter, config, devices, dataset=self.dataset, **ways)
    if 'train' in self.parts:
      yield 'train', train(devices[:1])
      if len(devices) > 1:
        yield 'train', train(devices)
    if 'pmap' in self.parts and len(devices) == len(jax.devices()):
      yield 'pmap', train(devices, mode='pmap')
    if {'loader', 'train'} <= set(self.parts):
      yield 'train', train(devices, feed='loader')
    if 'resident' in self.parts:
      yield 'resident', train(devices, feed='resident')
    if 'evaluate' in self.parts:
      yield 'evaluate', lambda meter: evaluate_row(meter, config, devices)

  def _spread_over(self, config: ConfigDict) -> Sequence[jax.Device]:
    """All devices, or one where a batch cannot be cut over all, as a published batch of one cannot."""
    devices, pieces = jax.devices(), len(jax.devices()) * config.accumulate_steps
    if config.batch_size % pieces == 0:
      return devices
    print(f'left out: steps on all devices (batch_size={config.batch_size} does not divide over {pieces} parts)')
    return devices[:1]

  def _uses(self, config: ConfigDict) -> Iterator[tuple[str, Measure]]:
    for devices, rows in _groups():
      for part in self.parts:
        uses = _USES.get((config.task, part))
        if uses is not None:
          yield part, functools.partial(in_use.use_rows, config=config, uses=uses, devices=devices, rows=rows)
    if 'parse' in self.parts:
      yield 'parse', functools.partial(in_use.parse_rows, config=config)
    # Two programs of a published network are minutes of a CPU.
    for devices, rows in _groups()[:1] if jax.default_backend() == 'cpu' else _groups():
      # Made once, where it is first needed: a CPU takes minutes.
      subject = functools.cache(functools.partial(Subject, config, devices, rows))
      for part, measure in (('denoise', denoise_rows), ('draw', draw_rows)):
        if part in self.parts:
          yield part, functools.partial(measure, subject=subject)


def _groups() -> list[tuple[Sequence[jax.Device], int]]:
  """Devices and pictures at once: one device with each of `_BATCHES`, and all there are with the largest a device."""
  devices = jax.devices()
  groups = [(devices[:1], rows) for rows in _BATCHES]
  return groups if len(devices) == 1 else [*groups, (devices, _BATCHES[-1] * len(devices))]


def _check_parts(task: str, only: Sequence[str] | None) -> Sequence[str]:
  possible = [part for part, tasks in PARTS.items() if not tasks or task in tasks]
  for part in only or ():
    if part not in PARTS:
      raise UserError(f'unknown part {part!r}; choose from {", ".join(PARTS)}')
    if part not in possible:
      tasks = ' or '.join(PARTS[part])
      raise UserError(f'the part {part!r} needs --config of an experiment of task {tasks}; this is {task}')
  return only or [part for part in possible if _OPERATIONS.get(part, task) == task]


def _open(config: ConfigDict, parts: Sequence[str], *, asked: bool) -> tuple[Sequence[str], Dataset | None]:
  """The parts that can be measured, and the data; without it, those that need it are left out, unless asked for."""
  if not set(_NEED_DATA) & set(parts):
    return parts, None
  try:
    return parts, open_split(config, make_engine(config, jax.devices()[:1]), config.data.train_split)
  except UserError as error:
    if asked:
      raise
    print(f'left out: {", ".join(_NEED_DATA)} ({error})')
    return [part for part in parts if part not in _NEED_DATA], None


def _measure(plan: _Plan, meter: Meter) -> tuple[list[Row], list[str]]:
  """The rows, and the parts that a row of is missing, since the device has not the memory."""
  rows, without_memory = [], []
  for part, measure in plan:
    try:
      for row in measure(meter):
        _say(row)
        rows.append({'part': part, **row})
    except jax.errors.JaxRuntimeError as error:
      if 'RESOURCE_EXHAUSTED' not in str(error):
        raise
      print(f'- {part}: left out, or what is left of it: the device has not the memory', flush=True)
      without_memory.append(part)
  return rows, sorted(set(without_memory))


def _say(row: Row) -> None:
  print(f'- {row["timed"]}')
  shown = []
  for name, value in row.items():
    if isinstance(value, int | float):
      shown.append(f'{name} {value:.4g}')
    elif name.endswith('seconds_per_call'):
      shown.append(f'{name} {value["median"]:.4g} ({value["p10"]:.4g} to {value["p90"]:.4g})')
    elif name == 'share_of_peak' and row.get('model_tflop', row.get('model_tflop_per_step')) is not None:
      shown.append("share of peak unknown (this device's peak is not listed)")
    elif name == 'share_of_peak':
      shown.append('share of peak unknown (the work cannot be counted beforehand)')
  print('  ' + ', '.join(shown), flush=True)


def _processor() -> str:
  try:
    lines = Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.processor())


def _report(config: ConfigDict, rows: Sequence[Row], without_memory: Sequence[str]) -> dict[str, Any]:
  # Where it ran on whose machine is not part of a result.
  config = config.copy_and_resolve_references()
  config.data.data_dir = ''
  about = {name: value for name, value in environment().items() if name not in ('command', 'platform')}
  return {
    'layout': LAYOUT,
    'environment': {**about, 'processor': _processor(), 'cpu_cores': os.cpu_count()},
    'config': config.to_dict(),
    'rows': rows,
    'without_memory': without_memory,
  }


def benchmark(
  config: ConfigDict,
  *,
  only: Sequence[str] | None = None,
  out: Path | None = None,
  seconds: float = 10.0,
  profile: Path | None = None,
  against: Path | None = None,
  slow_down: float = 0.1,
) -> bool:
  """Measures a system and prints row after row; returns whether nothing is slower than allowed, or lacks memory now.

  Args:
    config: of an experiment; networks that only need be as large as the published ones are not loaded, see `for_speed`.
    only: parts, keys of `PARTS`; default all that the task has and lives on, without those whose data is not there.
    out: JSON file to write.
    seconds: about how long to time each row.
    profile: folder for a trace of some calls of every row, a folder a row.
    against: what an earlier run has written as `out`, to compare with.
    slow_down: share of its earlier rate that a row may have lost.
  """
  check_slow_down(slow_down)
  check_at_least(1, config, 'batch_size', 'steps_per_dispatch', 'accumulate_steps')
  if not seconds > 0:
    raise UserError(f'--seconds {seconds:g}: give more than 0')
  if out is not None:
    check_writable(out)
  if profile is not None:
    check_writable(profile, '--profile', of_files=True)
  earlier = None if against is None else read_report(against)
  parts = _check_parts(config.task, only)
  config = for_speed(config)
  device = jax.devices()[0]
  print(
    f'{len(jax.devices())} x {device.device_kind} ({jax.default_backend()}), jax {jax.__version__}; '
    'compilation is not timed'
  )
  if untrained := never_trained(config):
    print(f'never trained: {", ".join(untrained)}')
  parts, dataset = _open(config, parts, asked=only is not None)
  measured = _measure(_Plan(config, parts, dataset), Meter(seconds, profile))
  if profile is not None:
    print(f'traces, one a row, in {profile}: install xprof, say `xprof --logdir {profile}`; or open a')
    print('  trace.json.gz of it in ui.perfetto.dev')
  # As it is read again: JSON has no tuples.
  report = json.loads(json.dumps(_report(config, *measured)))
  if out is not None:
    write_atomically(out, json.dumps(report, indent=2) + '\n')
    print(f'written: {out}')
  if earlier is None:
    return True
  comparison = compare(report, earlier, slow_down=slow_down)
  print(f'\nbeside {against}:\n{comparison.text}')
  if not comparison.matched and not comparison.slower:
    raise UserError(f'--compare {against} has none of the rows that were measured; measure the same parts')
  return not comparison.slower
