"""Feature extractors trained on ImageNet: torchvision's AlexNet, VGG and SqueezeNet 1.1 <-> `jaxface.models`.

torchvision numbers all layers of `features`, convolutions, ReLUs and pools alike; classifiers are left out.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxface.convert import tensors
from jaxface.models.alexnet import AlexNet
from jaxface.models.squeezenet import FIRES, SqueezeNet
from jaxface.models.vgg import Vgg

Backbone = AlexNet | Vgg | SqueezeNet

_ALEXNET = (0, 3, 6, 8, 10)
_SQUEEZENET = (3, 4, 6, 7, 9, 10, 11, 12)


def _layers(module: Backbone) -> dict[str, tensors.Path]:
  """'features.<number>' of every convolution that `module` has -> its path in the Flax variables."""
  if isinstance(module, AlexNet):
    return {f'features.{number}': (f'conv{i}',) for i, number in enumerate(_ALEXNET, 1)}
  if isinstance(module, SqueezeNet):
    parts = ('squeeze', 'expand1x1', 'expand3x3')
    fires = dict(zip(_SQUEEZENET, range(2, 2 + len(FIRES)), strict=True))
    layers = {f'features.{number}.{part}': (f'fire{i}', part) for number, i in fires.items() for part in parts}
    return {'features.0': ('conv1',), **layers}
  # Two entries a convolution, with its ReLU, and one a pool.
  numbers = {(group, i): 2 * n + group - 1 for n, (group, i) in enumerate(module.layers)}
  return {f'features.{numbers[layer]}': (f'conv{layer[0]}_{layer[1]}',) for layer in module.used_layers}


def _paths(module: Backbone) -> tensors.Paths:
  return tensors.layer_paths(_layers(module).items())


def _unused(name: str, needed: Mapping[str, Any]) -> bool:
  """Whether a tensor is a classifier's, or of a layer behind the last one that is needed."""
  return name.startswith('classifier.') or (
    name.startswith('features.') and int(name.split('.')[1]) > max(int(n.split('.')[1]) for n in needed)
  )


def from_torchvision(module: Backbone, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Variables (numpy, float32) for `module` from torchvision's tensors, `{'features.0.weight': array, ...}`.

  UserError where tensors are missing, unexpected or misshapen; those of the classifier and of layers behind the last
  tap are ignored.
  """
  paths = _paths(module)
  needed = {name: tensor for name, tensor in state.items() if not _unused(name, paths)}
  return tensors.variables_from(type(module).__name__, needed, module, paths)


def to_torchvision(module: Backbone, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The inverse, without what was ignored."""
  return tensors.state_from(variables, _paths(module))
