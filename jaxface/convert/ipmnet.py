"""IPM-Net's generator and discriminators: huangzhikun1995/IPM-Net <-> `jaxface.models.ipmnet`.

A checkpoint is one network's; the public code's generator file holds it twice, as entries 'a' and 'b', and its
discriminators' file one for each domain.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from flax import traverse_util

from jaxface.convert import tensors
from jaxface.models.ipmnet import IPMNet, MultiScaleDiscriminator

# Public name of a layer, its path in Flax.
Layer = tuple[str, tuple[str, ...]]

# Statistics that nothing reads: placeholders of adaptive norms, and what old files kept for instance norms.
_UNREAD = ('running_mean', 'running_var', 'num_batches_tracked')


def _generator_layers(num_downsamples: int, num_blocks: int) -> Iterator[Layer]:
  def blocks(public: str, *path: str) -> Iterator[Layer]:
    for block in range(num_blocks):
      for i, ours in enumerate(('first', 'second')):
        yield f'{public}.model.{block}.model.{i}.conv', (*path, f'block{block}', ours)

  for part, downsamples in (('style', 4), ('content', num_downsamples)):
    yield f'enc_{part}.model.0.conv', (part, 'stem')
    for i in range(downsamples):
      yield f'enc_{part}.model.{i + 1}.conv', (part, f'down{i}')
  yield 'enc_style.model.6', ('style', 'out')
  yield from blocks(f'enc_content.model.{num_downsamples + 1}', 'content')
  yield from blocks('dec.model.0', 'decoder')
  for i in range(num_downsamples):
    yield f'dec.model.{2 * i + 2}.conv', ('decoder', f'up{i}')
  yield f'dec.model.{2 * num_downsamples + 1}.conv', ('decoder', 'out')
  yield 'dec.final_conv.0', ('decoder', 'final')
  for i in range(3):
    yield f'mlp.model.{i}.fc', ('decoder', f'mlp{i}')


def _discriminator_layers(num_layers: int, num_scales: int) -> Iterator[Layer]:
  for scale in range(num_scales):
    for layer in range(num_layers):
      yield f'cnns.{scale}.{layer}.conv', (f'scale{scale}_conv{layer}',)
    yield f'cnns.{scale}.{num_layers}', (f'scale{scale}_out',)


def _paths(layers: Iterator[Layer]) -> dict[str, tuple[str, ...]]:
  paths = {}
  for public, path in layers:
    paths |= {f'{public}.weight': ('params', *path, 'kernel'), f'{public}.bias': ('params', *path, 'bias')}
    if path[-1].startswith('up'):
      norm = public.removesuffix('conv') + 'norm'
      paths |= {f'{norm}.gamma': ('params', *path, 'scale'), f'{norm}.beta': ('params', *path, 'shift')}
  return paths


def _to_public(name: str, array: np.ndarray) -> np.ndarray:
  """A tensor in PyTorch's layout, (out, in, height, width). 1x1 convolutions are linear layers here."""
  if array.ndim == 4:
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1))
  if array.ndim == 2:
    array = np.ascontiguousarray(array.T)
    return array if '.fc.' in name else array[..., None, None]
  return array


def _to_flax(name: str, array: np.ndarray) -> np.ndarray:
  """The inverse, float32."""
  array = np.asarray(array, np.float32)
  if array.ndim == 4 and not _is_linear(name):
    return np.ascontiguousarray(array.transpose(2, 3, 1, 0))
  if array.ndim > 1:
    return np.ascontiguousarray(array.reshape(array.shape[:2]).T)
  return array


def _is_linear(name: str) -> bool:
  return name == 'enc_style.model.6.weight' or bool(re.fullmatch(r'cnns\.\d+\.\d+\.weight', name))


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors that are read, without the prefix of a model trained on several devices."""
  prefix = 'module.' if state and all(name.startswith('module.') for name in state) else ''
  named = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
  # `sf` is a part of the generator that its forward pass never meets.
  return {name: t for name, t in named.items() if not name.endswith(_UNREAD) and not name.startswith('sf.')}


def _size(state: Mapping[str, np.ndarray], name: str) -> int:
  """Channels that a layer puts out; 1 where it is missing, which the comparison reports."""
  kernel = state.get(f'{name}.weight')
  return kernel.shape[0] if kernel is not None and kernel.ndim > 1 else 1


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
  """How many tensors have such a name; at least 1."""
  return max(sum(bool(re.fullmatch(pattern, name)) for name in state), 1)


def _variables(
  system: str, state: Mapping[str, np.ndarray], module: nn.Module, inputs: int, layers: Iterator[Layer]
) -> dict[str, Any]:
  """Variables (numpy, float32) for a module that takes so many pictures."""
  paths = _paths(layers)
  picture = jax.ShapeDtypeStruct((1, 512, 512, 3), np.float32)
  shapes = traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *[picture] * inputs))
  # Strides of nothing: a shape's way through `_to_public` costs no memory.
  empty = {name: np.broadcast_to(np.float32(0), shapes[path].shape) for name, path in paths.items()}
  tensors.check(system, state, {name: _to_public(name, array).shape for name, array in empty.items()})
  return traverse_util.unflatten_dict({path: _to_flax(name, state[name]) for name, path in paths.items()})


def _state(variables: Mapping[str, Any], layers: Iterator[Layer]) -> dict[str, np.ndarray]:
  flat = traverse_util.flatten_dict(variables)
  return {name: _to_public(name, np.asarray(flat[path])) for name, path in _paths(layers).items()}


def _generator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[IPMNet, dict[str, Any]]:
  """Module and variables of the public code's AdaINGen, `{'enc_style.model.0.conv.weight': array, ...}`."""
  state = canonical(state)
  module = IPMNet(
    dim=_size(state, 'enc_style.model.0.conv'),
    mlp_dim=_size(state, 'mlp.model.0.fc'),
    style_dim=_size(state, 'enc_style.model.6'),
    num_downsamples=_count(state, r'enc_content\.model\.[1-9]\d*\.conv\.weight'),
    num_blocks=_count(state, r'dec\.model\.0\.model\.\d+\.model\.0\.conv\.weight'),
  )
  layers = _generator_layers(module.num_downsamples, module.num_blocks)
  return module, _variables('ipmnet_generator', state, module, 2, layers)


def _generator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'enc_style.model.0.conv.weight': array, ...}`, with what the public code wants to find but never uses."""
  params = variables['params']
  num_downsamples = sum(name.startswith('down') for name in params['content'])
  num_blocks = sum(name.startswith('block') for name in params['content'])
  state = _state(variables, _generator_layers(num_downsamples, num_blocks))
  for name in [name for name in state if name.startswith('dec.model.0.') and name.endswith('.conv.bias')]:
    norm = name.removesuffix('conv.bias') + 'norm'
    state |= {f'{norm}.running_mean': np.zeros_like(state[name]), f'{norm}.running_var': np.ones_like(state[name])}
  for block in range(4):
    for i in range(2):
      conv = f'sf.model.{block}.model.{i}.conv'
      state |= {f'{conv}.weight': np.zeros((3, 3, 3, 3), np.float32), f'{conv}.bias': np.zeros(3, np.float32)}
  return state


def _discriminator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[MultiScaleDiscriminator, dict[str, Any]]:
  """Module and variables of the public code's MsImageDis, `{'cnns.0.0.conv.weight': array, ...}`."""
  state = canonical(state)
  module = MultiScaleDiscriminator(
    dim=_size(state, 'cnns.0.0.conv'),
    num_layers=_count(state, r'cnns\.0\.\d+\.conv\.weight'),
    num_scales=_count(state, r'cnns\.\d+\.0\.conv\.weight'),
  )
  layers = _discriminator_layers(module.num_layers, module.num_scales)
  return module, _variables('ipmnet_discriminator', state, module, 1, layers)


def _discriminator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'cnns.0.0.conv.weight': array, ...}`."""
  names = variables['params'].keys()
  num_scales = sum(name.endswith('_out') for name in names)
  num_layers = sum(name.startswith('scale0_conv') for name in names)
  return _state(variables, _discriminator_layers(num_layers, num_scales))


class Conversion(NamedTuple):
  """One of several systems that a file converts."""

  from_reference: Callable[[Mapping[str, np.ndarray]], tuple[Any, dict[str, Any]]]
  to_reference: Callable[[Mapping[str, Any]], dict[str, np.ndarray]]


generator = Conversion(_generator_from_reference, _generator_to_reference)
discriminator = Conversion(_discriminator_from_reference, _discriminator_to_reference)
