"""Several processes that make one run: how they find each other, and how they give up together."""

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxface.errors import UserError
from jaxface.meshes import on_host

# Seconds that others may take to hear of what stopped all of them.
_PATIENCE = 10.0


def start_processes(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
  """Joins this process to a run of several; call it before anything else touches JAX.

  With no arguments but `coordinator='auto'`, JAX asks the cluster: TPU slices, Slurm, Open MPI, Kubernetes.
  """
  if coordinator is None:
    if num_processes is not None or process_id is not None:
      raise UserError('--num-processes and --process-id need --coordinator HOST:PORT (or --coordinator auto)')
    return
  if coordinator == 'auto':
    try:
      jax.distributed.initialize()
    except ValueError as error:
      raise UserError(
        "--coordinator auto finds no cluster here: no TPU slice, no step of Slurm's srun or Open MPI's mpirun, no "
        "Kubernetes job (which needs `pip install 'jax[k8s]'`); say --coordinator HOST:PORT --num-processes N "
        '--process-id I in each process'
      ) from error
    return
  if num_processes is None or process_id is None or not 0 <= process_id < num_processes:
    raise UserError(
      f'--coordinator {coordinator} needs --num-processes N and --process-id I with 0 <= I < N; '
      f'got N={num_processes}, I={process_id}'
    )
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise UserError(f'--coordinator {coordinator}: give HOST:PORT of process 0, such as 10.0.0.1:8482, or auto')
  try:
    jax.distributed.initialize(coordinator, num_processes, process_id)
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--coordinator {coordinator}: {str(error).splitlines()[0]}') from error


def leave(status: int) -> int:
  """`status`, for one of several processes that ends by an error; where the others do not, it ends here and now.

  At its end JAX lets a process wait five minutes for all others. They wait for it, too, and no scheduler would see that
  one has failed.
  """
  parting = threading.Thread(target=jax.distributed.shutdown, daemon=True)
  parting.start()
  parting.join(_PATIENCE)
  if parting.is_alive():
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
  return status


def process_and_count() -> tuple[int, int]:
  """The number of this process and how many there are, by which each reads its share of the data."""
  return jax.process_index(), jax.process_count()


def speaks() -> bool:
  """Whether this process is the one that prints and writes for all."""
  return jax.process_index() == 0


def _same(value: jax.Array) -> jax.Array:
  return value


def gathered(own: np.ndarray) -> np.ndarray:
  """What each process holds, for all of them: (processes, *own.shape), in the order of the processes.

  Unlike multihost_utils.process_allgather it waits for all devices of this process (see `on_host`).
  """
  devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
  mesh = Mesh(np.reshape(devices, (jax.process_count(), -1)), ('processes', 'devices'))
  shares = jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec('processes')), own[None])
  everywhere = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))(shares)
  return on_host(everywhere)


def anywhere(what: bool) -> bool:
  """Whether it is so in any of the processes, which all must ask."""
  return what if jax.process_count() == 1 else bool(gathered(np.array(what)).any())


def check_same(what: str, values: Mapping[str, object]) -> None:
  """Raises UserError in all processes where one has other `values` than process 0; `what` they are, for people."""
  if jax.process_count() == 1:
    return
  names = sorted(values)
  # Arrays of one shape are what processes can compare: first which names there are, then what they stand for.
  for texts in ([f'{len(names)} entries'], names, [f'{name}: {values[name]!r}' for name in names]):
    digests = gathered(np.stack([np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint32) for text in texts]))
    others = np.argwhere((digests != digests[0]).any(-1))
    if others.size:
      process, entry = others[0]
      raise UserError(
        f'process {process} has another {what} than process 0; all need the same, and here it is {texts[entry]}'
      )


@contextlib.contextmanager
def giving_up_together() -> Iterator[None]:
  """Around what may go wrong in some processes only: where it does, all of them raise, and none waits for the others.

  Whoever had no problem of its own raises UserError. The block itself must not wait for other processes.
  """
  problem = None
  try:
    yield
  except Exception as error:  # Whatever it is, the others must hear of it first.
    problem = error
  if jax.process_count() > 1:
    failed = np.flatnonzero(gathered(np.array(problem is not None)))
    if problem is None and failed.size:
      raise UserError(f'process {failed[0]} of {jax.process_count()} gave up; its own message says why')
  if problem is not None:
    raise problem
