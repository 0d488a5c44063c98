"""Variables of networks that are used without training, drawn by numpy: to compile their `init` takes half a minute."""

import math
from collections.abc import Callable

import jax
import numpy as np

from jaxface.state import PyTree


def by_fan_in(shape: tuple[int, ...]) -> float:
  """Standard deviation of He's normal by fan-in, of a kernel whose last axis is its outputs."""
  return math.sqrt(2 / math.prod(shape[:-1]))


def by_fan_out(shape: tuple[int, ...]) -> float:
  """Likewise by fan-out."""
  return math.sqrt(2 / (math.prod(shape[:-2]) * shape[-1]))


def untrained(shapes: PyTree, deviation: Callable[[tuple[int, ...]], float] = by_fan_in, seed: int = 0) -> PyTree:
  """Numpy float32 in the places of `shapes`, the same at every call.

  What has two axes or more is normal, of the standard deviation that `deviation` gives its shape; a vector is ones
  where it is called 'scale' or 'var', else zeros.
  """
  random = np.random.default_rng(seed)

  def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if len(leaf.shape) < 2:
      return np.full(leaf.shape, path[-1].key in ('scale', 'var'), np.float32)
    return np.float32(deviation(leaf.shape)) * random.standard_normal(leaf.shape, np.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)
