"""The experiments in smoke size, for tests to run and change."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from jaxface import input_pipeline
from jaxface.checkpoint import Checkpoints
from jaxface.cli import load_config
from jaxface.models.vae import FaceMaskVAE
from jaxface.parallel import Engine, JitEngine, make_engine, make_mesh, replicate, shard_largest
from jaxface.runs import open_split
from jaxface.state import TrainState
from jaxface.tasks import make_task
from jaxface.tasks.task import Task
from jaxface.tasks.vae import VaeTask
from jaxface.untrained import untrained

REPOSITORY = Path(__file__).parent.parent
EXPERIMENT = str(REPOSITORY / 'experiments' / 'vae.py')


def smoke_config(variant: str, data_dir: Path | None = None) -> ConfigDict:
  """The smoke configuration of the VAE's `variant`; see `experiment`."""
  return experiment('vae', variant, data_dir)


def experiment(name: str, variant: str, data_dir: Path | None = None) -> ConfigDict:
  """The smoke configuration of a system's `variant`, on the datasets in `data_dir`, read without worker processes."""
  config = load_config(f'{REPOSITORY / "experiments" / name}.py:{variant},smoke', [])
  config.data.data_dir = '' if data_dir is None else str(data_dir)
  config.data.workers = 0
  return config


def short_config(data_dir: Path) -> ConfigDict:
  """Six steps of mask_l2; every second one is saved and kept, nothing validated or drawn before the end."""
  config = smoke_config('mask_l2', data_dir)
  config.total_steps, config.checkpoint_steps, config.keep_last = 6, 2, 400
  config.eval_steps = config.render_steps = 0
  return config


# The VAE's smallest pictures: they are halved once, and a window of SSIM fits.
TINY = 3


class TinyVae(FaceMaskVAE):
  """The network for pictures of so few pixels that they are halved once or twice: a fraction of the time to compile."""

  def __post_init__(self) -> None:
    nn.Module.__post_init__(self)  # The network itself insists on 16 pixels.


def tiny_vae(config: ConfigDict, axis_name: str | None = None) -> VaeTask:
  """The task of a VAE's `config`, with the tiny network and a window for SSIM as large as its pictures."""
  config = config.copy_and_resolve_references()
  config.model.image_size = 16
  task = make_task(config, axis_name)
  model = TinyVae(
    image_size=TINY,
    encoder_widths=((4, 8),),
    decoder_widths=(8,),
    mask_widths=task.model.mask_widths and (4,),
    **{name: getattr(task.model, name) for name in ('latent_dim', 'sampling', 'dtype', 'axis_name', 'remat')},
  )
  return dataclasses.replace(task, model=model, loss=dataclasses.replace(task.loss, filter_size=TINY))


def run_steps(engine: Engine, batches: list[dict[str, np.ndarray]]) -> tuple[TrainState, list[dict[str, np.ndarray]]]:
  """The state, as saved, after a step from the start on each of `batches`, and every step's metrics."""
  state, log = engine.init(), []
  for batch in batches:
    state, metrics = engine.train_step(state, engine.put_stacked([batch]), None)
    log.append(engine.metrics_on_host(metrics))
  return engine.to_saved(state), log


# What of a configuration does not change the programs that an engine compiles.
_NO_PROGRAM = (
  'total_steps', 'log_steps', 'eval_steps', 'eval_batches', 'render_steps', 'checkpoint_steps', 'keep_last',
  'keep_best', 'best_metric', 'best_is', 'init_from',
)  # fmt: skip
_engines: dict[str, Engine] = {}


def make_tiny_or_task(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> Task:
  """`make_task`, but the VAE's for pictures of `TINY` pixels, which it has not, is the tiny one."""
  if config.task == 'vae' and config.model.image_size == TINY:
    return tiny_vae(config, axis_name)
  return make_task(config, axis_name, training=training)


def shared_engine(config: ConfigDict, *, training: bool = True, devices: int | None = None) -> Engine:
  """The engine for a configuration, made once in a process: most of a short run is tracing and compiling.

  With `devices` it runs on so many of them. See `make_tiny_or_task`.
  """
  programs = {name: value for name, value in json.loads(config.to_json()).items() if name not in _NO_PROGRAM}
  if config.optimizer.decay not in ('constant', 'halve'):
    programs['total_steps'] = config.total_steps
  # Without a perceptual term it is the same task for training and for use.
  programs['training'] = training and config.loss.get('perceptual', 'none') != 'none'
  key = json.dumps([programs, devices], sort_keys=True)
  if key not in _engines:
    make = functools.partial(make_tiny_or_task, config, training=training)
    if devices is None:
      _engines[key] = make_engine(make, mode=config.parallel.mode, fsdp=config.parallel.fsdp, seed=config.seed)
    else:
      mesh = make_mesh(1, jax.devices()[:devices])
      _engines[key] = JitEngine(make(None), seed=config.seed, mesh=mesh)
    start_from(_engines[key], functools.partial(first_state, _engines[key]))
  return _engines[key]


@functools.cache
def first_state(engine: Engine) -> TrainState:
  """What an engine makes itself to start from, as saved, in numpy."""
  return jax.tree.map(np.asarray, engine.to_saved(type(engine).init(engine)))


def untrained_state(task: Task) -> TrainState:
  """A state to start from whose parameters numpy draws, not the task; to compile its `init` takes seconds."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))
  params = untrained(shapes.params)
  step, opt_state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), (shapes.step, shapes.opt_state))
  ema = None if shapes.ema is None else {name: params[name] for name in shapes.ema}
  return TrainState(step, params, untrained(shapes.model_state), opt_state, ema, task.frozen)


def start_from(engine: Engine, known: Callable[[], TrainState]) -> None:
  """Has `engine.init` return a `first_state` that is known, where its own would be compiled at every call."""

  def init() -> TrainState:
    shardings = jax.tree.map(lambda leaf: leaf.sharding, engine.abstract_saved)
    return engine.from_saved(jax.device_put(known(), shardings))

  engine.init = init


# The smoke networks' tensors are too small for the default rule to cut.
CUT_ALL = ((r'(params|opt_state|ema)(/.*)?', shard_largest('fsdp', min_elements=64)), ('.*', replicate))


def first_batches(config: ConfigDict, count: int) -> list[dict[str, np.ndarray]]:
  """The first training batches of a run."""
  engine = JitEngine(make_task(config), seed=0, mesh=make_mesh(1, jax.devices()[:1]))
  dataset = open_split(config, engine, 'train')
  stream = input_pipeline.TrainBatches(
    dataset, batch_size=config.batch_size, seed=0, next_batch=0, process=(0, 1), workers=0
  )
  return [next(stream) for _ in range(count)]


def assert_same_but_for_rounding(found: Any, expected: Any) -> None:
  """Trees after a few steps of Adam, which go by the sign of a gradient, whatever its size: a few may be rounding's."""
  pairs = zip(*map(jax.tree.leaves, (found, expected)), strict=True)
  close = [np.isclose(np.asarray(a), np.asarray(b), rtol=1e-3, atol=1e-5).ravel() for a, b in pairs]
  assert np.concatenate(close).mean() > 0.99


def assert_same_gradients(engines: tuple[Engine, Engine], batch: dict[str, np.ndarray]) -> None:
  """What the optimizer keeps after one step, Adam's moments, is made of the gradients alone: 1e-3 of the largest."""
  moments = (
    [np.asarray(leaf) for leaf in jax.tree.leaves(run_steps(engine, [batch])[0].opt_state)] for engine in engines
  )
  for found, expected in zip(*moments, strict=True):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max() + 1e-7)


def saved_state(workdir: Path, config: ConfigDict, step: int) -> TrainState:
  """The state in checkpoint `step` of a run, as numpy."""
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shapes = shared_engine(config, devices=1).abstract_saved
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
  with Checkpoints(workdir, read_only=True) as checkpoints:
    return jax.tree.map(np.asarray, checkpoints.load_state(step, shapes))
