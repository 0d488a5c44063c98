"""The state of a training run: one pytree that holds all its arrays."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


@flax.struct.dataclass
class TrainState:
  """Everything a train step reads and changes; several networks or optimizers are several keys of the dictionaries.

  Modules and optimizers live in the task, so that a state can be saved, sharded, or described by shapes alone.
  """

  step: jax.Array  # int32 scalar: updates done so far; the only step counter there is.
  params: PyTree  # float32, trained.
  model_state: PyTree  # moving statistics and the like: changed by the forward pass, never by a gradient.
  opt_state: PyTree
  ema: PyTree = None  # averaged copy of `params` for evaluation, or None.
  frozen: PyTree = None  # networks that are used but never trained: an argument of the step, not a constant of it.


def for_evaluation(state: TrainState) -> TrainState:
  """The part of a state that evaluation and drawing read: the averaged parameters where the task keeps them."""
  return state.replace(params=state.params if state.ema is None else state.ema, opt_state=None, ema=None)


def first_state(params: PyTree, model_state: PyTree, opt_state: PyTree, *, ema: PyTree = None) -> TrainState:
  """A fresh state; `ema` are those of the parameters that an average is kept of, None for no averaged copy."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema=ema,
  )


def update_ema(ema: PyTree, params: PyTree, decay: float | jax.Array) -> PyTree:
  """`decay * ema + (1 - decay) * params`, leaf by leaf; None stays None."""
  if ema is None:
    return None
  return jax.tree.map(lambda average, new: decay * average + (1 - decay) * new, ema, params)


def count(tree: PyTree) -> int:
  """Number of scalars in a pytree of arrays or of their shapes."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def size_in_bytes(tree: PyTree) -> int:
  """Bytes of a pytree of arrays or of their shapes."""
  return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def parameter_table(params: PyTree) -> str:
  """One line a tensor: its path, shape and size; the total last."""
  rows = []
  for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    rows.append(f'{name:<60} {leaf.shape!s:>22} {int(np.prod(leaf.shape)):>12,}')
  return '\n'.join([*rows, f'{"total":<60} {"":>22} {count(params):>12,}'])
