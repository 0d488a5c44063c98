"""torchvision's ResNet-18 <-> `jaxface.models.resnet`, and what it shares with networks built on it.

A public BatchNorm has a counter `num_batches_tracked`, which nothing reads; older files lack it. It is dropped, and
given back as 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxface.convert import tensors
from jaxface.models.resnet import ResNet18

# Public names of a convolution and of the BatchNorm behind it (None where there is none), and their path in Flax.
Layer = tuple[str, str | None, tensors.Path]

_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_COUNTER = 'num_batches_tracked'


def layers(prefix: str = '', path: tensors.Path = ()) -> Iterator[Layer]:
  """The layers of a ResNet-18 whose public names begin with `prefix` and which lies at `path`."""
  yield f'{prefix}conv1', f'{prefix}bn1', (*path, 'stem')
  for layer in range(1, 5):
    for block in range(2):
      name, where = f'{prefix}layer{layer}.{block}', (*path, f'layer{layer}_{block}')
      yield f'{name}.conv1', f'{name}.bn1', (*where, 'first')
      yield f'{name}.conv2', f'{name}.bn2', (*where, 'second')
      if layer > 1 and block == 0:
        yield f'{name}.downsample.0', f'{name}.downsample.1', (*where, 'shortcut')


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without counters and classifier, and without the prefix of a model trained on several devices."""
  return tensors.canonical(state, begins=('fc.',), ends=(_COUNTER,))


def _paths(network: Iterable[Layer]) -> tensors.Paths:
  paths = {}
  for convolution, norm, path in network:
    paths[f'{convolution}.weight'] = ('params', *path, *(('kernel',) if norm is None else ('conv', 'kernel')))
    if norm is not None:
      for name, (collection, leaf) in _NORM.items():
        paths[f'{norm}.{name}'] = (collection, *path, 'norm', leaf)
  return paths


def variables_from(
  system: str, state: Mapping[str, np.ndarray], module: nn.Module, network: Iterable[Layer]
) -> dict[str, Any]:
  """Variables (numpy, float32) for `module` from tensors in `canonical` form; UserError lists those that do not fit."""
  return tensors.variables_from(system, state, module, _paths(network))


def state_from(variables: Mapping[str, Any], network: Iterable[Layer]) -> dict[str, np.ndarray]:
  """The inverse of `variables_from`, with counters."""
  state = tensors.state_from(variables, _paths(network))
  norms = [name.removesuffix('running_var') for name in state if name.endswith('.running_var')]
  return state | {norm + _COUNTER: np.zeros((), np.int64) for norm in norms}


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[ResNet18, dict]:
  """Module and variables of torchvision's network, `{'conv1.weight': array, ...}`; its classifier is left out."""
  state = canonical(state)
  module = ResNet18(tuple(tensors.width(state, f'layer{layer}.0.conv1.weight') for layer in range(1, 5)))
  return module, variables_from('resnet18', state, module, layers())


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'conv1.weight': array, ...}`, without classifier."""
  return state_from(variables, layers())
