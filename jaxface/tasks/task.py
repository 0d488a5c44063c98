"""What a task is: a handful of pure functions over a state pytree, which the train loop compiles and calls."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxface import labels
from jaxface.errors import UserError
from jaxface.state import PyTree, TrainState

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class Compared(NamedTuple):
  """Pictures for metrics by networks, float [B, H, W, 3] in [0, 1].

  Attributes:
    pairs: what should be alike, (true, made) by protocol: LPIPS.
    has: for pairs that exist in some rows only, by protocol: [B], 1 where they do and 0 elsewhere.
    real: what made pictures should be like as a whole.
    sets: made pictures by protocol: FID against `real`; with each other, diversity.
    persons: what should show one person, by protocol: identity.
    repeats: two pictures made of the same input, by protocol: diversity. Where there are none, it is that of `sets`.
    asked: (label map int [B, H, W] in the project's order, picture that should follow it) by protocol: mIoU.
  """

  pairs: Mapping[str, tuple[jax.Array, jax.Array]] = {}
  has: Mapping[str, jax.Array] = {}
  real: jax.Array | None = None
  sets: Mapping[str, jax.Array] = {}
  persons: Mapping[str, tuple[jax.Array, jax.Array]] = {}
  repeats: Mapping[str, tuple[jax.Array, jax.Array]] = {}
  asked: Mapping[str, tuple[jax.Array, jax.Array]] = {}


class Task(Protocol):
  """One system: its networks, losses and optimizers. Implementations are frozen dataclasses.

  A batch holds the fields named by `batch_fields` and `optional_fields`, uint8 with B rows, and

  - 'row' int32 [B]: each row's number in the global batch. Randomness per example is drawn from it (`row_keys`), so
    that the same rows get the same noise on one device or many, in one piece or accumulated.
  - in evaluation 'weight' float32 [B]: 1 for a real row, 0 for one that fills up the last batch.
  """

  batch_fields: tuple[str, ...]
  optional_fields: tuple[str, ...]  # Also given where the dataset can.
  # A task may have `derive(frozen, records [N, ...]) -> fields [N, ...]`, functions of a record alone: of a dataset
  # that is kept on the devices they are computed once, and training batches then hold them, too.
  columns: tuple[str, ...]  # What `render` may return, in the order to show it.
  given: tuple[str, ...]  # Columns of `render` that are input: a comparison of runs shows them first.
  comparison: tuple[str, ...]  # Columns of `render` that a comparison of runs shows, the first that there is.
  frozen: PyTree  # Networks that are used and never trained, numpy, for `state.frozen`; None where there are none.
  protocol: dict[str, str]  # What the names of the metrics leave open: variants, windows, sizes.

  def init(self, key: jax.Array) -> TrainState:
    """A fresh state, without the frozen networks: the engine adds them."""
    ...

  def train_step(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
    """One update. Metrics are scalars and hold at least 'loss' and 'grad_norm'; `key` is a function of (seed, step)."""
    ...

  def eval_step(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Measures per example, each [B] or [B, ...]; the evaluator averages them over all real rows."""
    ...

  def summary(self, means: Mapping[str, np.ndarray]) -> dict[str, float]:
    """What to report, in order, from the averages over a split of what `eval_step` returned (float64, [] or [...])."""
    ...

  def compared(self, state: TrainState, batch: Batch) -> Compared:
    """What metrics by networks compare; nothing where the task makes no pictures."""
    ...

  def render(self, state: TrainState, batch: Batch, key: jax.Array) -> Metrics:
    """Pictures to look at, {column name: float [B, H, W, 1 or 3] in [0, 1]}."""
    ...


def row_keys(key: jax.Array, batch: Batch) -> jax.Array:
  """A random key for every row of a batch, [B], whatever device or micro-batch the row is in."""
  return jax.vmap(lambda row: jax.random.fold_in(key, row))(batch['row'])


def together(*parts: jax.Array) -> jax.Array:
  """Batches [B, ...] as one [n B, ...], row by row, so that rows stay on the device they are on."""
  stacked = jnp.stack(parts, axis=1)
  return stacked.reshape(-1, *stacked.shape[2:])


def apart(x: jax.Array, parts: int) -> tuple[jax.Array, ...]:
  """Undoes `together`."""
  return tuple(jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0))


def coloured(label: jax.Array) -> jax.Array:
  """Label maps [B, H, W] in the project's palette, float32 [B, H, W, 3] in [0, 1]; pixels of no class are white."""
  palette = np.concatenate([labels.PALETTE, np.full((1, 3), 255, np.uint8)])
  return jnp.asarray(palette)[label].astype(jnp.float32) / 255


def compute_dtype(name: str) -> jnp.dtype:
  """The number format that networks compute in, from `config.model.dtype`; parameters are float32 in any case."""
  if name not in ('float32', 'bfloat16'):
    raise UserError(f'unknown model.dtype {name!r}; choose from float32, bfloat16')
  return jnp.dtype(name)
