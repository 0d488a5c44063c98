"""BeautyGAN's generator and discriminators: wtjiang98/BeautyGAN_pytorch <-> `jaxface.models.beautygan`.

A checkpoint is one network's; the public code saves generator and both discriminators in files of their own.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxface.convert import tensors
from jaxface.models.beautygan import BeautyGenerator, PatchDiscriminator

# PyTorch before 0.4 kept statistics for instance norms, which nothing reads.
_UNREAD = ('running_mean', 'running_var', 'num_batches_tracked')


def _pair(
  public: str, number: int, *path: str, conv: str = 'conv', norm: str = 'norm'
) -> Iterator[tuple[str, tensors.Path]]:
  """A convolution that is layer `number` of a sequence, and its norm behind it."""
  yield f'{public}.{number}.weight', ('params', *path, conv, 'kernel')
  yield from tensors.norm_paths(f'{public}.{number + 1}', (*path, norm)).items()


def _generator_paths(num_blocks: int) -> tensors.Paths:
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


def _discriminator_paths(num_layers: int) -> tensors.Paths:
  names = {f'main.{2 * i}': f'conv{i}' for i in range(num_layers + 1)} | {'conv1': 'score'}
  paths = {}
  for theirs, ours in names.items():
    paths[f'{theirs}.weight_bar'] = ('params', ours, 'kernel')
    paths[f'{theirs}.weight_u'] = ('spectral', ours, 'u')
    paths[f'{theirs}.weight_v'] = ('spectral', ours, 'v')
    if ours != 'score':
      paths[f'{theirs}.bias'] = ('params', ours, 'bias')
  return paths


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's; the vector v in the order of in, height, width, of 4x4 pixels."""
  return array.reshape(16, -1).T if name.endswith('.weight_v') else tensors.pytorch(name, array)


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors that are read, without the prefix of a model trained on several devices."""
  return tensors.canonical(state, ends=_UNREAD)


def _generator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[BeautyGenerator, dict[str, Any]]:
  """Module and variables of the public code's Generator_branch, `{'Branch_0.0.weight': array, ...}`."""
  state = canonical(state)
  blocks = sum(name.startswith('main.') and name.endswith('.main.0.weight') for name in state)
  module = BeautyGenerator(tensors.width(state, 'Branch_0.0.weight'), blocks)
  return module, tensors.variables_from('beautygan_generator', state, module, _generator_paths(blocks), pictures=2)


def _generator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'Branch_0.0.weight': array, ...}`."""
  return tensors.state_from(variables, _generator_paths(sum(name.startswith('block') for name in variables['params'])))


def _discriminator_from_reference(state: Mapping[str, np.ndarray]) -> tuple[PatchDiscriminator, dict[str, Any]]:
  """Module and variables of the public code's Discriminator with spectral norm, `{'main.0.weight_bar': array, ...}`."""
  state = canonical(state)
  convolutions = sum(name.startswith('main.') and name.endswith('.weight_bar') for name in state)
  layers = max(convolutions - 1, 1)
  module = PatchDiscriminator(tensors.width(state, 'main.0.weight_bar'), layers)
  return module, tensors.variables_from(
    'beautygan_discriminator', state, module, _discriminator_paths(layers), layout=_layout, side=3 * 2**layers
  )


def _discriminator_to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'main.0.weight_bar': array, ...}`."""
  return tensors.state_from(variables, _discriminator_paths(len(variables['params']) - 2), _layout)


generator = tensors.Conversion(_generator_from_reference, _generator_to_reference)
discriminator = tensors.Conversion(_discriminator_from_reference, _discriminator_to_reference)
