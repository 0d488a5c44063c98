"""Face ResNet-50: VGGFace2's resnet50_ft_weight.pkl (VGGFace2-pytorch) <-> `jaxface.models.resnet50_face`."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxface.convert import folded_norm, numpy_pickle, resnet18, tensors, torch_file
from jaxface.models.resnet50_face import FaceResNet50

_EPSILON = 1e-5


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """Tensors of the published pickle, or of a file that `torch_file.read` knows."""
  return numpy_pickle.read(path) if numpy_pickle.is_pickle(path) else torch_file.read(path)


def _layers(blocks: tuple[int, ...]) -> Iterator[folded_norm.Layer]:
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
  state = resnet18.canonical(state)
  module = FaceResNet50(
    widths=tuple(tensors.width(state, f'layer{layer}.0.conv1.weight') for layer in range(1, 5)),
    blocks=_num_blocks(state, r'layer([1-4])\.(\d{1,2})\.'),
  )
  shapes, layers = tensors.shapes(module, side=224), list(_layers(module.blocks))
  return module, folded_norm.variables_from('resnet50_face', state, shapes, layers, _EPSILON)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """A state that computes the same, with BatchNorms that only add the biases; without the classifier."""
  layers = list(_layers(_num_blocks(variables['params'], r'layer([1-4])_(\d+)_')))
  return folded_norm.state_from(variables, layers, _EPSILON)
