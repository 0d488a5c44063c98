"""How fast a system trains and is evaluated, by way of compiling and feed, and how fast its data is read."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxface import input_pipeline, labels
from jaxface.batch_shapes import batch_shapes
from jaxface.benchmark.meter import Meter, Row, compile_program
from jaxface.input_pipeline import NumpyBatch
from jaxface.parallel import Engine, JitEngine, PmapEngine, check_batch_size, make_mesh
from jaxface.state import for_evaluation
from jaxface.tasks import make_task


def make_engine(config: ConfigDict, devices: Sequence[jax.Device], mode: str = 'jit') -> Engine:
  """The system, compiled for some devices; on a single one `parallel.fsdp` says nothing."""
  kind = PmapEngine if mode == 'pmap' else JitEngine
  fsdp = config.parallel.fsdp if mode == 'jit' and len(devices) > 1 else 1
  return kind(make_task(config, kind.axis_name), seed=config.seed, mesh=make_mesh(fsdp, devices))


def random_batch(config: ConfigDict, engine: Engine, rows: int) -> NumpyBatch:
  """Rows of noise in the fields that the system's steps take."""
  rng = np.random.default_rng(0)

  def draw(field: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
    levels = labels.NUM_CLASSES if field.endswith('label') else 256
    return rng.integers(0, levels, shape.shape, shape.dtype)

  known = {'row': np.arange(rows, dtype=np.int32), 'weight': np.ones(rows, np.float32)}
  shapes = batch_shapes(config, engine.task, rows)
  return known | {field: draw(field, shape) for field, shape in shapes.items() if field not in known}


def train_row(
  meter: Meter,
  config: ConfigDict,
  devices: Sequence[jax.Device],
  *,
  mode: str = 'jit',
  feed: str = 'none',
  dataset: input_pipeline.Dataset | None = None,
) -> Row:
  """Train steps in one way of compiling; `feed` is a fixed batch ('none'), the 'loader', or the set held 'resident'."""
  engine = make_engine(config, devices, mode)
  check_batch_size(config.batch_size, engine.device_count * config.accumulate_steps)
  steps = config.steps_per_dispatch
  state = engine.init()
  if feed == 'none':
    batch = random_batch(config, engine, config.batch_size)
    del batch['weight']
    fixed = engine.put_stacked([batch] * steps)
    next_batch = lambda: fixed
  else:
    if feed == 'resident':
      engine.put_dataset(input_pipeline.load_whole(dataset))
    stream = _stream(config, dataset, resident=feed == 'resident')
    next_batch = lambda: engine.put_stacked([next(stream) for _ in range(steps)])
  program = compile_program(engine.train_step, state, next_batch(), engine.dataset, devices=engine.device_count)
  holder = [state]
  del state

  def dispatch() -> Any:
    holder[0], metrics = program.run(holder[0], next_batch(), engine.dataset)
    return metrics

  return meter.row(
    f'train step, {_ways(mode, engine)}, {config.model.dtype}, data: {feed}',
    dispatch,
    images=steps * config.batch_size,
    batch_size=config.batch_size,
    program=program,
    dtype=config.model.dtype,
    steps=steps,
    stream=feed == 'loader',
  )


def evaluate_row(meter: Meter, config: ConfigDict, devices: Sequence[jax.Device]) -> Row:
  """The step of evaluation, metrics included."""
  engine = make_engine(config, devices)
  check_batch_size(config.batch_size, engine.device_count)
  light = for_evaluation(engine.init())
  batch = engine.put(random_batch(config, engine, config.batch_size))
  program = compile_program(engine.eval_step, light, batch, devices=engine.device_count)
  return meter.row(
    f'evaluation step with all metrics, {_ways("jit", engine)}, {config.model.dtype}',
    lambda: program.run(light, batch),
    images=config.batch_size,
    program=program,
    dtype=config.model.dtype,
    steps=1,
  )


def loader_row(meter: Meter, config: ConfigDict, dataset: input_pipeline.Dataset) -> Row:
  """Batches read and decoded, and not used."""
  workers = input_pipeline.default_workers() if config.data.workers < 0 else config.data.workers
  stream = _stream(config, dataset, resident=False)
  return meter.row(
    f'loader alone: read, decode, resize, batch; {workers} worker processes; nothing goes to a device',
    lambda: next(stream)['row'],
    images=config.batch_size,
    stream=True,
  )


def _stream(config: ConfigDict, dataset: input_pipeline.Dataset, *, resident: bool) -> Iterator[NumpyBatch]:
  options = {'batch_size': config.batch_size, 'seed': config.seed, 'next_batch': 0, 'process': (0, 1)}
  if resident:
    return input_pipeline.ResidentBatches(dataset, **options)
  return input_pipeline.TrainBatches(dataset, workers=config.data.workers, **options)


def _ways(mode: str, engine: Engine) -> str:
  return f'{mode} on {engine.device_count} device{"s" if engine.device_count > 1 else ""}'
