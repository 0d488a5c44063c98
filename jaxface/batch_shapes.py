"""Shapes of the batches that a task's steps take, for programs that are compiled or timed without any data."""

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxface.tasks.task import Task

# By the last word of a field's name.
_PLANES = {'image': (3,), 'label': (), 'mask': (1,), 'blue': ()}


def batch_shapes(config: ConfigDict, task: Task, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
  """{field: shape and dtype} of `rows` rows, optional fields included, with what the input pipeline adds."""
  size = config.model.image_size
  fields = {
    field: jax.ShapeDtypeStruct((rows, size, size, *_PLANES[field.rpartition('_')[-1]]), np.uint8)
    for field in (*task.batch_fields, *task.optional_fields)
  }
  return fields | {'row': jax.ShapeDtypeStruct((rows,), np.int32), 'weight': jax.ShapeDtypeStruct((rows,), np.float32)}
