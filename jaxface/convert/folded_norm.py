"""Networks that are only used: their public BatchNorms are taken into the convolutions before them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxface.convert import tensors

# Public names of a convolution without bias and of the BatchNorm behind it, and the convolution's name in Flax.
Layer = tuple[str, str, str]

_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def variables_from(
  system: str,
  state: Mapping[str, np.ndarray],
  shapes: Mapping[tensors.Path, tuple[int, ...]],
  layers: Sequence[Layer],
  epsilon: float,
) -> dict[str, Any]:
  """Variables (numpy, float32) of such `shapes` from a checkpoint's tensors; `epsilon` is the BatchNorms'.

  UserError where tensors are missing, unexpected or misshapen.
  """
  expected = {}
  for convolution, norm, ours in layers:
    height, width, inputs, outputs = shapes['params', ours, 'kernel']
    expected[f'{convolution}.weight'] = (outputs, inputs, height, width)
    expected |= {f'{norm}.{part}': (outputs,) for part in _NORM}
  tensors.check(system, state, expected)
  params = {}
  for convolution, norm, ours in layers:
    weight, bias, mean, var = (np.asarray(state[f'{norm}.{part}'], np.float64) for part in _NORM)
    factor = weight / np.sqrt(var + epsilon)
    kernel = np.asarray(state[f'{convolution}.weight'], np.float64).transpose(2, 3, 1, 0) * factor
    params[ours] = {
      'kernel': np.ascontiguousarray(kernel, np.float32),
      'bias': (bias - mean * factor).astype(np.float32),
    }
  return {'params': params}


def state_from(variables: Mapping[str, Any], layers: Sequence[Layer], epsilon: float) -> dict[str, np.ndarray]:
  """A state that computes the same, with BatchNorms that only add the biases."""
  state = {}
  for convolution, norm, ours in layers:
    params = variables['params'][ours]
    bias = np.asarray(params['bias'])
    one, zero = np.ones_like(bias), np.zeros_like(bias)
    state[f'{convolution}.weight'] = np.ascontiguousarray(np.asarray(params['kernel']).transpose(3, 2, 0, 1))
    values = (one, bias, zero, one - np.float32(epsilon))
    state |= {f'{norm}.{part}': value for part, value in zip(_NORM, values, strict=True)}
  return state
