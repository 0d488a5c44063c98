"""Throughput, measured: train steps by way of compiling, precision and feed; evaluation; the loader; a system in use.

Every row says what is timed. Compilation is left out and given by itself; the clock stops when the results are there.
"""

import copy
import functools
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import dm_pix as pix
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxface import input_pipeline, labels
from jaxface.augment import to_signed
from jaxface.benchmark_diffusion import denoise_row, draw_row, gradient_row
from jaxface.conv import conv3x3
from jaxface.errors import UserError
from jaxface.parallel import Engine, JitEngine, PmapEngine, check_batch_size, make_mesh
from jaxface.parse import parse
from jaxface.parsing import Parser
from jaxface.pictures import write_picture
from jaxface.runs import open_split
from jaxface.ssim import ssim
from jaxface.state import TrainState, for_evaluation
from jaxface.tasks import make_task
from jaxface.tasks.task import Batch
from jaxface.timing import cost, share_of_peak, time_in_turn, time_repeatedly
from jaxface.workdir import environment, write_atomically

Row = dict[str, Any]
PARTS = ('ssim', 'conv', 'loader', 'train', 'evaluate', 'resident', 'pmap', 'parse', 'transfer', 'denoise', 'draw')
# Parts that only some tasks have.
_DIFFUSIONS = ('scadm', 'sdm')
_SPECIAL = {
  'parse': ('parsing',),
  'transfer': ('ipmnet', 'beautygan'),
  'denoise': _DIFFUSIONS,
  'draw': _DIFFUSIONS,
}
_USE_BATCHES = (1, 8)


def _random_batch(config: ConfigDict, engine: Engine, rows: int) -> input_pipeline.NumpyBatch:
  size, rng = config.model.image_size, np.random.default_rng(0)
  # Kind of field -> (levels, planes).
  kinds = {'image': (256, (3,)), 'label': (labels.NUM_CLASSES, ()), 'mask': (256, (1,))}
  batch = {}
  for field in (*engine.task.batch_fields, *engine.task.optional_fields):
    levels, planes = kinds[field.rpartition('_')[-1]]
    batch[field] = rng.integers(0, levels, (rows, size, size, *planes), np.uint8)
  return {**batch, 'row': np.arange(rows, dtype=np.int32), 'weight': np.ones(rows, np.float32)}


def _engine(config: ConfigDict, mode: str, devices: Sequence[jax.Device]) -> Engine:
  kind = PmapEngine if mode == 'pmap' else JitEngine
  mesh = make_mesh(1 if mode == 'pmap' else config.parallel.fsdp, devices)
  return kind(make_task(config, kind.axis_name), seed=config.seed, mesh=mesh)


def _train_row(config: ConfigDict, mode: str, devices: Sequence[jax.Device], feed: str, seconds: float) -> Row:
  """One way of compiling, one feed: a fixed batch ('none'), the loader, or the device-resident set."""
  engine = _engine(config, mode, devices)
  check_batch_size(config.batch_size, engine.device_count * config.accumulate_steps)
  steps = config.steps_per_dispatch
  state = engine.init()
  stream: Iterator[input_pipeline.NumpyBatch] | None = None
  if feed == 'none':
    batch = _random_batch(config, engine, config.batch_size)
    del batch['weight']
    fixed = engine.put_stacked([batch] * steps)
    next_batch = lambda: fixed
  else:
    dataset = open_split(config, engine, config.data.train_split)
    options = {'batch_size': config.batch_size, 'seed': config.seed, 'next_batch': 0, 'process': (0, 1)}
    if feed == 'resident':
      engine.put_dataset(input_pipeline.load_whole(dataset))
      stream = input_pipeline.ResidentBatches(dataset, **options)
    else:
      stream = input_pipeline.TrainBatches(dataset, workers=config.data.workers, **options)
    next_batch = lambda: engine.put_stacked([next(stream) for _ in range(steps)])

  began = time.perf_counter()
  compiled = engine.train_step.lower(state, next_batch(), engine.dataset).compile()
  compile_seconds = time.perf_counter() - began
  holder = [state]

  def dispatch() -> Any:
    holder[0], metrics = compiled(holder[0], next_batch(), engine.dataset)
    return metrics

  per_dispatch, calls = time_repeatedly(dispatch, seconds)
  rate = steps / per_dispatch
  found = cost(compiled, engine.device_count)
  per_device = found['model_tflop'] * 1e12 / per_dispatch / engine.device_count
  return {
    'timed': f'train step, {_ways(mode, engine.device_count)}, {config.model.dtype}, data: {feed}',
    'batch_size': config.batch_size,
    'devices': engine.device_count,
    'steps_per_second': rate,
    'images_per_second': rate * config.batch_size,
    'images_per_second_per_device': rate * config.batch_size / engine.device_count,
    'model_tflop_per_step': found['model_tflop'] / steps,
    'share_of_peak': share_of_peak(per_device, config.model.dtype),
    'memory_gib_per_device': found.get('memory_gib_per_device'),
    'compile_seconds': compile_seconds,
    'steps_timed': calls * steps,
  }


def _ways(mode: str, devices: int) -> str:
  return f'{mode} on {devices} device{"s" if devices > 1 else ""}'


def _evaluate_row(config: ConfigDict, devices: Sequence[jax.Device], seconds: float) -> Row:
  engine = _engine(config, 'jit', devices)
  light = for_evaluation(engine.init())
  batch = engine.put(_random_batch(config, engine, config.batch_size))
  began = time.perf_counter()
  compiled = engine.eval_step.lower(light, batch).compile()
  compile_seconds = time.perf_counter() - began
  per_call, calls = time_repeatedly(lambda: compiled(light, batch), seconds)
  rate = config.batch_size / per_call
  return {
    'timed': f'evaluation step with all metrics, {_ways("jit", engine.device_count)}, {config.model.dtype}',
    'batch_size': config.batch_size,
    'devices': engine.device_count,
    'images_per_second': rate,
    'images_per_second_per_device': rate / engine.device_count,
    'compile_seconds': compile_seconds,
    'steps_timed': calls,
  }


def _loader_row(config: ConfigDict, seconds: float) -> Row:
  engine = _engine(config, 'jit', jax.devices()[:1])
  dataset = open_split(config, engine, config.data.train_split)
  workers = input_pipeline.default_workers() if config.data.workers < 0 else config.data.workers
  stream = input_pipeline.TrainBatches(
    dataset, batch_size=config.batch_size, seed=0, next_batch=0, process=(0, 1), workers=workers
  )
  per_batch, calls = time_repeatedly(lambda: next(stream)['row'], seconds)
  return {
    'timed': f'loader alone: read, decode, resize, batch; {workers} worker processes; nothing goes to a device',
    'batch_size': config.batch_size,
    'images_per_second': config.batch_size / per_batch,
    'cpu_cores': os.cpu_count(),
    'steps_timed': calls,
  }


def _ssim_row(seconds: float) -> Row:
  shape, window = (32, 144, 144, 3), 9
  a, b = (jax.random.uniform(jax.random.key(i), shape) for i in range(2))

  def gradient(measure: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[], Any]:
    jitted = jax.jit(jax.value_and_grad(lambda b, a: measure(a, b).mean()))
    return lambda: jitted(b, a)

  ours, theirs = time_in_turn(
    gradient(functools.partial(ssim, filter_size=window)),
    gradient(functools.partial(pix.ssim, filter_size=window)),
    seconds,
  )
  return {
    'timed': f'SSIM, value and gradient, {"x".join(map(str, shape))}, window {window}; in turn with dm_pix.ssim',
    'milliseconds': ours * 1e3,
    'dm_pix_milliseconds': theirs * 1e3,
    'times_as_fast_as_dm_pix': theirs / ours,
  }


def _conv_row(seconds: float) -> Row:
  shape, channels = (16, 144, 144, 32), 32
  x = jax.random.normal(jax.random.key(0), shape)
  kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], channels)) * 0.05

  def gradients(convolve: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[], Any]:
    jitted = jax.jit(jax.grad(lambda x, kernel: jnp.square(convolve(x, kernel)).mean(), argnums=(0, 1)))
    return lambda: jitted(x, kernel)

  def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  ours, theirs = time_in_turn(gradients(conv3x3), gradients(plain), seconds)
  return {
    'timed': f'3x3 convolution and both gradients, {"x".join(map(str, shape))} to {channels} channels; '
    'in turn with lax.conv_general_dilated',
    'milliseconds': ours * 1e3,
    'lax_milliseconds': theirs * 1e3,
    'times_as_fast_as_lax': theirs / ours,
  }


def _parse_rows(config: ConfigDict, seconds: float) -> Iterator[Row]:
  """The face parser in use, with random weights: the network with its label maps, and from JPEGs to PNGs."""
  engine = _engine(config, 'jit', jax.devices()[:1])
  state = engine.init()
  variables = {'params': state.params, 'batch_stats': state.model_state}
  size = config.model.image_size
  parser = Parser(engine.task.model, variables, image_size=size, label_order=config.model.label_order)
  count = max(16, 4 * parser.batch_size)
  # Smooth as photos are, so that files have a photo's size.
  coarse = np.random.default_rng(0).integers(0, 256, (count, size // 16, size // 16, 3), np.uint8)
  images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]
  per_call, calls = time_repeatedly(lambda: parser.parse_shrunk(images, [(size, size)] * count), seconds)

  def row(what: str, per_call: float, calls: int) -> Row:
    return {
      'timed': f'parsing, {size}x{size}, {config.model.dtype}: {what}',
      'batch_size': parser.batch_size,
      'devices': jax.local_device_count(),
      'cpu_cores': os.cpu_count(),
      'images_per_second': count / per_call,
      'images_timed': calls * count,
    }

  yield row('pictures to the devices, network, label maps back; no files', per_call, calls)
  with tempfile.TemporaryDirectory() as folder:
    for i, image in enumerate(images):
      write_picture(Path(folder, 'photos', f'{i}.jpg'), image)
    photos, out = Path(folder, 'photos'), Path(folder, 'parsed')
    per_call, calls = time_repeatedly(lambda: parse(parser, [photos], out, quiet=True).parsed, seconds)
  yield row('JPEGs read and decoded, label maps written as PNGs', per_call, calls)


def _transfer_rows(config: ConfigDict, seconds: float) -> Iterator[Row]:
  """Makeup transfer in use, random weights, one device: the networks alone, and from pictures and label maps."""
  engine = _engine(config, 'jit', jax.devices()[:1])
  task, state = engine.task, for_evaluation(engine.init())
  size = config.augment.crop_size

  def from_pictures(state: TrainState, batch: Batch) -> jax.Array:
    reference = task.faces(batch['reference_image'], batch['reference_label'], made_up=True)
    return task.wear(state, task.faces(batch['image'], batch['label'], made_up=False), task.code(state, reference))

  for rows in _USE_BATCHES:
    batch = {name: jnp.asarray(value) for name, value in _random_batch(config, engine, rows).items()}
    target, reference = jax.jit(
      lambda batch: (
        task.faces(batch['image'], batch['label'], made_up=False),
        task.faces(batch['reference_image'], batch['reference_label'], made_up=True),
      )
    )(batch)
    code = jax.jit(task.code)(state, reference)
    ways = {
      'networks; the reference encoded before': (jax.jit(task.wear), (state, target, code)),
      'networks; the reference encoded, too': (
        jax.jit(lambda state, target, reference: task.wear(state, target, task.code(state, reference))),
        (state, target, reference),
      ),
      'pictures and label maps prepared, networks': (jax.jit(from_pictures), (state, batch)),
    }
    for what, (function, arguments) in ways.items():
      began = time.perf_counter()
      compiled = function.lower(*arguments).compile()
      compile_seconds = time.perf_counter() - began
      per_call, calls = time_repeatedly(lambda call=compiled, given=arguments: call(*given), seconds)
      yield {
        'timed': f'makeup transfer, {size}x{size}, {config.model.dtype}: {what}',
        'batch_size': rows,
        'devices': 1,
        'images_per_second': rows / per_call,
        'milliseconds_per_image': per_call / rows * 1e3,
        'model_tflop': cost(compiled, 1)['model_tflop'],
        'compile_seconds': compile_seconds,
        'steps_timed': calls,
      }


def _diffusion_rows(config: ConfigDict, parts: Sequence[str], seconds: float) -> Iterator[Row]:
  """A diffusion in use, random weights, one device."""
  engine = _engine(config, 'jit', jax.devices()[:1])
  state = for_evaluation(engine.init())
  # Two programs of a published network are minutes of a CPU.
  for rows in _USE_BATCHES if jax.default_backend() != 'cpu' else _USE_BATCHES[:1]:
    batch = _random_batch(config, engine, rows)
    modes = jax.jit(lambda state, image, label: engine.task.modes(state, to_signed(image), label.astype(jnp.int32)))
    given = next(iter(modes(state, batch['image'], batch['label']).values()))
    found = []
    if 'denoise' in parts:
      found += [denoise_row(engine.task, state, given, rows, seconds)]
      found += [gradient_row(engine.task, state, given, rows, seconds)]
    if 'draw' in parts:
      found += [draw_row(engine.task, state, given, rows, seconds, cached=cached) for cached in (True, False)]
    for row in found:
      yield {**row, 'timed': f'{config.task}, {config.model.dtype}: {row["timed"]}', 'batch_size': rows}


def _with_dtype(config: ConfigDict, dtype: str) -> ConfigDict:
  config = copy.deepcopy(config)
  config.model.dtype = dtype
  return config


def _rows(config: ConfigDict, parts: Sequence[str], seconds: float) -> Iterator[Row]:
  devices = jax.devices()
  # A CPU has no bfloat16 units; there its rows would only measure conversions.
  dtypes = [config.model.dtype] if jax.default_backend() == 'cpu' else ['float32', 'bfloat16']
  if 'ssim' in parts:
    yield _ssim_row(seconds)
  if 'conv' in parts:
    yield _conv_row(seconds)
  if 'loader' in parts:
    yield _loader_row(config, seconds)
  for dtype in dtypes:
    variant = _with_dtype(config, dtype)
    if 'train' in parts:
      yield _train_row(variant, 'jit', devices[:1], 'none', seconds)
      if len(devices) > 1:
        yield _train_row(variant, 'jit', devices, 'none', seconds)
    if 'pmap' in parts:
      yield _train_row(variant, 'pmap', devices, 'none', seconds)
    if 'loader' in parts and 'train' in parts:
      yield _train_row(variant, 'jit', devices, 'loader', seconds)
    if 'resident' in parts:
      yield _train_row(variant, 'jit', devices, 'resident', seconds)
    if 'evaluate' in parts:
      yield _evaluate_row(variant, devices, seconds)
    if 'parse' in parts:
      yield from _parse_rows(variant, seconds)
    if 'transfer' in parts:
      yield from _transfer_rows(variant, seconds)
    if 'denoise' in parts or 'draw' in parts:
      yield from _diffusion_rows(variant, parts, seconds)


def _say(row: Row) -> None:
  print(f'- {row["timed"]}')
  shown = [f'{name} {value:.4g}' for name, value in row.items() if isinstance(value, int | float)]
  if 'share_of_peak' in row and row['share_of_peak'] is None:
    shown.append("share of peak unknown (this device's peak is not listed)")
  print('  ' + ', '.join(shown), flush=True)


def benchmark(config: ConfigDict, *, only: Sequence[str] | None, out: Path | None, seconds: float) -> list[Row]:
  """Measures `only` these parts (default all), each row for about `seconds`; prints rows and writes JSON to `out`."""
  possible = [part for part in PARTS if config.task in _SPECIAL.get(part, (config.task,))]
  if 'first_stage' in config and not config.first_stage.workdir:
    config.first_stage.workdir = 'random'  # Speed does not ask what was learnt.
  parts = tuple(only or possible)
  for part in parts:
    if part not in PARTS:
      raise UserError(f'unknown part {part!r}; choose from {", ".join(PARTS)}')
    if part not in possible:
      tasks = ' or '.join(_SPECIAL[part])
      raise UserError(f'the part {part!r} needs --config of an experiment of task {tasks}; this is {config.task}')
  device = jax.devices()[0]
  print(
    f'{len(jax.devices())} x {device.device_kind} ({jax.default_backend()}), jax {jax.__version__}; '
    'compilation is not timed'
  )
  rows = []
  for row in _rows(config, parts, seconds):
    _say(row)
    rows.append(row)
  if out is not None:
    about = environment()
    # Where it ran on whose machine is not part of a result.
    config = config.copy_and_resolve_references()
    config.data.data_dir = ''
    report = {
      'environment': {k: v for k, v in about.items() if k not in ('command', 'platform')},
      'config': config.to_dict(),
      'rows': rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(report, indent=2) + '\n')
    print(f'written: {out}')
  return rows
