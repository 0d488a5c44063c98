"""The mesh of a run: which devices share a copy of the parameters, so that what they exchange goes over fast links."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, PartitionSpec

from jaxface.errors import UserError
from jaxface.state import PyTree

# Rows of a batch are spread over both axes: `fsdp` devices share parameters, not pictures.
BATCH_AXES = ('data', 'fsdp')

# For fewer rows than these a TPU's compiler cuts pictures into strips to have as many, and goes on so behind a
# convolution: no faster than with so many rows, and it moves more.
TPU_ROWS = 8

# A TPU keeps so many channels or pictures side by side; its matrix units have as many rows and columns, or twice that.
TPU_LANES = 128


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with axes ('data', 'fsdp') over all devices, `fsdp` of them sharing one copy of the parameters.

  Devices of several slices (TPU slices; among GPUs JAX calls so what NVLink joins, mostly a node) are told by their
  `slice_index`: the data axis then runs over the slices, and those who share a copy sit in one slice, where links are
  fast. Within a TPU slice they are neighbours in the torus.
  """
  devices = list(devices if devices is not None else jax.devices())
  slices = check_fsdp(fsdp, devices)
  # Auto: the compiler places intermediate values; Explicit axes would need an `out_sharding` at every convolution.
  return Mesh(_arranged(devices, slices, fsdp), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_fsdp(fsdp: int, devices: Sequence[jax.Device]) -> int:
  """How many slices the devices are of; UserError where `fsdp` of them cannot share a copy within each."""
  # A device of the only slice, or of a CPU, may not know its number.
  slices = collections.Counter(getattr(device, 'slice_index', None) for device in devices)
  if len(set(slices.values())) > 1:
    raise UserError(
      f'the {len(slices)} slices or nodes of this run have {", ".join(map(str, slices.values()))} devices; '
      'start it on as many in each'
    )
  per_slice = len(devices) // len(slices)
  if fsdp < 1 or per_slice % fsdp:
    legal = [n for n in range(1, per_slice + 1) if per_slice % n == 0]
    where = f' of each of the {len(slices)} slices or nodes' if len(slices) > 1 else ''
    raise UserError(f'parallel.fsdp={fsdp} does not divide the {per_slice} devices{where}; choose from {legal}')
  return len(slices)


def on_host(tree: PyTree) -> PyTree:
  """Arrays of which every device has a copy, or under `pmap` its own row, as numpy: what the first device has, once
  all devices of this process have theirs.

  The first alone is not enough: a process that took it and ended would leave its other devices in a collective.
  """
  return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), jax.block_until_ready(tree))


def whole(kernel: jax.Array) -> jax.Array:
  """A kernel that `fsdp` devices share, all of it on each of them, inside a step of `JitEngine`; else as it is.

  Left to itself the compiler may cut features as the kernel is cut, and move those between devices instead. The
  gradient is asked for whole, too: a GPU's compiler cuts it anyway, a TPU's would work it out piece by piece in a loop,
  each round on a sixteenth of the channels where there are sixteen devices.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if 'fsdp' not in mesh.auto_axes or mesh.shape['fsdp'] == 1:
    return kernel
  return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def rows_per_device(rows: int) -> int:
  """How many of a batch's rows a device works on, inside a step of an engine; else all of them."""
  return -(-rows // _parts())


def cut_evenly(rows: int) -> bool:
  """Whether this is inside a step of `JitEngine` that gives as many of these rows to every device."""
  mesh = jax.sharding.get_abstract_mesh()
  return set(BATCH_AXES) <= set(mesh.auto_axes) and rows % _parts() == 0


def on_own_rows(
  function: Callable[..., Any], rows: Sequence[jax.Array], shared: Sequence[jax.Array], *, check_vma: bool = True
) -> Any:
  """`function(*rows, *shared)`, inside a step of an engine by every device on its own part of `rows`.

  For what XLA would otherwise gather all rows for. `function` works row by row; what it returns has rows, too. Rows
  that do not divide over the devices are left to XLA. `check_vma` is `shard_map`'s.
  """
  parts = _parts()
  if parts == 1 or any(len(array) % parts for array in rows):
    return function(*rows, *shared)
  cut, uncut = PartitionSpec(BATCH_AXES), PartitionSpec()
  specs = (*(cut for _ in rows), *(uncut for _ in shared))
  return jax.shard_map(function, in_specs=specs, out_specs=cut, check_vma=check_vma)(*rows, *shared)


def gather_from_own_rows(function: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
  """What `function` finds of the rows on each device, [1, ...], put together on all of them, [devices, ...].

  Outside a step of an engine, and for rows that do not divide over the devices, one device counts as having them all.
  """
  found = on_own_rows(function, [rows], [])
  return jax.lax.with_sharding_constraint(found, PartitionSpec()) if _parts() > 1 else found


def _parts() -> int:
  """Into how many parts a batch's rows are cut where this is traced."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES if axis in mesh.auto_axes)


def _arranged(devices: Sequence[jax.Device], slices: int, fsdp: int) -> np.ndarray:
  shape = (len(devices) // slices // fsdp, fsdp)
  # Splitting a side of the torus is what makes fsdp=2 possible on one of 4x4: `jax.make_mesh` does so on v5e alone.
  if slices == 1:
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return mesh_utils.create_hybrid_device_mesh(shape, (slices, 1), devices, allow_split_physical_axes=True)
