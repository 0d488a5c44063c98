"""What devices tell each other, so that a step means the same under `jit` over a mesh and under `pmap`.

Under `jit` a step sees the whole batch, so nothing is left to tell: `axis_name` is None.
Under `pmap` a step sees one device's rows, and `axis_name` names the axis over which devices agree.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar('Tree')


def mean_over_devices(tree: Tree, axis_name: str | None) -> Tree:
  """Mean of every leaf over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def sum_over_devices(tree: Tree, axis_name: str | None) -> Tree:
  """Sum of every leaf over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def next_rows(rows: jax.Array, axis_name: str | None) -> jax.Array:
  """For each row of the whole batch the one behind it, for the last the first: [B, ...] -> [B, ...]."""
  if axis_name is None:
    return jnp.roll(rows, -1, axis=0)
  devices = jax.lax.axis_size(axis_name)
  after = jax.lax.ppermute(rows[:1], axis_name, [(i, (i - 1) % devices) for i in range(devices)])
  return jnp.concatenate([rows[1:], after])
