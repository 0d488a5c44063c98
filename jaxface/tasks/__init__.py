"""The systems, each a task: a handful of pure functions that the one train loop compiles and calls."""

from ml_collections import ConfigDict

from jaxface.errors import UserError
from jaxface.tasks.autoencoder import make_autoencoder
from jaxface.tasks.beautygan import make_beautygan
from jaxface.tasks.ipmnet import make_ipmnet
from jaxface.tasks.parsing import make_parsing
from jaxface.tasks.scadm import make_scadm
from jaxface.tasks.sdm import make_sdm
from jaxface.tasks.task import Task
from jaxface.tasks.vae import make_vae

TASKS = {
  'vae': make_vae,
  'parsing': make_parsing,
  'ipmnet': make_ipmnet,
  'beautygan': make_beautygan,
  'autoencoder': make_autoencoder,
  'scadm': make_scadm,
  'sdm': make_sdm,
}


def make_task(config: ConfigDict, axis_name: str | None = None, *, training: bool = True) -> Task:
  """Builds the task named by `config.task`; `axis_name` is the `pmap` axis, None under `jit`.

  Without `training` it lacks the frozen networks that only losses need.
  """
  if config.task not in TASKS:
    raise UserError(f'unknown task {config.task!r}; choose from {", ".join(TASKS)}')
  return TASKS[config.task](config, axis_name, training=training)
