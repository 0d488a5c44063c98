"""SDM's denoiser: WeilunWang/semantic-diffusion-model's UNetModel <-> `jaxface.models.sdm`."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxface.convert import tensors
from jaxface.convert.unet_names import LEAVES, OUTSIDE, residual_name
from jaxface.models.sdm import SDMUNet
from jaxface.models.unet_layers import GROUPS

_ATTENTION = {'norm': 'norm', 'qkv': 'qkv', 'out': 'proj_out'}


def _paths(paths: Iterable[tensors.Path]) -> tensors.Paths:
  """Public name -> path, of the parameters that lie at `paths`."""
  paths = list(paths)
  levels = 1 + len({path[1] for path in paths if path[1].startswith('enlarge_')})
  a_level = len({path[1] for path in paths if path[1].startswith('decoder_')}) // levels
  attending = {path[1] for path in paths if path[2] == 'attention'}
  return {_public_name(path[1:], a_level, attending): path for path in paths}


def _public_name(path: tensors.Path, a_level: int, attending: set[str]) -> str:
  """Of the parameter at `path`, in a network with so many blocks a level on the way up; `attending` are stages."""
  top, *inside, leaf = path
  if top in OUTSIDE:
    return f'{OUTSIDE[top]}.{LEAVES[leaf]}'
  part, number = top.split('_')
  number = int(number)
  kind, layer, *inside = inside
  if part == 'encoder':
    block = f'input_blocks.{number + 1}.0'
  elif part == 'middle':
    block = f'middle_block.{2 * number}'
  elif part == 'decoder':
    block = f'output_blocks.{number}.0'
  else:
    # Behind whatever else is in the last block of a level.
    last = (number + 1) * a_level - 1
    block = f'output_blocks.{last}.{1 + (f"decoder_{last}" in attending)}'
  if kind == 'attention':
    before, position = block.rsplit('.', 1)
    return f'{before}.{int(position) + 1}.{_ATTENTION[layer]}.{LEAVES[leaf]}'
  return residual_name(block, part, layer, inside, leaf)


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  """PyTorch's, in which the layers of an attention are convolutions over sequences of positions."""
  tensor = tensors.pytorch(name, array)
  return tensor[..., None] if name.endswith(('.qkv.weight', '.proj_out.weight')) else tensor


def _length(state: Mapping[str, np.ndarray], name: str, axis: int, default: int) -> int:
  """Length of a tensor along an axis; where there is no such one, `check` will say so."""
  tensor = state.get(name)
  return default if tensor is None or tensor.ndim <= axis else tensor.shape[axis]


def _module(state: Mapping[str, np.ndarray], head_channels: int) -> SDMUNet:
  """The network whose tensors these are."""
  blocks = 1 + max((int(found[1]) for name in state if (found := re.match(r'output_blocks\.(\d+)\.', name))), default=1)
  enlarging = sorted(
    {int(found[1]) for name in state if (found := re.match(r'output_blocks\.(\d+)\.[12]\.in_norm\.', name))}
  )
  a_level = min(enlarging[0] + 1 if enlarging else blocks, blocks)
  firsts = [f'output_blocks.{block}' for block in range(0, (len(enlarging) + 1) * a_level, a_level)][::-1]
  channels = max(_length(state, 'input_blocks.0.0.weight', 0, 256) // GROUPS, 1) * GROUPS
  shared = 'middle_block.0.in_norm.mlp_shared.0.weight'
  return SDMUNet(
    model_channels=channels,
    multipliers=tuple(max(tensors.width(state, f'{first}.0.out_layers.2.weight') // channels, 1) for first in firsts),
    num_blocks=max(a_level - 1, 1),
    attention_factors=tuple(2**level for level, first in enumerate(firsts) if f'{first}.1.qkv.weight' in state),
    head_channels=head_channels,
    learn_sigma=tensors.width(state, 'out.2.weight') != 3,
    num_classes=max(_length(state, shared, 1, 20) - 1, 1),
    spade_hidden=_length(state, shared, 0, 128),
  )


def from_reference(state: Mapping[str, np.ndarray], *, head_channels: int = 64) -> tuple[SDMUNet, dict[str, Any]]:
  """Module and variables of the public code's UNetModel, `{'input_blocks.0.0.weight': array, ...}`.

  Args:
    state: the checkpoint's tensors.
    head_channels: the configuration's `num_head_channels`, which shapes cannot tell.
  """
  state = tensors.canonical(state)
  module = _module(state, head_channels)
  side = 2 ** (len(module.multipliers) - 1)
  inputs = (
    jax.ShapeDtypeStruct((1, side, side, 3), np.float32),
    jax.ShapeDtypeStruct((1,), np.int32),
    jax.ShapeDtypeStruct((1, side, side, module.num_classes + 1), np.float32),
  )
  found = tensors.shapes(module, inputs=inputs)
  return module, tensors.filled('sdm_unet', state, found, _paths(found), _layout)


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'input_blocks.0.0.weight': array, ...}`."""
  return tensors.state_from(variables, _paths(traverse_util.flatten_dict(variables)), _layout)
