"""BeautyGAN's generator and discriminators: wtjiang98/BeautyGAN_pytorch <-> `jaxface.models.beautygan`.

A checkpoint is one network's; the public code saves generator and both discriminators in files of their own.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util

from jaxface.convert import tensors
from jaxface.models.beautygan import BeautyGenerator, PatchDiscriminator

Path = tuple[str, ...]

# Public name -> path among the variables.
Paths = dict[str, Path]

# PyTorch before 0.4 kept statistics for instance norms, which nothing reads.
_UNREAD = ('running_mean', 'running_var', 'num_batches_tracked')


def _norm(public: str, *path: str) -> Iterator[tuple[str, Path]]:
  for theirs, ours in (('weight', 'scale'), ('bias', 'bias')):
    yield f'{public}.{theirs}', ('params', *path, ours)


def _pair(public: str, number: int, *path: str, conv: str = 'conv', norm: str = 'norm') -> Iterator[tuple[str, Path]]:
  """A convolution that is layer `number` of a sequence, and its norm behind it."""
  yield f'{public}.{number}.weight', ('params', *path, conv, 'kernel')
  yield from _norm(f'{public}.{number + 1}', *path, norm)


def _generator_paths(num_blocks: int) -> Paths:
  def layers():
    for theirs, ours in (('Branch_0', 'source'), ('Branch_1', 'reference')):
      for i in range(2):
        yield from _pair(theirs, 3 * i, ours, conv=f'conv{i}', norm=f'norm{i}')
    yield from _pair('main', 0, conv='mix', norm='mix_norm')
    for block in range(num_blocks):
      for i in range(2):
        yield from _pair(f'main.{3 + block}.main', 3 * i, f'block{block}', conv=f'conv{i}', norm=f'norm{i}')
    for i in range(2):
      yield from _pair('main', 3 + num_blocks + 3 * i, conv=f'up{i}', norm=f'up{i}_norm')
    for theirs, ours in (('branch_1', 'made_up'), ('branch_2', 'cleaned')):
      for i in range(2):
        yield from _pair(theirs, 3 * i, ours, conv=f'conv{i}', norm=f'norm{i}')
      yield f'{theirs}.6.weight', ('params', ours, 'conv2', 'kernel')

  return dict(layers())


def _discriminator_paths(num_layers: int) -> Paths:
  names = {f'main.{2 * i}': f'conv{i}' for i in range(num_layers + 1)} | {'conv1': 'score'}
  paths = {}
  for theirs, ours in names.items():
    paths[f'{theirs}.weight_bar'] = ('params', ours, 'kernel')
    paths[f'{theirs}.weight_u'] = ('spectral', ours, 'u')
    paths[f'{theirs}.weight_v'] = ('spectral', ours, 'v')
    if ours != 'score':
      paths[f'{theirs}.bias'] = ('params', ours, 'bias')
  return paths


def _to_public(array: np.ndarray, path: Path) -> np.ndarray:
  """A tensor in PyTorch's layout: kernels (out, in, height, width); the vector v in the order of in, height, width.

  A transposed convolution's are (in, out, height, width), Flax's (height, width, out, in): the same transposition.
  """
  if array.ndim == 4:
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
  return array.reshape(16, -1).T.ravel() if path[-1] == 'v' else array


def _to_flax(array: np.ndarray, path: Path) -> np.ndarray:
  """The inverse, float32."""
  array = np.asarray(array, np.float32)
  if array.ndim == 4:
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
  return array.reshape(-1, 16).T.ravel() if path[-1] == 'v' else array


def _canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  prefix = 'module.' if state and all(name.startswith('module.') for name in state) else ''
  named = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
  return {name: tensor for name, tensor in named.items() if not name.endswith(_UNREAD)}


def _width(state: Mapping[str, np.ndarray], name: str) -> int:
  """Channels that a convolution puts out; 1 where it is missing, which the comparison reports."""
  kernel = state.get(name)
  return kernel.shape[0] if kernel is not None and kernel.ndim == 4 else 1


def _variables(system: str, state: Mapping[str, np.ndarray], init: Callable[..., Any], paths: Paths) -> dict[str, Any]:
  shapes = traverse_util.flatten_dict(jax.eval_shape(init, jax.random.key(0)))
  # Strides of nothing: a shape's way through `_to_public` costs no memory.
  empty = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in shapes.items()}
  tensors.check(system, state, {name: _to_public(empty[path], path).shape for name, path in paths.items()})
  return traverse_util.unflatten_dict({path: _to_flax(state[name], path) for name, path in paths.items()})


def _state(variables: Mapping[str, Any], paths: Paths) -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(variables)
  return {name: _to_public(np.asarray(flat[path]), path) for name, path in paths.items()}


def _generator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[BeautyGenerator, dict[str, Any]]:
  """Module and variables of the public code's Generator_branch, `{'Branch_0.0.weight': array, ...}`."""
  state = _canonical(state)
  blocks = sum(name.startswith('main.') and name.endswith('.main.0.weight') for name in state)
  module = BeautyGenerator(_width(state, 'Branch_0.0.weight'), blocks)
  picture = np.zeros((1, 4, 4, 3), np.float32)
  return module, _variables(
    'beautygan_generator', state, lambda key: module.init(key, picture, picture), _generator_paths(blocks)
  )


def _generator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'Branch_0.0.weight': array, ...}`."""
  return _state(variables, _generator_paths(sum(name.startswith('block') for name in variables['params'])))


def _discriminator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[PatchDiscriminator, dict[str, Any]]:
  """Module and variables of the public code's Discriminator with spectral norm, `{'main.0.weight_bar': array, ...}`."""
  state = _canonical(state)
  convolutions = sum(name.startswith('main.') and name.endswith('.weight_bar') for name in state)
  layers = max(convolutions - 1, 1)
  module = PatchDiscriminator(_width(state, 'main.0.weight_bar'), layers)
  side = 3 * 2**layers
  picture = np.zeros((1, side, side, 3), np.float32)
  return module, _variables(
    'beautygan_discriminator', state, lambda key: module.init(key, picture), _discriminator_paths(layers)
  )


def _discriminator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'main.0.weight_bar': array, ...}`."""
  return _state(variables, _discriminator_paths(len(variables['params']) - 2))


class Conversion(NamedTuple):
  """One of several systems that a file converts."""

  from_reference: Callable[[Mapping[str, np.ndarray]], tuple[Any, dict[str, Any]]]
  to_reference: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


generator = Conversion(_generator_from_reference, _generator_to_reference)
discriminator = Conversion(_discriminator_from_reference, _discriminator_to_reference)
