"""Reductions that mean the same under `jit` over a mesh and under `pmap`.

Under `jit` a step sees the whole batch, so nothing is left to reduce: `axis_name` is None and these return their input.
Under `pmap` a step sees one device's rows, and `axis_name` names the axis over which devices agree.
"""

from typing import TypeVar

import jax

Tree = TypeVar('Tree')


def mean_over_devices(tree: Tree, axis_name: str | None) -> Tree:
  """Mean of every leaf over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def sum_over_devices(tree: Tree, axis_name: str | None) -> Tree:
  """Sum of every leaf over the devices of `axis_name`."""
  return tree if axis_name is None else jax.lax.psum(tree, axis_name)
