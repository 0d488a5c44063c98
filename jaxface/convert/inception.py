"""FID's Inception: pytorch-fid's pt_inception-2015-12-05-6726825d.pth <-> `jaxface.models.inception`."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxface.convert import tensors
from jaxface.models.inception import InceptionFeatures

_EPSILON = 1e-3
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def _reference_name(layer: str) -> str:
  """'Mixed_5b_branch1x1' -> 'Mixed_5b.branch1x1'."""
  return layer.replace('_branch', '.branch')


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[InceptionFeatures, dict[str, Any]]:
  """Module and variables (numpy, float32), BatchNorm taken into the convolutions.

  UserError where tensors are missing, unexpected or misshapen. The classifier (fc) and counters of batches are ignored.
  """
  state = {
    name: np.asarray(tensor)
    for name, tensor in state.items()
    if not name.startswith('fc.') and not name.endswith('.num_batches_tracked')
  }
  module = InceptionFeatures()
  picture = jax.ShapeDtypeStruct((1, 75, 75, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), picture)['params']
  expected = {}
  for layer, shape in shapes.items():
    height, width, inputs, outputs = shape['kernel'].shape
    name = _reference_name(layer)
    expected[f'{name}.conv.weight'] = (outputs, inputs, height, width)
    expected |= {f'{name}.bn.{part}': (outputs,) for part in _NORM}
  tensors.check('inception', state, expected)
  return module, {'params': {layer: _folded(state, _reference_name(layer)) for layer in shapes}}


def _folded(state, name):
  kernel = state[f'{name}.conv.weight'].astype(np.float64)
  weight, bias, mean, var = (state[f'{name}.bn.{part}'].astype(np.float64) for part in _NORM)
  factor = weight / np.sqrt(var + _EPSILON)
  folded = kernel.transpose(2, 3, 1, 0) * factor
  return {
    'kernel': np.ascontiguousarray(folded, np.float32),
    'bias': (bias - mean * factor).astype(np.float32),
  }


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A state that computes the same, with BatchNorms that only add the biases; without the classifier."""
  state = {}
  for layer, params in variables['params'].items():
    name = _reference_name(layer)
    bias = np.asarray(params['bias'])
    one, zero = np.ones_like(bias), np.zeros_like(bias)
    state[f'{name}.conv.weight'] = np.ascontiguousarray(np.asarray(params['kernel']).transpose(3, 2, 0, 1))
    values = (one, bias, zero, one - np.float32(_EPSILON))
    state |= {f'{name}.bn.{part}': value for part, value in zip(_NORM, values, strict=True)}
  return state
