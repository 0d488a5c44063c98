"""SCA-DM's style encoder: ErgastiAlex/SCA-DM's MultiScaleEffStyleEncoder <-> `jaxface.models.style_encoder`.

In a checkpoint of the whole system its names begin with `cond_stage_model.`; here they do not.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxface.convert import tensors
from jaxface.models.style_encoder import StyleEncoder

_STEM = 'Encoder.first_layer.0.weight'
_FIRST = 'Encoder.enc_layer_0.0.weight'


def _layers(num_downsamples: int) -> Iterator[tuple[str, int, str]]:
  """Public name, position of the convolution in it, and name here, of layers that end in a norm."""
  yield 'Encoder.first_layer', 0, 'stem'
  for i in range(num_downsamples):
    yield f'Encoder.enc_layer_{i}', 0, f'down{i}'
  for i in range(num_downsamples - 1):
    yield f'Decoder.dec_layer_{i}', 1, f'up{i}'


def _paths(num_downsamples: int) -> tensors.Paths:
  layers = [(f'out.out_{i}.0', (f'tokens{i}',)) for i in range(num_downsamples - 1)]
  norms = {}
  for public, conv, ours in _layers(num_downsamples):
    layers.append((f'{public}.{conv}', (ours, 'conv')))
    norms |= tensors.norm_paths(f'{public}.{conv + 1}', (ours, 'norm'))
  return tensors.layer_paths(layers) | norms


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's, in which the last layers are convolutions over sequences of length 1."""
  tensor = tensors.pytorch(name, array)
  return tensor[..., None] if tensor.ndim == 2 else tensor


def from_reference(state: Mapping[str, np.ndarray]) -> tuple[StyleEncoder, dict[str, Any]]:
  """Module and variables of the public code's MultiScaleEffStyleEncoder, `{'Encoder.first_layer.0.weight': ...}`."""
  state = tensors.canonical(state)
  first = state.get(_FIRST)
  width = first.shape[1] if first is not None and first.ndim == 4 else 1
  num_classes = max(tensors.width(state, _STEM) // width, 1)
  module = StyleEncoder(
    num_classes=num_classes,
    width=width,
    token_dim=max(tensors.width(state, 'out.out_0.0.weight') // num_classes, 1),
    num_downsamples=max(tensors.count(state, r'Encoder\.enc_layer_\d+\.0\.weight'), 2),
  )
  side = 2**module.num_downsamples
  inputs = (
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    jax.ShapeDtypeStruct((1, side, side), np.int32),
  )
  paths = _paths(module.num_downsamples)
  return module, tensors.variables_from('scadm_style_encoder', state, module, paths, layout=_layout, inputs=inputs)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'Encoder.first_layer.0.weight': array, ...}`."""
  num_downsamples = sum(name.startswith('down') for name in variables['params'])
  return tensors.state_from(variables, _paths(num_downsamples), _layout)
