"""VGG-19 as a perceptual loss takes it: vgg_conv.pth or torchvision's vgg19 <-> `jaxface.models.vgg`.

vgg_conv.pth, which BeautyGAN's public code names, calls its convolutions `conv1_1` ... `conv5_4`; torchvision numbers
all layers. The shapes are the same, the weights are not: the former are Caffe's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxface.convert import tensors
from jaxface.convert.torchvision import from_torchvision
from jaxface.models.vgg import VGG19, Vgg

# torchvision's numbers of the first convolution in each group.
_FIRST = (0, 5, 10, 19, 28)


def from_reference(state: Mapping[str, np.ndarray], *, taps: tuple[str, ...] = ('relu4_1',)) -> tuple[Vgg, dict]:
  """Module with `taps` and variables (numpy, float32), from either file's names; BeautyGAN's loss compares relu4_1.

  UserError where tensors are missing, unexpected or misshapen. The classifier's, and those of layers behind the last
  tap, are ignored.
  """
  numbered = any(name.startswith('features.') for name in state)
  first = [f'features.{number}' if numbered else f'conv{group}_1' for group, number in enumerate(_FIRST, 1)]
  module = Vgg(taps, VGG19, tuple(_width(state, f'{name}.weight') for name in first))
  if numbered:
    return module, from_torchvision(module, state)

  behind = {f'conv{group}_{i}' for group, i in set(module.layers) - set(module.used_layers)}
  named = {name: tensor for name, tensor in state.items() if name.rsplit('.', 1)[0] not in behind}
  shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))['params']
  expected = {}
  for layer, shape in shapes.items():
    height, width, inputs, outputs = shape['kernel'].shape
    expected |= {f'{layer}.weight': (outputs, inputs, height, width), f'{layer}.bias': (outputs,)}
  tensors.check('vgg19', named, expected)
  params = {}
  for layer in shapes:
    kernel = np.asarray(state[f'{layer}.weight'], np.float32).transpose(2, 3, 1, 0)
    params[layer] = {'kernel': np.ascontiguousarray(kernel), 'bias': np.asarray(state[f'{layer}.bias'], np.float32)}
  return module, {'params': params}


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'conv1_1.weight': array, ...}`, as far as there are layers."""
  state = {}
  for layer, params in variables['params'].items():
    state[f'{layer}.weight'] = np.ascontiguousarray(np.asarray(params['kernel']).transpose(3, 2, 0, 1))
    state[f'{layer}.bias'] = np.asarray(params['bias'])
  return state


def _width(state: Mapping[str, np.ndarray], name: str) -> int:
  """Channels that a convolution puts out; 1 where it is missing, which is an error only where a tap needs it."""
  kernel = state.get(name)
  return kernel.shape[0] if kernel is not None and kernel.ndim == 4 else 1
