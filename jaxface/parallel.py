"""How one step runs on many devices: `jit` over a mesh, or `pmap`; one process or several.

A task writes its step as if one device held the whole batch. An *engine* compiles the task's functions for the devices
at hand, makes the state where it will live, and moves batches there. Both engines have the same methods, so nothing
else in the project asks which one runs; both save and restore the same checkpoint.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxface.collectives import mean_over_devices, sum_over_devices
from jaxface.errors import UserError
from jaxface.fields import take
from jaxface.meshes import BATCH_AXES, make_mesh, on_host
from jaxface.state import PyTree, TrainState, for_evaluation
from jaxface.tasks.task import Task

Batch = Mapping[str, Any]
Rule = Callable[[tuple[int, ...], Mesh], P]

PMAP_AXIS = 'batch'


def check_batch_size(batch_size: int, divisor: int) -> None:
  """Raises when a global batch of `batch_size` rows cannot be cut into `divisor` equal parts."""
  if batch_size < 1 or batch_size % divisor:
    nearest = max(divisor, -(-batch_size // divisor) * divisor)
    raise UserError(
      f'batch_size={batch_size} does not divide over {divisor} parts (devices x accumulate_steps); '
      f'the next that does is {nearest}'
    )


def replicate(shape: tuple[int, ...], mesh: Mesh) -> P:
  """Sharding rule: a whole copy on every device."""
  del shape, mesh
  return P()


def shard_largest(axis: str, min_elements: int) -> Rule:
  """Sharding rule: the largest dimension that `axis` divides is cut; tensors under `min_elements` stay whole."""

  def rule(shape: tuple[int, ...], mesh: Mesh) -> P:
    parts = mesh.shape[axis]
    candidates = [i for i, side in enumerate(shape) if side % parts == 0]
    if parts == 1 or not candidates or np.prod(shape) < min_elements:
      return P()
    cut = max(candidates, key=lambda i: shape[i])
    return P(*(axis if i == cut else None for i in range(len(shape))))

  return rule


# First match wins. Paths read like 'params/encoder/conv_0/kernel'.
RULES: tuple[tuple[str, Rule], ...] = (
  (r'(params|opt_state|ema)(/.*)?', shard_largest('fsdp', min_elements=2**14)),
  (r'.*', replicate),
)


def shardings_for(tree: PyTree, mesh: Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> PyTree:
  """A `NamedSharding` for every leaf of `tree` (arrays or their shapes), by the first rule that matches its path."""

  def sharding(path: Any, leaf: Any) -> NamedSharding:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, rule in rules:
      if re.fullmatch(pattern, name):
        return NamedSharding(mesh, rule(tuple(leaf.shape), mesh))
    raise ValueError(f'no sharding rule matches {name} {leaf.shape}; have {[pattern for pattern, _ in rules]}')

  return jax.tree_util.tree_map_with_path(sharding, tree)


def _abstract(tree: PyTree, shardings: PyTree) -> PyTree:
  return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


def _shapes(task: Task, seed: int) -> TrainState:
  """The state's shapes and dtypes, those of the frozen networks included."""
  frozen = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), task.frozen)
  return jax.eval_shape(task.init, jax.random.key(seed)).replace(frozen=frozen)


def _run_once() -> dict[str, str] | None:
  # A program of many small random kernels that runs once: optimising it takes a CPU's compiler 20 s for nothing.
  return {'xla_backend_optimization_level': '0'} if jax.default_backend() == 'cpu' else None


def _run_steps(
  task: Task, seed: int, state: TrainState, batches: Batch, dataset: Batch | None, rows: NamedSharding | None = None
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Runs one update for each leading entry of `batches` ([K, rows, ...]); metrics come back as [K].

  Rows that are taken from a dataset are placed as `rows` says.
  """

  def one(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    if dataset is not None:
      batch = take(dataset, batch)
      batch = batch if rows is None else jax.lax.with_sharding_constraint(batch, rows)
    return task.train_step(state, batch, jax.random.fold_in(jax.random.key(seed), state.step))

  steps = len(next(iter(batches.values())))
  if steps == 1:  # A loop of one is no loop: the compiler optimises straight code better.
    state, metrics = one(state, {name: values[0] for name, values in batches.items()})
    return state, {name: value[None] for name, value in metrics.items()}
  return jax.lax.scan(one, state, batches)


# Records of a resident dataset that `derive` works on at once.
_DERIVED_AT_ONCE = 64


def _derived(task: Task, frozen: PyTree, dataset: Batch) -> Batch:
  """What a task computes of every record of a resident dataset once, where it does such."""
  derive = getattr(task, 'derive', None)
  if derive is None:
    return {}
  one = lambda record: {k: v[0] for k, v in derive(frozen, {k: v[None] for k, v in record.items()}).items()}
  return jax.lax.map(one, dict(dataset), batch_size=_DERIVED_AT_ONCE)


def _weighted_sums(metrics: Mapping[str, jax.Array], weight_B: jax.Array) -> dict[str, jax.Array]:
  """Sums per-example metrics [B, ...] over the rows of weight 1; rows of weight 0 only fill up a batch."""

  def total(values: jax.Array) -> jax.Array:
    real = weight_B.reshape(weight_B.shape + (1,) * (values.ndim - 1)) > 0
    return jnp.where(real, values.astype(jnp.float32), 0).sum(0)

  return {**{name: total(values) for name, values in metrics.items()}, 'count': weight_B.sum()}


class JitEngine:
  """One program over a mesh, written for the global batch; shardings place the state and the rows.

  The step is compilable from shapes and shardings alone (`train_step.lower(engine.abstract_state, ...)`), also for a
  mesh of devices that this machine does not have.
  """

  axis_name = None

  def __init__(self, task: Task, *, seed: int, mesh: Mesh, rules: Sequence[tuple[str, Rule]] = RULES):
    self.task, self.seed, self.mesh, self._rules = task, seed, mesh, rules
    self.dataset: Batch | None = None
    self.whole = NamedSharding(mesh, P())
    self.rows = NamedSharding(mesh, P(BATCH_AXES))
    self.stacked_rows = NamedSharding(mesh, P(None, BATCH_AXES))

  @property
  def device_count(self) -> int:
    """Devices that a batch is cut over."""
    return self.mesh.size

  def known_mesh(self) -> AbstractContextManager[Any]:
    """In which a program is traced: layers that share kernels and Pallas kernels ask for the mesh."""
    return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """Shapes, dtypes and shardings of the state."""
    shapes = _shapes(self.task, self.seed)
    return _abstract(shapes, shardings_for(shapes, self.mesh, self._rules))

  @property
  def _state_sharding(self) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)

  @property
  def _eval_sharding(self) -> PyTree:
    return for_evaluation(self._state_sharding)

  def init(self) -> TrainState:
    """A fresh state, born sharded."""
    trained = self._state_sharding.replace(frozen=None)
    init = jax.jit(self.task.init, out_shardings=trained, compiler_options=_run_once())
    return self.from_saved(init(jax.random.key(self.seed)))

  def put(self, batch: Batch) -> Batch:
    """This process's rows, numpy [B/P, ...], become rows of the global batch on the devices."""
    return {name: jax.make_array_from_process_local_data(self.rows, values) for name, values in batch.items()}

  def put_stacked(self, batches: Sequence[Batch]) -> Batch:
    """Several batches for one dispatch: leaves [K, B, ...] on the devices."""
    return {
      name: jax.make_array_from_process_local_data(self.stacked_rows, np.stack([batch[name] for batch in batches]))
      for name in batches[0]
    }

  def put_dataset(self, dataset: Batch) -> None:
    """Spreads a whole dataset, numpy [N, ...], over the devices; batches are then row numbers (`index`) into it.

    A step fetches its rows from where they lie: what devices exchange is the batch.
    """
    dataset = {name: self._spread(values) for name, values in dataset.items()}
    derived = jax.shard_map(
      functools.partial(_derived, self.task), mesh=self.mesh, in_specs=(P(), self.rows.spec), out_specs=self.rows.spec
    )
    self.dataset = dataset | jax.jit(derived)(self._put_frozen(), dataset)

  def _spread(self, values: np.ndarray) -> jax.Array:
    # Every process has all the values. Records that no batch numbers fill them up, so that all devices get as many.
    filling = -len(values) % self.device_count
    values = np.concatenate([values, np.repeat(values[-1:], filling, axis=0)]) if filling else values
    return jax.make_array_from_callback(values.shape, self.rows, lambda index: values[index])

  @functools.cached_property
  def train_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, batches [K, B, ...], dataset or None) -> (state, metrics [K])`; the given state's memory is reused."""

    def steps(state: TrainState, batches: Batch, dataset: Batch | None) -> tuple[TrainState, dict[str, jax.Array]]:
      with self.known_mesh():
        return _run_steps(self.task, self.seed, state, batches, dataset, self.rows)

    return jax.jit(
      steps,
      in_shardings=(self._state_sharding, self.stacked_rows, self.rows),
      out_shardings=(self._state_sharding, self.whole),
      donate_argnums=0,
    )

  @functools.cached_property
  def eval_step(self) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """`(for_evaluation(state), batch) -> sums over the global batch`; 'count' is the number of rows summed."""

    def step(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
      with self.known_mesh():
        return _weighted_sums(self.task.eval_step(state, batch, jax.random.key(self.seed)), batch['weight'])

    return jax.jit(step, in_shardings=(self._eval_sharding, self.rows), out_shardings=self.whole)

  def abstract_metrics(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """What `eval_step` returns for such a batch, without computing it; the step is traced once for both."""
    return jax.eval_shape(self.eval_step, for_evaluation(self.abstract_state), self.put(batch))

  @functools.cached_property
  def _render(self) -> Callable[..., dict[str, jax.Array]]:
    def render(state: TrainState, batch: Batch, key: jax.Array) -> dict[str, jax.Array]:
      # With several processes, a batch lies in the order of the devices that hold it.
      order = jnp.argsort(batch['row'])
      with self.known_mesh():
        # Once more: of rows that were put in order, XLA would let every device draw all.
        rows = jax.lax.with_sharding_constraint({name: values[order] for name, values in batch.items()}, self.rows)
        return self.task.render(state, rows, key)

    return jax.jit(render, in_shardings=(self._eval_sharding, self.rows, self.whole), out_shardings=self.whole)

  def render(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
    """The task's pictures of a batch, on the host: {name: float [N, H, W, 1 or 3] in [0, 1]}.

    Names come in the order of `task.columns`, pictures in that of the batch's 'row'.
    """
    pictures = on_host(self._render(state, batch, jax.random.key(self.seed)))
    # JAX sorts the keys of a dictionary; a reader wants the task's order.
    return {name: pictures[name].astype(np.float32) for name in self.task.columns if name in pictures}

  def metrics_on_host(self, metrics: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """What a step returned, as numpy."""
    return on_host(dict(metrics))

  def to_saved(self, state: TrainState) -> TrainState:
    """The state as a checkpoint holds it: what is never trained is not saved."""
    return state.replace(frozen=None)

  def from_saved(self, saved: TrainState) -> TrainState:
    """The state as the steps take it."""
    return saved.replace(frozen=self._put_frozen())

  def _put_frozen(self) -> PyTree:
    return jax.device_put(self.task.frozen, self._state_sharding.frozen)

  @property
  def abstract_saved(self) -> TrainState:
    """What to restore a checkpoint into."""
    return self.abstract_state.replace(frozen=None)


class PmapEngine:
  """The classic replicated style: a program a device, which agree by collectives over the axis 'batch'.

  The state carries a leading axis of local devices. The task must be made with `axis_name=PMAP_AXIS`.
  """

  axis_name = PMAP_AXIS

  def __init__(self, task: Task, *, seed: int, mesh: Mesh):
    self.task, self.seed, self.mesh = task, seed, mesh
    self.dataset: Batch | None = None
    self._local = jax.local_device_count()

  @property
  def device_count(self) -> int:
    """Devices that a batch is cut over."""
    return self.mesh.size

  @functools.cached_property
  def abstract_saved(self) -> TrainState:
    """What to restore a checkpoint into: one copy on every device of a mesh."""
    shapes = jax.eval_shape(self.task.init, jax.random.key(self.seed))
    return _abstract(shapes, jax.tree.map(lambda _: NamedSharding(self.mesh, P()), shapes))

  @functools.cached_property
  def abstract_state(self) -> TrainState:
    """Shapes and dtypes of the replicated state."""
    replicated = lambda leaf: jax.ShapeDtypeStruct((self._local, *leaf.shape), leaf.dtype)
    return jax.tree.map(replicated, _shapes(self.task, self.seed))

  def _replicate(self, tree: PyTree) -> PyTree:
    return jax.pmap(lambda _, leaf: leaf, in_axes=(0, None))(np.arange(self._local), tree)

  def init(self) -> TrainState:
    """A fresh state, the same on every device."""
    state = jax.jit(self.task.init, compiler_options=_run_once())(jax.random.key(self.seed))
    return self._replicate(state.replace(frozen=self.task.frozen))

  def put(self, batch: Batch) -> Batch:
    """This process's rows, numpy [B/P, ...], on its devices: [devices, B/devices, ...]."""
    return self._put(self._cut(batch))

  def _cut(self, batch: Batch) -> Batch:
    return {name: values.reshape(self._local, -1, *values.shape[1:]) for name, values in batch.items()}

  @functools.cached_property
  def _put(self) -> Callable[[Batch], Batch]:
    return jax.pmap(lambda cut: cut)

  def put_stacked(self, batches: Sequence[Batch]) -> Batch:
    """Several batches for one dispatch: leaves [devices, K, B/devices, ...] on the devices."""
    cut = [self._cut(batch) for batch in batches]
    return self._put({name: np.stack([batch[name] for batch in cut], axis=1) for name in cut[0]})

  def put_dataset(self, dataset: Batch) -> None:
    """Keeps a whole dataset, numpy [N, ...], on every device; batches are then row numbers (`index`) into it."""
    dataset = dict(dataset)
    derived = jax.jit(functools.partial(_derived, self.task))
    self.dataset = self._replicate(dataset | derived(self.task.frozen, dataset))

  @functools.cached_property
  def train_step(self) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """`(state, batches, dataset or None) -> (state, metrics [devices, K])`; the given state's memory is reused."""

    def step(state: TrainState, batches: Batch, dataset: Batch | None) -> tuple[TrainState, dict[str, jax.Array]]:
      state, metrics = _run_steps(self.task, self.seed, state, batches, dataset)
      return state, mean_over_devices(metrics, PMAP_AXIS)

    return jax.pmap(step, axis_name=PMAP_AXIS, donate_argnums=0)

  @functools.cached_property
  def eval_step(self) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:
    """`(for_evaluation(state), batch) -> sums over the global batch`; 'count' is the number of rows summed."""

    def step(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
      metrics = self.task.eval_step(state, batch, jax.random.key(self.seed))
      return sum_over_devices(_weighted_sums(metrics, batch['weight']), PMAP_AXIS)

    return jax.pmap(step, axis_name=PMAP_AXIS)

  def abstract_metrics(self, batch: Batch) -> dict[str, jax.ShapeDtypeStruct]:
    """What `eval_step` returns for such a batch, without computing it; the step is traced once for both."""
    found = jax.eval_shape(self.eval_step, for_evaluation(self.abstract_state), self.put(batch))
    return {name: jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype) for name, shape in found.items()}

  @functools.cached_property
  def _render(self) -> Callable[..., dict[str, jax.Array]]:
    return jax.pmap(self.task.render, axis_name=PMAP_AXIS, in_axes=(0, 0, None))

  def render(self, state: TrainState, batch: Batch) -> dict[str, np.ndarray]:
    """The task's pictures of this process's rows, on the host: {name: float [N, H, W, 1 or 3] in [0, 1]}."""
    pictures = self._render(state, batch, jax.random.key(self.seed))
    return {
      name: np.concatenate([np.asarray(shard.data[0], np.float32) for shard in pictures[name].addressable_shards])
      for name in self.task.columns
      if name in pictures
    }

  def metrics_on_host(self, metrics: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """What a step returned, as numpy: all devices agree, so the first one speaks."""
    return {name: values[0] for name, values in on_host(dict(metrics)).items()}

  def to_saved(self, state: TrainState) -> TrainState:
    """The state as a checkpoint holds it: one copy, without the device axis and without what is never trained."""
    one = jax.tree.map(lambda leaf: leaf[0], on_host(state.replace(frozen=None)))
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(NamedSharding(self.mesh, P()), leaf), one)

  def from_saved(self, saved: TrainState) -> TrainState:
    """The state as the steps take it: a copy on every device."""
    host = on_host(saved)
    return self._replicate(host.replace(frozen=self.task.frozen))


Engine = JitEngine | PmapEngine

_ENGINES = {'jit': JitEngine, 'pmap': PmapEngine}


def make_engine(make_task: Callable[[str | None], Task], *, mode: str, fsdp: int, seed: int) -> Engine:
  """Compiles a task for all devices; `make_task` is told the axis name that the chosen way of compiling needs."""
  if mode not in _ENGINES:
    raise UserError(f'unknown parallel.mode {mode!r}; choose from {", ".join(_ENGINES)}')
  if mode == 'pmap' and fsdp != 1:
    raise UserError(f'parallel.fsdp={fsdp} needs parallel.mode=jit; pmap keeps a whole copy on every device')
  engine = _ENGINES[mode]
  return engine(make_task(engine.axis_name), seed=seed, mesh=make_mesh(fsdp))
