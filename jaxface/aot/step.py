"""One step of a run, compiled for TPUs or GPUs from shapes and shardings alone."""

import dataclasses
import re
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from ml_collections import ConfigDict

from jaxface.aot import cycles, gpu, gpu_program, hlo, tpu_program
from jaxface.aot.roofline import Roofline, roofline
from jaxface.aot.topology import Topology
from jaxface.batch_shapes import batch_shapes
from jaxface.errors import UserError, check_at_least
from jaxface.parallel import JitEngine, check_batch_size, make_mesh
from jaxface.speed import for_speed
from jaxface.state import PyTree, for_evaluation
from jaxface.tasks import make_task

STEPS = ('train', 'evaluate')

# The compiler then tries a sixth as hard: on a TPU it keeps nothing on the chip, and lets exchanges wait.
_QUICK = {'exec_time_optimization_effort': -1.0}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device.

  Attributes:
    parameters, optimizer, frozen, other, batch: what the step is given, by our own count of shapes and shardings;
      `other` is averaged copies and moving statistics.
    given: the same altogether, as the compiler counts it, padding included.
    temporaries, program: the compiler's, too.
    available: what there is.
  """

  parameters: int
  optimizer: int
  frozen: int
  other: int
  batch: int
  given: int
  temporaries: int
  program: int
  available: int

  @property
  def total(self) -> int:
    """What the step needs at most; what it returns lies where its arguments lay."""
    return self.given + self.temporaries + self.program


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler says of one step on one device.

  `flops`, `bytes_moved`, `exchanges` and `estimate` are None where the step does not fit.
  `from_other_slices` is how often and how many bytes a TPU receives from those, which the estimate knows nothing of;
  `loops` tells how many loops the program has, whose bodies are counted once; `cycles` is the TPU's compiler's own
  estimate, None for GPUs; `text` is the program, as HLO.
  """

  step: str
  topology: Topology
  mesh: dict[str, int]
  batch_size: int
  dtype: str
  seconds_to_compile: float
  memory: Memory
  flops: float | None = None
  bytes_moved: float | None = None
  exchanges: list[hlo.Collective] | None = None
  estimate: Roofline | None = None
  from_other_slices: tuple[int, int] = (0, 0)
  loops: int = 0
  cycles: int | None = None
  text: str = ''

  @property
  def fits(self) -> bool:
    """Whether there is room for it; the TPU's compiler makes no program that asks for more than there is."""
    return self.flops is not None


def compile_step(config: ConfigDict, topology: Topology, *, step: str = 'train', quick: bool = False) -> Compiled:
  """Compiles the step that `jaxface train` (or `evaluate`) runs with this configuration, for these devices.

  Networks whose weights are not there are taken untrained. `quick` compiles in a fraction of the time, less well.

  Raises:
    UserError: the configuration does not divide over the devices, or asks for `pmap`.
  """
  if step not in STEPS:
    raise UserError(f'unknown step {step!r}; choose from {", ".join(STEPS)}')
  if config.parallel.mode != 'jit':
    raise UserError(f'parallel.mode={config.parallel.mode} compiles on the devices themselves; choose jit')
  check_at_least(1, config, 'batch_size', 'accumulate_steps')
  config = for_speed(config)
  mesh = make_mesh(config.parallel.fsdp, topology.devices)
  engine = JitEngine(make_task(config, training=step == 'train'), seed=config.seed, mesh=mesh)
  check_batch_size(config.batch_size, engine.device_count * (config.accumulate_steps if step == 'train' else 1))
  state = engine.abstract_state
  shapes = batch_shapes(config, engine.task, config.batch_size)
  if step == 'train':
    batch = {k: _spread((1, *v.shape), v.dtype, engine.stacked_rows) for k, v in shapes.items() if k != 'weight'}
    lowered = engine.train_step.lower(state, batch, None)
  else:
    state = for_evaluation(state)
    batch = {k: _spread(v.shape, v.dtype, engine.rows) for k, v in shapes.items()}
    lowered = engine.eval_step.lower(state, batch)

  plan = {
    'parameters': bytes_per_device(state.params),
    'optimizer': bytes_per_device(state.opt_state),
    'frozen': bytes_per_device(state.frozen),
    'other': bytes_per_device((state.step, state.model_state, state.ema)),
    'batch': bytes_per_device(batch),
  }
  about = {
    'step': step,
    'topology': topology,
    'mesh': dict(zip(mesh.axis_names, mesh.devices.shape, strict=True)),
    'batch_size': config.batch_size,
    'dtype': config.model.dtype,
  }
  options = (_QUICK if quick else {}) | (gpu.COMPILER_OPTIONS if topology.is_gpu else {})
  began = time.perf_counter()
  try:
    program = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    wanted, available = _out_of_memory(error)
    given = sum(plan.values())
    memory = Memory(**plan, given=given, temporaries=max(wanted - given, 0), program=0, available=available)
    return Compiled(**about, seconds_to_compile=time.perf_counter() - began, memory=memory)
  seconds = time.perf_counter() - began
  found, text = program.memory_analysis(), program.as_text()
  memory = Memory(
    **plan,
    given=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes,
    program=found.generated_code_size_in_bytes,
    available=int(topology.chip.memory),
  )
  if memory.total > memory.available:
    return Compiled(**about, seconds_to_compile=seconds, memory=memory)
  read = {'from_other_slices': hlo.from_other_slices(text), 'loops': hlo.loops(text), 'text': text}
  if topology.is_gpu:
    work = dataclasses.asdict(gpu_program.work(text))
  else:
    work = {'flops': program.cost_analysis()['flops'], 'bytes_moved': tpu_program.bytes_moved(text)}
    read['cycles'] = cycles.cycles(text)
  work['exchanges'] = hlo.collectives(text)
  estimate = roofline(**work, chip=topology.chip, dtype=config.model.dtype, torus=topology.torus)
  return Compiled(**about, seconds_to_compile=seconds, memory=memory, **work, estimate=estimate, **read)


def _spread(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def bytes_per_device(tree: PyTree) -> int:
  """Of a tree of shapes with shardings, what one device holds; without the padding of its layouts."""
  return sum(
    int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * np.dtype(leaf.dtype).itemsize
    for leaf in jax.tree.leaves(tree)
  )


_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> tuple[int, int]:
  """Bytes that a program wanted, arguments included, and bytes there are; raises anew what is about something else."""
  sizes = re.findall(r'\b(\d+(?:\.\d+)?)([KMGT]?)\b', str(error).partition('emory')[2])
  if not str(error).startswith('RESOURCE_EXHAUSTED') or len(sizes) < 2:
    raise error
  wanted, available = (int(float(number) * _UNITS[unit]) for number, unit in sizes[:2])
  return wanted, available
