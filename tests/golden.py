"""Stored numbers of reference implementations, and the rule that gives their parameters values.

A case is `tests/goldens/<case>.json` (what it is, parameter names and shapes, seed, tolerances) and `.npz` (inputs and
outputs). Parameter values are not stored: name, shape and seed determine them.
"""

import json
import math
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

GOLDENS = pathlib.Path(__file__).parent / 'goldens'


class Initialised(NamedTuple):
  """What a conversion asks of a module, for part of one."""

  init: Callable[..., Any]


def parameter(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
  """Value of the tensor `name` of a golden: float32, or int64 zeros for BatchNorm's `num_batches_tracked`.

  The last dotted part of the name picks the distribution: statistics near (0, 1), one-dimensional scales near 1, other
  vectors near 0, and everything else normal with variance 1 / (size / shape[0]).
  """
  kind = name.split('.')[-1]
  if kind == 'num_batches_tracked':
    return np.zeros(shape, np.int64)
  draw = np.random.default_rng([zlib.crc32(name.encode()), seed]).standard_normal(shape)
  centred_on_one = kind in ('running_var', 'moving_variance')
  if centred_on_one:
    draw = np.abs(draw)
  elif kind not in ('running_mean', 'moving_mean'):
    if len(shape) != 1:
      return (draw / math.sqrt(max(math.prod(shape) / shape[0], 1))).astype(np.float32)
    centred_on_one = kind in ('weight', 'gamma', 'scale')
  return (centred_on_one + 0.1 * draw).astype(np.float32)


def load(case: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
  """Golden `case`, such as 'ssim/vif': its description, its parameters by name, and its arrays."""
  path = GOLDENS / case
  about = json.loads(path.with_suffix('.json').read_text())
  factors = about.get('scale', {})
  state = {}
  for name, shape in about.get('parameters', {}).items():
    state[name] = parameter(name, tuple(shape), about.get('seed', 0))
    if name in factors:
      state[name] = state[name] * np.float32(factors[name])
  with np.load(path.with_suffix('.npz')) as arrays:
    return about, state, dict(arrays)


def nhwc(array: np.ndarray) -> jax.Array:
  """PyTorch's pictures, channels before rows, as ours."""
  return jnp.asarray(array.transpose(0, 2, 3, 1))


def nchw(array: jax.Array) -> np.ndarray:
  """Our pictures as PyTorch's."""
  return np.asarray(array).transpose(0, 3, 1, 2)
