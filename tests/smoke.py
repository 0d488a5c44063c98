"""The experiments in smoke size, for tests to run and change."""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxface import input_pipeline
from jaxface.checkpoint import Checkpoints
from jaxface.cli import load_config
from jaxface.parallel import JitEngine, make_mesh, replicate, shard_largest
from jaxface.runs import engine_for, open_split
from jaxface.state import TrainState
from jaxface.tasks import make_task

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
  """Six steps of mask_ssim_l2; every second one is saved and kept, nothing validated or drawn before the end."""
  config = smoke_config('mask_ssim_l2', data_dir)
  config.total_steps, config.checkpoint_steps, config.keep_last = 6, 2, 400
  config.eval_steps = config.render_steps = 0
  return config


# The smoke networks' tensors are too small for the default rule to cut.
CUT_ALL = ((r'(params|opt_state|ema)(/.*)?', shard_largest('fsdp', min_elements=64)), ('.*', replicate))


def first_batches(config: ConfigDict, count: int) -> list[dict[str, np.ndarray]]:
  """The first training batches of a run, of eight rows each."""
  engine = JitEngine(make_task(config), seed=0, mesh=make_mesh(1, jax.devices()[:1]))
  dataset = open_split(config, engine, 'train')
  stream = input_pipeline.TrainBatches(dataset, batch_size=8, seed=0, next_batch=0, process=(0, 1), workers=0)
  return [next(stream) for _ in range(count)]


def saved_state(workdir: Path, config: ConfigDict, step: int) -> TrainState:
  """The state in checkpoint `step` of a run, as numpy."""
  with Checkpoints(workdir, read_only=True) as checkpoints:
    return jax.tree.map(np.asarray, checkpoints.load_state(step, engine_for(config).abstract_saved))
