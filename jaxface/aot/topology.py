"""TPU pods and nodes of GPUs that need not be there: devices to compile for."""

import dataclasses
import math
import os
from collections.abc import Sequence

from jaxface.aot.gpu import GPUS, target_config
from jaxface.chips import CHIPS, Chip
from jaxface.errors import UserError

# Slices that are let, by generation: chips along each axis of the torus.
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_SOLID = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16')
_NODE = ('1', '2', '4', '8')
KNOWN = {'v4': _SOLID, 'v5e': _FLAT, 'v5p': _SOLID, 'v6e': _FLAT, **dict.fromkeys(GPUS, _NODE)}

_QUIET = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TPU_STDERR_LOG_LEVEL': '3',
  # XLA for GPUs tells that it finds none, and that large programs take long.
  'TF_CPP_MIN_LOG_LEVEL': '3',
  # Where there is no TPU to share, several may compile.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
_HOW = "compiling for a TPU needs libtpu: pip install 'jaxface[tpu-aot]'"
_HOW_GPU = "compiling for a GPU needs JAX's plugin for CUDA: pip install 'jaxface[cuda]'"


@dataclasses.dataclass(frozen=True)
class Topology:
  """A pod slice or a node of GPUs, or several alike.

  Attributes:
    name: such as 'v5p:4x4x4' or 'h200:8'.
    shape: chips along each axis of one slice; GPUs of one node.
    slices: how many slices or nodes there are; data-centre network joins them.
    devices: JAX's, one a chip, of all slices.
    chip: what one chip can do.
  """

  name: str
  shape: tuple[int, ...]
  slices: int
  devices: Sequence
  chip: Chip

  @property
  def chips(self) -> int:
    """Of all slices."""
    return math.prod(self.shape) * self.slices

  @property
  def is_gpu(self) -> bool:
    """Whether these are GPUs."""
    return self.name.partition(':')[0] in GPUS

  @property
  def torus(self) -> tuple[int, ...]:
    """Chips along each axis by which they are linked; a node's GPUs have one way each, into a switch."""
    return tuple(min(side, 2) for side in self.shape) if self.is_gpu else self.shape


def without_devices() -> None:
  """Makes JAX compute on the CPU, and libtpu not ask the network for a TPU; call it before anything else does."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  for name, value in _QUIET.items():
    os.environ.setdefault(name, value)
  import jax

  # In case that JAX was imported before it could read the environment.
  jax.config.update('jax_platforms', 'cpu')


def known(generation: str) -> str:
  """The slices of a generation, for people to read."""
  return ', '.join(f'{generation}:{shape}' for shape in KNOWN[generation])


def get_topology(name: str, slices: int = 1) -> Topology:
  """Devices of `slices` pod slices or nodes called `name`, such as 'v5e:4x8'; say `without_devices` before.

  Raises:
    UserError: the compiler for them is not installed, or there is no such slice.
  """
  generation, _, shape = name.partition(':')
  if generation not in KNOWN:
    raise UserError(f'unknown topology {name!r}; choose from {"; ".join(known(each) for each in KNOWN)}')
  if shape not in KNOWN[generation]:
    raise UserError(f'unknown topology {name!r}; choose from {known(generation)}')
  if slices < 1:
    raise UserError(f'--slices {slices}; at least 1')
  if generation in GPUS:
    return _gpus(name, int(shape), slices)
  from jax.experimental import topologies

  sides = tuple(int(side) for side in shape.split('x'))
  options = {'num_slices': slices} if slices > 1 else {}
  if generation == 'v4':
    # As on a pod, where both cores of a chip are one device.
    options['chip_config_name'] = 'megacore'
  if math.prod(sides) == 1:
    options['chips_per_host_bounds'] = (1, 1, 1)
  try:
    devices = topologies.get_topology_desc(name, 'tpu', **options).devices
  except (RuntimeError, ImportError, ValueError) as error:
    if _has('libtpu'):
      raise UserError(f'libtpu knows no {name}: {str(error).splitlines()[0]}') from error
    raise UserError(_HOW) from error
  return Topology(name, sides, slices, devices, CHIPS[devices[0].device_kind])


def _gpus(name: str, count: int, nodes: int) -> Topology:
  from jax.experimental import topologies

  gpu = GPUS[name.partition(':')[0]]
  chip = CHIPS[gpu.kind]
  config = target_config(gpu, chip.memory, chip.bandwidth)
  try:
    devices = topologies.get_topology_desc(platform='cuda', target_config=config, topology=f'{nodes}x1x{count}').devices
  except (RuntimeError, ImportError, ValueError, NotImplementedError) as error:
    if _has('jax_cuda12_plugin') or _has('jax_cuda13_plugin'):
      raise UserError(f'the CUDA plugin makes no {name}: {str(error).splitlines()[0]}') from error
    raise UserError(_HOW_GPU) from error
  return Topology(name, (count,), nodes, devices, chip)


def _has(module: str) -> bool:
  import importlib.util

  return importlib.util.find_spec(module) is not None
