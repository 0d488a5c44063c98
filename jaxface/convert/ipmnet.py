"""IPM-Net's generator and discriminators: huangzhikun1995/IPM-Net <-> `jaxface.models.ipmnet`.

A checkpoint is one network's; the public code's generator file holds it twice, as entries 'a' and 'b', and its
discriminators' file one for each domain.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flax import linen as nn

from jaxface.convert import tensors
from jaxface.models.ipmnet import IPMNet, MultiScaleDiscriminator

# Public name of a layer, its path in Flax.
Layer = tuple[str, tensors.Path]

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


def _paths(layers: Iterator[Layer]) -> tensors.Paths:
  layers = list(layers)
  paths = tensors.layer_paths(layers)
  for public, path in layers:
    if path[-1].startswith('up'):
      norm = public.removesuffix('conv') + 'norm'
      paths |= {f'{norm}.gamma': ('params', *path, 'scale'), f'{norm}.beta': ('params', *path, 'shift')}
  return paths


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's, in which the last layers are 1x1 convolutions, linear ones here."""
  tensor = tensors.pytorch(name, array)
  return tensor[..., None, None] if tensor.ndim == 2 and '.fc.' not in name else tensor


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors that are read, without the prefix of a model trained on several devices."""
  # `sf` is a part of the generator that its forward pass never meets.
  return tensors.canonical(state, begins=('sf.',), ends=_UNREAD)


def _variables(
  system: str, state: Mapping[str, np.ndarray], module: nn.Module, layers: Iterator[Layer], pictures: int
) -> dict[str, Any]:
  # Large enough for several scales of a discriminator.
  return tensors.variables_from(system, state, module, _paths(layers), layout=_layout, side=512, pictures=pictures)


def _generator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[IPMNet, dict[str, Any]]:
  """Module and variables of the public code's AdaINGen, `{'enc_style.model.0.conv.weight': array, ...}`."""
  state = canonical(state)
  module = IPMNet(
    dim=tensors.width(state, 'enc_style.model.0.conv.weight'),
    mlp_dim=tensors.width(state, 'mlp.model.0.fc.weight'),
    style_dim=tensors.width(state, 'enc_style.model.6.weight'),
    num_downsamples=tensors.count(state, r'enc_content\.model\.[1-9]\d*\.conv\.weight'),
    num_blocks=tensors.count(state, r'dec\.model\.0\.model\.\d+\.model\.0\.conv\.weight'),
  )
  layers = _generator_layers(module.num_downsamples, module.num_blocks)
  return module, _variables('ipmnet_generator', state, module, layers, pictures=2)


def _generator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'enc_style.model.0.conv.weight': array, ...}`, with what the public code wants to find but never uses."""
  params = variables['params']
  num_downsamples = sum(name.startswith('down') for name in params['content'])
  num_blocks = sum(name.startswith('block') for name in params['content'])
  state = tensors.state_from(variables, _paths(_generator_layers(num_downsamples, num_blocks)), _layout)
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
    dim=tensors.width(state, 'cnns.0.0.conv.weight'),
    num_layers=tensors.count(state, r'cnns\.0\.\d+\.conv\.weight'),
    num_scales=tensors.count(state, r'cnns\.\d+\.0\.conv\.weight'),
  )
  layers = _discriminator_layers(module.num_layers, module.num_scales)
  return module, _variables('ipmnet_discriminator', state, module, layers, pictures=1)


def _discriminator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'cnns.0.0.conv.weight': array, ...}`."""
  names = variables['params'].keys()
  num_scales = sum(name.endswith('_out') for name in names)
  num_layers = sum(name.startswith('scale0_conv') for name in names)
  return tensors.state_from(variables, _paths(_discriminator_layers(num_layers, num_scales)), _layout)


generator = tensors.Conversion(_generator_from_reference, _generator_to_reference)
discriminator = tensors.Conversion(_discriminator_from_reference, _discriminator_to_reference)
