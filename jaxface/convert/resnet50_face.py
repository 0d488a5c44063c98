"""Face ResNet-50: VGGFace2's resnet50_ft_weight.pkl (VGGFace2-pytorch) <-> `jaxface.models.resnet50_face`."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxface.convert import numpy_pickle, tensors, torch_file
from jaxface.convert.resnet18 import canonical, width
from jaxface.models.resnet50_face import FaceResNet50

_EPSILON = 1e-5
_NORM = ('weight', 'bias', 'running_mean', 'running_var')


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Tensors of the published pickle, or of a file that `torch_file.read` knows."""
  return numpy_pickle.read(path) if numpy_pickle.is_pickle(path) else torch_file.read(path)


def _layers(blocks: tuple[int, ...]) -> Iterator[tuple[str, str, str]]:
  """Public names of every convolution and of the BatchNorm behind it, and the name in Flax."""
  yield 'conv1', 'bn1', 'conv1'
  for layer, count in enumerate(blocks, start=1):
    for block in range(count):
      theirs, ours = f'layer{layer}.{block}', f'layer{layer}_{block}'
      for i in (1, 2, 3):
        yield f'{theirs}.conv{i}', f'{theirs}.bn{i}', f'{ours}_conv{i}'
      if block == 0:
        yield f'{theirs}.downsample.0', f'{theirs}.downsample.1', f'{ours}_downsample'


def _num_blocks(names: Any, pattern: str) -> tuple[int, ...]:
  """Blocks of layers 1 to 4, by the highest block that a name has; 1 where there is none."""
  highest = [0, 0, 0, 0]
  for match in filter(None, (re.match(pattern, name) for name in names)):
    layer = int(match[1]) - 1
    highest[layer] = max(highest[layer], int(match[2]))
  return tuple(block + 1 for block in highest)


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[FaceResNet50, dict[str, Any]]:
  """Module and variables (numpy, float32), BatchNorm taken into the convolutions; `{'conv1.weight': array, ...}`.

  The classifier (fc) is left out. UserError where tensors are missing, unexpected or misshapen.
  """
  state = {name: np.asarray(tensor) for name, tensor in canonical(state).items()}
  module = FaceResNet50(
    widths=tuple(width(state, f'layer{layer}.0.conv1') for layer in range(1, 5)),
    blocks=_num_blocks(state, r'layer([1-4])\.(\d{1,2})\.'),
  )
  picture = jax.ShapeDtypeStruct((1, 224, 224, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), picture)['params']
  expected = {}
  for convolution, norm, ours in _layers(module.blocks):
    height, width_, inputs, outputs = shapes[ours]['kernel'].shape
    expected[f'{convolution}.weight'] = (outputs, inputs, height, width_)
    expected |= {f'{norm}.{part}': (outputs,) for part in _NORM}
  tensors.check('resnet50_face', state, expected)
  params = {ours: _folded(state, convolution, norm) for convolution, norm, ours in _layers(module.blocks)}
  return module, {'params': params}


def _folded(state, convolution, norm):
  kernel = state[f'{convolution}.weight'].astype(np.float64)
  weight, bias, mean, var = (state[f'{norm}.{part}'].astype(np.float64) for part in _NORM)
  factor = weight / np.sqrt(var + _EPSILON)
  folded = kernel.transpose(2, 3, 1, 0) * factor
  return {'kernel': np.ascontiguousarray(folded, np.float32), 'bias': (bias - mean * factor).astype(np.float32)}


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A state that computes the same, with BatchNorms that only add the biases; without the classifier."""
  params = variables['params']
  state = {}
  for convolution, norm, ours in _layers(_num_blocks(params, r'layer([1-4])_(\d+)_')):
    bias = np.asarray(params[ours]['bias'])
    one, zero = np.ones_like(bias), np.zeros_like(bias)
    state[f'{convolution}.weight'] = np.ascontiguousarray(np.asarray(params[ours]['kernel']).transpose(3, 2, 0, 1))
    values = (one, bias, zero, one - np.float32(_EPSILON))
    state |= {f'{norm}.{part}': value for part, value in zip(_NORM, values, strict=True)}
  return state
