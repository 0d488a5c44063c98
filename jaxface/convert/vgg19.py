"""VGG-19 as a perceptual loss takes it: vgg_conv.pth or torchvision's vgg19 <-> `jaxface.models.vgg`.

vgg_conv.pth, which BeautyGAN's public code names, calls its convolutions `conv1_1` ... `conv5_4`; torchvision numbers
all layers. The shapes are the same, the weights are not: the former are Caffe's.
"""

from collections.abc import Iterable, Mapping
from typing import Any

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
  module = Vgg(taps, VGG19, tuple(tensors.width(state, f'{name}.weight') for name in first))
  if numbered:
    return module, from_torchvision(module, state)

  behind = {f'conv{group}_{i}' for group, i in set(module.layers) - set(module.used_layers)}
  named = {name: tensor for name, tensor in state.items() if name.rsplit('.', 1)[0] not in behind}
  layers = (f'conv{group}_{i}' for group, i in module.used_layers)
  return module, tensors.variables_from('vgg19', named, module, _paths(layers))


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'conv1_1.weight': array, ...}`, as far as there are layers."""
  return tensors.state_from(variables, _paths(variables['params']))


def _paths(layers: Iterable[str]) -> tensors.Paths:
  return tensors.layer_paths((layer, (layer,)) for layer in layers)
