"""torchvision's ResNet-18 <-> `jaxface.models.resnet`, and what it shares with networks built on it.

PyTorch's kernels are (out, in, height, width), Flax's (height, width, in, out); vectors agree. A BatchNorm has a
counter `num_batches_tracked`, which nothing reads; older files lack it. It is dropped, and given back as 0.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxface.convert import tensors
from jaxface.models.resnet import ResNet18

Path = tuple[str, ...]

# Public names of a convolution and of the BatchNorm behind it (None where there is none), and their path in Flax.
Layer = tuple[str, str | None, Path]

_NORM = {
  'weight': ('params', 'scale'),
  'bias': ('params', 'bias'),
  'running_mean': ('batch_stats', 'mean'),
  'running_var': ('batch_stats', 'var'),
}
_COUNTER = 'num_batches_tracked'


def layers(prefix: str = '', path: Path = ()) -> Iterator[Layer]:
  """The layers of a ResNet-18 whose public names begin with `prefix` and which lies at `path`."""
  yield f'{prefix}conv1', f'{prefix}bn1', (*path, 'stem')
  for layer in range(1, 5):
    for block in range(2):
      name, where = f'{prefix}layer{layer}.{block}', (*path, f'layer{layer}_{block}')
      yield f'{name}.conv1', f'{name}.bn1', (*where, 'first')
      yield f'{name}.conv2', f'{name}.bn2', (*where, 'second')
      if layer > 1 and block == 0:
        yield f'{name}.downsample.0', f'{name}.downsample.1', (*where, 'shortcut')


def width(state: Mapping[str, np.ndarray], convolution: str) -> int:
  """Channels that the convolution of that name puts out; 1 where it is missing, which `variables_from` reports."""
  kernel = state.get(f'{convolution}.weight')
  return kernel.shape[0] if kernel is not None and kernel.ndim == 4 else 1


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Without counters and classifier, and without the prefix of a model trained on several devices."""
  prefix = 'module.' if state and all(name.startswith('module.') for name in state) else ''
  named = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
  return {name: tensor for name, tensor in named.items() if not name.endswith(_COUNTER) and not name.startswith('fc.')}


def _paths(network: Iterable[Layer]) -> dict[str, Path]:
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
  paths = _paths(network)
  picture = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
  shapes = traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), picture))

  def public_shape(path: Path) -> tuple[int, ...]:
    shape = shapes[path].shape
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape

  tensors.check(system, state, {name: public_shape(path) for name, path in paths.items()})
  flat = {}
  for name, path in paths.items():
    tensor = np.asarray(state[name], np.float32)
    flat[path] = np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)) if tensor.ndim == 4 else tensor
  return traverse_util.unflatten_dict(flat)


def variables_to(variables: Mapping[str, Any], network: Iterable[Layer]) -> dict[str, np.ndarray]:
  """The inverse of `variables_from`, with counters."""
  flat = traverse_util.flatten_dict(variables)
  state = {}
  for name, path in _paths(network).items():
    array = np.asarray(flat[path])
    state[name] = np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
    if name.endswith('.running_var'):
      state[name.removesuffix('running_var') + _COUNTER] = np.zeros((), np.int64)
  return state


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[ResNet18, dict]:
  """Module and variables of torchvision's network, `{'conv1.weight': array, ...}`; its classifier is left out."""
  state = canonical(state)
  module = ResNet18(tuple(width(state, f'layer{layer}.0.conv1') for layer in range(1, 5)))
  return module, variables_from('resnet18', state, module, layers())


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'conv1.weight': array, ...}`, without classifier."""
  return variables_to(variables, layers())
