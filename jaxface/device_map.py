"""A function over batches of pictures, each batch spread over all devices of this process."""

import collections
import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.parallel import BATCH_AXES, make_mesh

# Batches on the devices at a time: one that is worked on, and one that waits.
_IN_FLIGHT = 2
# Shapes whose programs are kept: of folders of photos each may have its own, and each takes megabytes.
_SHAPES = 16


def map_batches(
  function: Callable[..., Any],
  variables: Any,
  batches: Iterable[list[tuple[np.ndarray, ...]]],
  batch_size: int,
) -> Iterator[Any]:
  """`function(variables, *stacked)` for each batch of items; results, arrays [B, ...] or trees of them, on the host.

  Args:
    function: maps `variables` and the arrays of items, [B, ...] each, to arrays [B, ...], row by row. It is compiled
      once for each shape that fills a batch, and else for as many rows as there are.
    variables: of a network, say; copied to every device.
    batches: lists of up to `batch_size` items, as many arrays each, whose shapes are alike within a list; uint8 ones
      arrive as floats in [0, 1].
    batch_size: items on all devices together.
  """
  run, whole, rows = _compiled(function)
  variables = jax.device_put(variables, whole)
  filled, kept, pending, told = set(), set(), collections.deque(), False

  def finish():
    result, count = pending.popleft()
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], result)

  for items in batches:
    count, shapes = len(items), tuple(array.shape for array in items[0])
    if len(kept) == _SHAPES and shapes not in kept:
      _forget_programs(run, told)
      kept, told = set(), True
    kept.add(shapes)
    if count == batch_size:
      filled.add(shapes)
    wanted = batch_size if shapes in filled else count
    filling = -(-wanted // rows.mesh.size) * rows.mesh.size - count
    columns = [np.stack(column) for column in zip(*items, *[items[-1]] * filling, strict=True)]
    columns = [jax.device_put(column, rows) for column in columns]
    columns = [_to_floats(column) if column.dtype == np.uint8 else column for column in columns]
    pending.append((run(variables, columns), count))
    if len(pending) == _IN_FLIGHT:
      yield finish()
  while pending:
    yield finish()


def _forget_programs(run: Callable, told: bool) -> None:
  for program in (run, _to_floats):
    program.clear_cache()
  if not told:
    logging.getLogger(__name__).warning(
      'pictures of more than %d sizes: compiling for each takes longer than the work; resize them to one', _SHAPES
    )


@jax.jit
def _to_floats(values: jax.Array) -> jax.Array:
  # A program of its own: fused with a difference, the division would be rounded on one side only, and equal pictures
  # would not be equal.
  return values / 255.0


# Few: each keeps what the function holds alive.
@functools.lru_cache(maxsize=8)
def _compiled(function: Callable) -> tuple[Callable, NamedSharding, NamedSharding]:
  """The function of variables and a list of arrays over all devices, and the shardings of the two."""
  mesh = make_mesh(devices=jax.local_devices())
  whole, rows = P(), P(BATCH_AXES)
  # Each device works on its own rows; nothing is exchanged.
  listed = lambda variables, arrays: function(variables, *arrays)
  shared = jax.shard_map(listed, mesh=mesh, in_specs=(whole, rows), out_specs=rows)
  return jax.jit(shared), NamedSharding(mesh, whole), NamedSharding(mesh, rows)
