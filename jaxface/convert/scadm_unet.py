"""SCA-DM's denoiser: ErgastiAlex/SCA-DM's UNetModel <-> `jaxface.models.scadm`.

In a checkpoint of the whole system its names begin with `model.diffusion_model.`; here they do not.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxface.convert import tensors
from jaxface.convert.unet_names import LEAVES, OUTSIDE, residual_name
from jaxface.models.scadm import Conditioning, SCAUNet
from jaxface.models.unet_layers import GROUPS

# Of classes; made and loaded by the public code, but never used.
_LABELS = 'label_emb.weight'


_IN_TRANSFORMER = {
  'norm': 'norm',
  'conv_in': 'proj_in',
  'conv_out': 'proj_out',
  'widen': 'transformer_blocks.0.ff.net.0.proj',
  'narrow': 'transformer_blocks.0.ff.net.2',
  'to_positions': 'transformer_blocks.0.attn1',
  'to_classes': 'transformer_blocks.0.attn2',
} | {f'norm{i}': f'transformer_blocks.0.norm{i}' for i in (1, 2, 3)}
_ATTENTION = {'query': 'to_q', 'key': 'to_k', 'value': 'to_v', 'out': 'to_out.0'}


def _paths(paths: Iterable[tensors.Path]) -> tensors.Paths:
  """Public name -> path, of the parameters that lie at `paths`."""
  paths = list(paths)
  tops = {path[1] for path in paths}
  num_blocks = len([top for top in tops if top.startswith('encoder_')]) // (
    1 + len([top for top in tops if top.startswith('shrink_')])
  )
  with_transformer = {path[1] for path in paths if path[2] == 'transformer'}
  return {public_name(path[1:], num_blocks, path[1] in with_transformer): path for path in paths}


def public_name(path: tensors.Path, num_blocks: int, with_transformer: bool) -> str:
  """The public name of the parameter at `path`, of a network with so many blocks a level."""
  top, *inside, leaf = path
  if top in OUTSIDE:
    return f'{OUTSIDE[top]}.{LEAVES[leaf]}'
  part, number = top.split('_')
  number = int(number)
  if part == 'shrink':
    return f'input_blocks.{(number + 1) * (num_blocks + 1)}.0.op.{LEAVES[leaf]}'
  if part == 'encoder':
    # The stem, and one shrinking convolution behind each level, are blocks too.
    block, first = f'input_blocks.{1 + number + number // num_blocks}', 0
  elif part == 'middle':
    # Both stages are one sequence.
    block, first = 'middle_block', 2 * number
  else:
    block, first = f'output_blocks.{number}', 0
  kind, *inside = inside
  if kind == 'enlarge':
    return f'{block}.{1 + with_transformer}.conv.{LEAVES[leaf]}'
  if kind == 'residual':
    layer, *inside = inside
    return residual_name(f'{block}.{first}', part, layer, inside, leaf)
  layer, *inside = inside
  return '.'.join([block, str(first + 1), _IN_TRANSFORMER[layer], *(_ATTENTION[n] for n in inside), LEAVES[leaf]])


def canonical(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The tensors that are read, without the prefix of a model trained on several devices."""
  return tensors.canonical(state, begins=(_LABELS,))


def _length(state: Mapping[str, np.ndarray], ending: str, axis: int, default: int) -> int:
  """Length along an axis of the first tensor whose name ends so; where there is none, `check` will say so."""
  found = next((tensor for name, tensor in state.items() if name.endswith(ending) and tensor.ndim > axis), None)
  return default if found is None else found.shape[axis]


def _module(state: Mapping[str, np.ndarray], head_channels: int) -> SCAUNet:
  """The network whose tensors these are."""
  # Width of each block on the way down, by level, and whether it has a transformer.
  levels: list[list[tuple[int, bool]]] = [[]]
  blocks = {int(found[1]) for name in state if (found := re.match(r'input_blocks\.(\d+)\.', name))}
  for block in sorted(blocks - {0}):
    if f'input_blocks.{block}.0.op.weight' in state:
      levels.append([])
    else:
      width = tensors.width(state, f'input_blocks.{block}.0.out_layers.3.weight')
      levels[-1].append((width, f'input_blocks.{block}.1.norm.weight' in state))
  channels = _length(state, 'input_blocks.0.0.weight', 0, GROUPS)
  first = [level[0] if level else (channels, False) for level in levels]
  return SCAUNet(
    model_channels=channels,
    multipliers=tuple(max(width // channels, 1) for width, _ in first),
    num_blocks=max(len(levels[0]), 1),
    attention_factors=tuple(2**level for level, (_, attends) in enumerate(first) if attends),
    head_channels=head_channels,
    context_dim=_length(state, '.attn2.to_k.weight', 1, 1280),
    num_classes=_length(state, '.mlp_shared.0.weight', 1, 19),
    out_channels=tensors.width(state, 'out.2.weight'),
    spade_hidden=_length(state, '.mlp_shared.0.weight', 0, 128),
  )


def from_reference(state: Mapping[str, np.ndarray], *, head_channels: int = 32) -> tuple[SCAUNet, dict[str, Any]]:
  """Module and variables of the public code's UNetModel, `{'input_blocks.0.0.weight': array, ...}`.

  Args:
    state: the checkpoint's tensors.
    head_channels: the configuration's `num_head_channels`, which shapes cannot tell.
  """
  state = canonical(state)
  module = _module(state, head_channels)
  side = 2 ** (len(module.multipliers) - 1)
  inputs = (
    jax.ShapeDtypeStruct((1, side, side, _length(state, 'input_blocks.0.0.weight', 1, 3)), np.float32),
    jax.ShapeDtypeStruct((1,), np.int32),
    Conditioning(
      tokens=jax.ShapeDtypeStruct((1, module.num_classes, module.context_dim), np.float32),
      label=jax.ShapeDtypeStruct((1, side, side), np.int32),
    ),
  )
  found = tensors.shapes(module, inputs=inputs)
  return module, tensors.filled('scadm_unet', state, found, _paths(found))


def to_reference(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """`{'input_blocks.0.0.weight': array, ...}`, with what the public code wants to find but never uses."""
  state = tensors.state_from(variables, _paths(traverse_util.flatten_dict(variables)))
  classes = _length(state, '.mlp_shared.0.weight', 1, 19)
  return state | {_LABELS: np.zeros((classes, len(state['time_embed.0.bias'])), np.float32)}
