"""A trained run, opened for use."""

import dataclasses
import functools
from pathlib import Path

from ml_collections import ConfigDict

from jaxface import input_pipeline
from jaxface.checkpoint import restore_for_evaluation
from jaxface.parallel import Engine, make_engine
from jaxface.state import TrainState
from jaxface.tasks import make_task
from jaxface.workdir import read_config


def engine_for(config: ConfigDict, *, training: bool = True) -> Engine:
  """The engine that `config.parallel` describes, for the task that `config.task` names; see `make_task`."""
  return make_engine(
    functools.partial(make_task, config, training=training),
    mode=config.parallel.mode,
    fsdp=config.parallel.fsdp,
    seed=config.seed,
  )


def open_split(config: ConfigDict, engine: Engine, split: str, *, draw: int | None = None) -> input_pipeline.Dataset:
  """Opens a split of the dataset that `config` names, with the fields that the engine's task reads.

  `draw` chooses among random pairings of pictures with references, for a task that has such.
  """
  return input_pipeline.open_dataset(
    config.data.name,
    split,
    engine.task.batch_fields,
    optional_fields=engine.task.optional_fields,
    image_size=config.model.image_size,
    data_dir=config.data.data_dir or None,
    resize=config.data.resize,
    draw=draw,
  )


@dataclasses.dataclass(frozen=True)
class Run:
  """A run's configuration, its task compiled for the devices here, and the weights of one checkpoint."""

  name: str
  config: ConfigDict
  engine: Engine
  state: TrainState  # As `state.for_evaluation` leaves it.
  step: int


def load_run(workdir: Path, checkpoint: str = 'best') -> Run:
  """Opens the run in `workdir`, on the devices of this machine, whatever it was trained on."""
  config = read_config(workdir)
  # Sharded parameters and pmap are ways to train; evaluation runs anywhere.
  config.parallel = ConfigDict({'mode': 'jit', 'fsdp': 1})
  engine = engine_for(config, training=False)
  saved, step = restore_for_evaluation(workdir, engine.abstract_saved, checkpoint)
  # The folder one is in, or above it, has a name, too.
  name = Path(workdir).name.strip('.') or Path(workdir).resolve().name
  return Run(name, config, engine, engine.from_saved(saved), step)
